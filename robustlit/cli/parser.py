"""argparse and errors with this program's wording: one line on standard error, and an exit code."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

# argparse's wording -> ours.
_WORDING = {
    r"argument (?:\S+/)?(-\S+): expected (?:one|at least one) argument": r"\1 needs a value",
    r"argument (?:\S+/)?(-\S+): invalid choice: (.+) \(choose from (.+)\)": r"\1 is one of \3, got \2",
    r"the following arguments are required: (.+)": r"\1 is missing",
}


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
        hint = did_you_mean(argument, flags) or f"there are {', '.join(flags)} "
        return f"there is no flag {argument}; {hint}({self.prog} --help)"


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """Return "did you mean NAME? " with the name nearest to a mistyped one; nothing where none is near."""
    return "".join(f"did you mean {near}? " for near in difflib.get_close_matches(name, [*there], n=1))


def worded(action: Callable[[], int]) -> int:
    """Run `action` and return its exit code; an error that the user can correct becomes one line, not a traceback."""
    try:
        code = action()
        sys.stdout.flush()
        return code
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        users = isinstance(error, (ValueError, OSError)) or package in ("robustlit", "hydra", "omegaconf")
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not users:
            raise
        from hydra.errors import InstantiationException

        text = str(error)
        if isinstance(error, InstantiationException):  # its cause, and the key of what could not be built
            _, found, key = text.rpartition("full_key: ")
            text = f"{f'{key.strip()}: ' if found else ''}{error.__cause__ or error}"
        print_error(text)
        return 2 if isinstance(error, UsageError) else 1


def until_reader_leaves(action: Callable[[], int]) -> int:
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
