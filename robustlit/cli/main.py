"""The command line: finds the command, composes a recipe and runs it, words the errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustlit.cli.help import help_of

COMMANDS = ("train", "evaluate", "compare", "figures", "dashboard", "sync", "recipes")
_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ROBUSTLIT_RUN_DIR")


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of this process and exits with its code.

    Args:
        command: the command, for a script that is one; None reads it from the first argument.
    """
    arguments = sys.argv[1:]
    script = [sys.argv[0]]
    if command is None and arguments and not arguments[0].startswith("-"):
        command, arguments = arguments[0], arguments[1:]
        script.append(command)
    asked = any(a in ("-h", "--help") for a in arguments)
    program = "python train.py" if command and len(script) == 1 else "robustlit train"
    if command is not None and command not in COMMANDS:
        _fail(f"there is no command {command!r}; there are {', '.join(COMMANDS)} (robustlit --help)")
    if (command is None or asked) and (text := help_of(command, program)) is not None:
        print(text, end="")
        sys.exit(0 if asked else 2)
    assert command is not None
    commands = {"train": _train, "evaluate": _evaluate, "compare": _compare, "figures": _figures}
    run = {**commands, "dashboard": _dashboard, "sync": _sync, "recipes": _recipes}[command]
    sys.exit(_worded(lambda: run(arguments, script), reads=command not in ("train", "evaluate")))


