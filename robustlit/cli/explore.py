"""Look at why adversarial examples exist around one net, or several side by side (section 10 of the 2019 report).

For one test image: the decision regions in the plane through it, its nearest adversarial example and the nearest
training image of the class that this is taken for, and along two random directions. For --n images: how near their
nearest adversarial examples lie to training images. For pairs of classes: distances from one to the other, and margins.

Leaves in explore/: slices.png, neighbours.png, pairs.png, explore.json (the numbers).

examples:
  %(prog)s runs/standard
  %(prog)s runs/standard runs/pgd_adv_train --example 7
  %(prog)s runs/standard --n 0 --pairs 0           the slices alone
  %(prog)s runs/cifar10_pgd data.root=PATH         values of the first run's recipe
"""

import argparse
import sys
from pathlib import Path

from robustlit.cli.parser import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s RUN [RUN ...] [--example NUMBER] [--n IMAGES] [--pairs IMAGES] [--out FOLDER] [key=value ...]"
    )
    parser.add_argument(
        "words", nargs="+", metavar="RUN, key=value", help="run folders or checkpoints; trust=[PACKAGE]"
    )
    parser.add_argument("--example", type=int, metavar="NUMBER", help="test image (default: one that all classify)")
    parser.add_argument("--n", type=int, default=50, metavar="IMAGES", help="test images to measure (default 50)")
    parser.add_argument("--pairs", type=int, default=2, metavar="IMAGES", help="for each pair of classes (default 2)")
    parser.add_argument("--side", type=int, default=81, metavar="POINTS", help="along a side of a slice (default 81)")
    parser.add_argument("--seed", type=int, default=0, help="of the random directions")
    parser.add_argument("--out", type=Path, default=Path("explore"), metavar="FOLDER", help="default: explore/")


def run(arguments: argparse.Namespace) -> int:
    """Explore, print the files and return the exit code."""
    runs = [word for word in arguments.words if "=" not in word or Path(word).exists()]
    trust = [word for word in arguments.words if word.startswith("trust=")]
    overrides = [word for word in arguments.words if word not in (*runs, *trust)]
    if not runs:
        raise UsageError("which runs? robustlit explore runs/NAME [runs/OTHER ...]")
    if min(arguments.n, arguments.pairs) < 0 or arguments.side < 2:
        raise UsageError("--n and --pairs must be at least 0, --side at least 2")
    from robustlit.experiment.explore import Exploration, explore
    from robustlit.experiment.own_net import find_modules_here

    trusted = [name for word in trust for name in word[len("trust=") :].strip("[]").split(",")]
    if trusted:
        find_modules_here()
    wanted = Exploration(arguments.example, arguments.n, arguments.pairs, arguments.side, arguments.seed)
    for file in explore(runs, arguments.out, wanted, overrides, trusted=trusted, report=_show):
        print(file, flush=True)
    return 0


def _show(what: str, share: float) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what} {100 * share:.0f} %", end="", file=sys.stderr, flush=True)
    else:
        print(f"{what} {100 * share:.0f} %", file=sys.stderr, flush=True)
