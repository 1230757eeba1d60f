"""argparse and errors with this program's wording: one line on standard error, and an exit code."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from robustlit.checks import did_you_mean

# argparse's wording -> ours.
_WORDING = {
    r"argument (?:\S+/)?(-\S+): expected (?:one|at least one) argument": r"\1 needs a value",
    r"argument (?:\S+/)?(-\S+): invalid choice: (.+) \(choose from (.+)\)": r"\1 is one of \3, got \2",
    r"the following arguments are required: (.+)": r"\1 is missing",
}


_NO_MEMORY = (
    "out of memory ({reason}): take a smaller data.batch_size, with trainer.accumulate_grad_batches=2 for as many "
    "examples a step, or a smaller net; outside training, a smaller data.eval_batch_size. What was finished is kept"
)


class UsageError(ValueError):
    """A command line that cannot be read: exit code 2."""


class Parser(argparse.ArgumentParser):
    """Parse one command's flags and words, in any order; raise a UsageError where argparse leaves the program."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments that follow the command."""
        given, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            raise UsageError(self._unknown(unknown[0]))
        return given

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint in our wording."""
        if found := re.fullmatch(r"argument (?:\S+/)?(-\S+): ignored explicit argument '(.*)'", message):
            raise UsageError(self._unknown(f"{found[1]}={found[2]}"))
        for pattern, ours in _WORDING.items():
            message = re.sub(pattern, ours, message)
        raise UsageError(f"{message} ({self.prog} --help)")

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} is one argument too many ({self.prog} --help)"
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        flags.remove("--help")
        hint = did_you_mean(argument, flags) or f"there are {', '.join(flags)}"
        return f"there is no flag {argument}; {hint} ({self.prog} --help)"


def run_reporting_errors(action: Callable[[], int]) -> int:
    """Run `action` and return its exit code; an error that the user can correct becomes one line, not a traceback."""
    try:
        code = action()
        sys.stdout.flush()
        return code
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        users = isinstance(error, (ValueError, OSError)) or package in ("robustlit", "hydra", "omegaconf")
        if not users and _is_out_of_memory(error):
            users, error = (
                True,
                ValueError(_NO_MEMORY.format(reason=" ".join(str(error).split())[:200] or "MemoryError")),
            )
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not users:
            raise
        from hydra.errors import InstantiationException

        text = str(error)
        if isinstance(error, InstantiationException):  # its cause, and the key of what could not be built
            _, found, key = text.rpartition("full_key: ")
            text = f"{f'{key.strip()}: ' if found else ''}{error.__cause__ or error}"
        print_error("; ".join(line.strip() for line in text.splitlines() if line.strip()))
        return 2 if isinstance(error, UsageError) else 1


def _is_out_of_memory(error: Exception) -> bool:
    if not isinstance(error, (RuntimeError, MemoryError)):
        return False
    from robustlit.attacks.memory import is_out_of_memory

    return is_out_of_memory(error)


def until_pipe_closes(action: Callable[[], int]) -> int:
    """Run `action`, which only prints: a reader that stops early, such as `head`, is no error."""
    try:
        code = action()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports it once more at its end
        return 0


def print_error(text: str) -> None:
    """Print an error line on standard error."""
    print(f"error: {text}", file=sys.stderr, flush=True)