def _worded(action: Callable[[], int], *, reads: bool = False) -> int:
    """Runs `action`; what the user can mend becomes one line instead of a traceback.

    Of a command that only `reads`, a reader that goes before the end, such as `head`, is no error.
    """
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    try:
        code = action()
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        if not reads:
            _say_error(str(error))
            return 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would say so once more at its end
        return 0
    except InstantiationException as error:
        reason = error.__cause__ or error
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        where = str(error).rsplit("full_key: ", 1)
        _say_error(f"{f'{where[1].strip()}: ' if len(where) == 2 else ''}{reason}")
    except (ValueError, OSError, RuntimeError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not _is_users(error):
            raise
        _say_error(str(error))
    return 1


def _is_users(error: BaseException) -> bool:
    """Whether an error is about what the user gave, rather than a fault of the program (whose traceback is shown)."""
    if isinstance(error, (ValueError, OSError)):  # or torch would be loaded to word an error
        return True
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from robustlit.data import DataError
    from robustlit.results import EvaluationError
    from robustlit.training import CheckpointError

    kinds = (HydraException, OmegaConfBaseException, CheckpointError, DataError, EvaluationError)
    return isinstance(error, kinds)


def _say_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _fail(text: str) -> None:
    _say_error(text)
    sys.exit(2)


# train


def _train(arguments: list[str], script: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from robustlit.experiment.recipes import BASE, check_recipe_name, recipe_files, recipes_folder, register_recipes

    arguments = _flags_first(arguments)
    files = recipe_files(_config_dirs(arguments))
    register_recipes(files)
    for argument in arguments:
        if argument.startswith("recipe="):
            for name in argument.removeprefix("recipe=").split(","):
                check_recipe_name(name, files)
    if not any(argument.startswith("recipe=") for argument in arguments):
        asked_of_hydra = [a for a in arguments if a.startswith("--") and not a.startswith(("--config", "--multirun"))]
        if not asked_of_hydra:
            _say_error(f"which recipe? add recipe=NAME; there are {', '.join(files)} (`robustlit recipes` says more)")
            return 2
    elif not any(argument.startswith(("--config-name", "-cn")) for argument in arguments):
        from robustlit.experiment.composition import check_overrides

        several = any(argument in ("-m", "--multirun") for argument in arguments)
        check_overrides(_parted(arguments)[1], _config_dirs(arguments), several=several)

    codes: list[int] = []

    def task(config: Any) -> None:
        hydra_config = HydraConfig.get()
        config.recipe = config.recipe  # resolves ${hydra:...} while Hydra answers
        directories = [f"--config-dir={d}" for d in _config_dirs(arguments)]
        # The processes that Lightning starts for several devices run this very job again: this job of a multirun, by
        # its own overrides, not through Hydra's stored config.
        with _job(HydraConfig, [*script, *directories, *hydra_config.overrides.task]):
            codes.append(_worded(lambda: _run_train(config)))

    with _argv([script[0], *arguments]):
        hydra.main(config_path=str(recipes_folder()), config_name=BASE, version_base="1.3")(task)()
    return max(codes, default=0)


def _run_train(config: Any) -> int:
    from robustlit.experiment.run import train

    return train(config)


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments, flags with their values before overrides: Hydra's parser takes them in no other order."""
    flags, overrides = _parted(arguments)
    return flags + overrides


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides."""
    with_value = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-name", "-cn", "--config-dir", "-cd")
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in with_value and rest:
            flags += [argument, rest.pop(0)]
        else:
            (flags if argument.startswith("-") else overrides).append(argument)
    return flags, overrides


def _config_dirs(arguments: Sequence[str]) -> list[str]:
    """Folders given by --config-dir (in either spelling)."""
    found = []
    for position, argument in enumerate(arguments):
        for flag in ("--config-dir", "-cd"):
            if argument == flag and position + 1 < len(arguments):
                found.append(arguments[position + 1])
            elif argument.startswith(f"{flag}="):
                found.append(argument.split("=", 1)[1])
    return [str(Path(folder).absolute()) for folder in found]


@contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _job(hydra_config: Any, arguments: list[str]) -> Iterator[None]:
    """Surroundings of one job: the command that starts its further processes, and an environment put back after it."""
    singleton = hydra_config.instance()
    kept = singleton.cfg
    before = {name: os.environ.get(name) for name in _LAUNCHER}
    singleton.cfg = None  # else Lightning would start them through Hydra's stored config
    try:
        with _argv(arguments):
            yield
    finally:
        singleton.cfg = kept
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# evaluate


def _evaluate(arguments: list[str], script: list[str]) -> int:
    from robustlit.cli.evaluate import evaluate

    return evaluate(arguments)


# compare


def _compare(arguments: list[str], script: list[str]) -> int:
    runs: list[str] = []
    out, intersect = "compare.html", False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--intersect":
            intersect = True
        elif argument.startswith("--out="):
            out = argument.removeprefix("--out=")
        elif argument == "--out" and rest:
            out = rest.pop(0)
        elif argument.startswith("-"):
            given = "no file after --out" if argument == "--out" else f"{argument!r}"
            _say_error(f"robustlit compare takes --out FILE.html and --intersect, got {given}")
            return 2
        elif Path(argument).name != "multirun.yaml":  # lies in runs/ after -m, so runs/* has it
            runs.append(argument)
    if not runs:
        _say_error("which runs? robustlit compare RUN RUN ... [--out FILE.html] [--intersect]")
        return 2
    from robustlit.comparison import compare, write_page

    page = compare(runs, intersect=intersect)
    path = write_page(page, out)
    print(f"{len(runs)} run{'s' * (len(runs) > 1)} compared: {path} ({len(page) / 1e6:.1f} MB)")
    return 0


# figures


def _figures(arguments: list[str], script: list[str]) -> int:
    from robustlit.cli.figures import figures

    return figures(arguments)


# W&B


def _dashboard(arguments: list[str], script: list[str]) -> int:
    from robustlit.cli.dashboard import dashboard

    return dashboard(arguments)


def _sync(arguments: list[str], script: list[str]) -> int:
    from robustlit.cli.sync import sync

    return sync(arguments)


# recipes


def _recipes(arguments: list[str], script: list[str]) -> int:
    from robustlit.experiment.recipes import first_line, recipe_files

    files = recipe_files(_config_dirs(arguments))
    width = max(map(len, files))
    for name, path in files.items():
        print(f"{name:<{width}}  {first_line(path)}")
    return 0
