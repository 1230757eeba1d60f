"""Train image classifiers that withstand adversarial examples, and measure honestly how far they do.

examples:
  robustlit train recipe=pgd_adv_train                     train, then attack the best checkpoint
  robustlit evaluate runs/pgd_adv_train sweep=worst_case   attack it again, harder
  robustlit evaluate --model my.module:build --verdict     attack any net that a function of yours returns
  robustlit compare runs/*                                 one page that compares runs

`robustlit COMMAND --help` lists what a command takes. `python train.py ...` is `robustlit train ...`.
"""

import shlex
import sys
from functools import partial
from typing import Any, NoReturn

from robustlit import __version__
from robustlit.checks import did_you_mean
from robustlit.cli import compare, dashboard, evaluate, explore, export, figures, recipes, report, sync, train
from robustlit.cli.parser import Parser, UsageError, print_error, run_reporting_errors, until_pipe_closes

# Each module has its page for --help as its docstring, `add_arguments(parser)` and `run(arguments) -> exit code`.
COMMANDS = {
    m.__name__.rpartition(".")[2]: m
    for m in (train, evaluate, compare, figures, explore, report, export, dashboard, sync, recipes)
}
_COMPUTES = ("train", "evaluate", "explore", "report")  # the others only read


def program() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the program, and the parsers of its commands by name."""
    parser = Parser(prog="robustlit", **_texts(__doc__))
    parser.add_argument("--version", action="version", version=f"robustlit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, module in COMMANDS.items():
        texts = _texts(module.__doc__)
        module.add_arguments(commands.add_parser(name, help=texts["description"].partition("\n")[0], **texts))
    return parser, commands.choices


def _texts(page: str | None) -> dict[str, Any]:
    """Split a help page into the texts before and after the list of arguments."""
    description, heading, examples = (page or "").partition("examples:")
    return {"description": description, "epilog": heading + examples}


def main(command: str | None = None) -> NoReturn:
    """Run a command with the arguments of this process and exit with its code.

    Args:
        command: The command, for a script that is one (train.py); None takes it from the first argument.
    """
    arguments, script = sys.argv[1:], sys.argv[:1]
    parser, commands = program()
    if command is not None:
        commands[command].prog = f"python {command}.py"
    elif arguments and not arguments[0].startswith("-"):
        command, *arguments = arguments
        script.append(command)
    try:
        if command is None:
            parser.parse_args(arguments)
            parser.print_help()
            sys.exit(2)
        if command not in COMMANDS:
            hint = f"{did_you_mean(command, COMMANDS)} there are {', '.join(COMMANDS)}".lstrip()
            raise UsageError(f"there is no command {command!r}; {hint} (robustlit --help)")
        given = commands[command].parse(arguments)
    except UsageError as error:
        print_error(str(error))
        sys.exit(2)
    given.program, given.script = commands[command].prog, script
    given.command = shlex.join([*given.program.split(), *arguments])
    run = partial(COMMANDS[command].run, given)
    sys.exit(run_reporting_errors(run if command in _COMPUTES else partial(until_pipe_closes, run)))
