"""Draw the figures of one run again, or of several runs in one.

They are drawn from the runs' tables: no model is loaded, nothing is attacked.

examples:
  %(prog)s runs/pgd_adv_train
  %(prog)s runs/trades runs/mart --undefended runs/standard --distance linf
"""

import argparse
import sys
from functools import partial
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run folder (runs/NAME) that was evaluated")
    parser.add_argument("--out", type=Path, help="folder (default: evaluation/ of a single run, else figures/)")
    parser.add_argument("--style", default="curve", help="curve, or report: the axes of the 2019 report")
    parser.add_argument("--attack", help="draw only this attack (default: all, and the worst case of several runs)")
    parser.add_argument("--distance", nargs="+", default=["l2", "linf"], help="any of l2, linf, l1, l0")
    parser.add_argument("--undefended", type=Path, metavar="RUN", help="the net without a defense, drawn as well")
    parser.add_argument("--intersect", action="store_true", help="draw on the test images that all runs share")


def run(arguments: argparse.Namespace) -> int:
    """Draw the figures, print their files and return the exit code; runs that cannot be drawn are a ValueError."""
    from robustlit.figures import Wanted, draw_folders

    wanted = Wanted(
        arguments.distance, arguments.style, arguments.attack, arguments.undefended, arguments.intersect, arguments.out
    )
    for file in draw_folders(arguments.runs, wanted, note=partial(print, file=sys.stderr), judge=_to_judge):
        print(file)
    return 0


def _to_judge(run: Path) -> str:
    """Return the command that gives a run its verdict."""
    from robustlit.comparison.origin import Again, again
    from robustlit.comparison.runs import ComparisonError, read_run

    try:
        return str(again(read_run(run)))
    except ComparisonError:  # about files that no figure needs
        return str(Again(None))
