"""Our attacks against those of foolbox, ART, adv-lib, torchattacks and AutoAttack: same net, images and budget.

    python benchmarks/attacks.py                          # every match on the undefended net
    python benchmarks/attacks.py --attacks pgd,deepfool --net pgd --n 200 --rounds 5
    python benchmarks/attacks.py --model runs/NAME        # a checkpoint of ours; or --model module:function
    python benchmarks/attacks.py --attacks worst-case,worst-case-l2 --model mine:net --data mine:images --eps 0.03
    python benchmarks/attacks.py --scaling | --memory | --sweep

All libraries run in turn within one process, the order turned each round. The columns:
- x ours: median over the rounds of a library's time over ours, taken within a round (above 1: ours is faster), until
  success is known for every image: ours judge their results, for the others one forward is added. On one thread of a
  CPU the clock is the process's own, so that other load on the machine does not matter;
- error: share in error by a fresh forward, inside the box and within eps;
- alone: images that this attack breaks and ours does not;
- median: distance over the images that needed an attack, infinite where it failed;
- fwd, bwd: passes per image, counted outside the attack;
- x bare: the attack's time over that of the same passes, at the same batch sizes, with nothing around them.

It works without any peer; to install them, see benchmarks/peers.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import nets
import torch
from growth import memory, scaling, sweep
from matches import MATCHES, Match, matches
from measure import Line, contest
from peers import LINES, OURS, PACKAGES, installed, load
from rich.console import Console
from rich.table import Table


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", help=f"names with commas between; all: {','.join(m.name for m in MATCHES)}")
    parser.add_argument(
        "--peers", help=f"libraries with commas between, 'none' for ours alone; all: {','.join(PACKAGES)}"
    )
    parser.add_argument("--net", default="undefended", help=f"built-in nets, commas between: {','.join(nets.RECIPES)}")
    parser.add_argument("--model", help="a checkpoint or run folder of robustlit, or module:function returning a net")
    parser.add_argument("--weights", help="state dict for the net of module:function")
    parser.add_argument("--data", help="module:function returning images in [0, 1] and classes; else test digits")
    parser.add_argument("--n", type=int, default=500, help="images")
    parser.add_argument("--eps", type=float, default=0.3, help="L-inf budget in pixel units; L2 matches scale it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, help="folder to keep the built-in nets in")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--scaling", action="store_true", help="passes and time of ours from 250 to 4 000 images")
    modes.add_argument("--memory", action="store_true", help="extra peak memory of ours for one 3 x 224 x 224 example")
    modes.add_argument(
        "--sweep", action="store_true", help="passes of a sweep over 20 eps against one run at the largest"
    )
    return parser.parse_args()


def machine(device: str) -> dict[str, Any]:
    """Return the device and the versions that the figures depend on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = ("robustlit", "torch", "numpy", *(PACKAGES[library] for library in PACKAGES if installed(library)))
    versions = {name: importlib.metadata.version(name) for name in packages}
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return {
        "device": name,
        "cpu": cpu,
        "cores": cores,
        "threads": threads,
        "python": platform.python_version(),
        **versions,
    }


def table_of(match: Match, lines: list[Line], count: int) -> Table:
    """Return a match as a table."""
    table = Table(title=f"{match.name}: {count} images", title_justify="left", box=None, pad_edge=False)
    medians = (f"median {match.norm}", "median l2")
    heads = ("", "ms", "x ours (min - max)", "error", "alone", *medians, "fwd", "bwd", "x bare")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    ours = lines[0]
    for line in lines:
        ratios = [theirs / mine for theirs, mine in zip(line.seconds, ours.seconds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})" if line is not ours else "1"
        seconds = statistics.median(line.seconds)
        table.add_row(
            line.label,
            f"{1e3 * seconds:.0f}",
            spread,
            f"{line.outcome.rate:.1%}",
            str(int((line.outcome.error & ~ours.outcome.error).sum())),
            f"{line.outcome.median:.4f}",
            f"{line.outcome.median_l2:.3f}",
            f"{line.forwards:.1f}",
            f"{line.backwards:.1f}",
            f"{seconds / line.bare:.2f}",
        )
    return table


def record(match: Match, net: str, line: Line) -> dict[str, Any]:
    """Return a line of the JSON file."""
    outcome = line.outcome
    figures = {"error": outcome.rate, "median": outcome.median, "median_l2": outcome.median_l2, "bare": line.bare}
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    passes = {"forwards": line.forwards, "backwards": line.backwards}
    return {"attack": match.name, "net": net, "library": line.label, "seconds": line.seconds, **passes, **finite}


def compare(wanted: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Run every match on every net."""
    libraries = list(PACKAGES) if wanted.peers is None else [n for n in wanted.peers.split(",") if n != "none"]
    if unknown := [name for name in libraries if name not in PACKAGES]:
        raise SystemExit(f"there is no peer called {', '.join(unknown)}; there are {', '.join(PACKAGES)}, none")
    for library in [name for name in libraries if not installed(name)]:
        console.print(f"{library} is not installed ({LINES[library]}): left out")
        libraries.remove(library)
    x, y = (part.to(wanted.device) for part in nets.images(wanted.data, wanted.n))
    for library in libraries:
        load(library)
    records = []
    for name in [wanted.model] if wanted.model else wanted.net.split(","):
        net = nets.given(name, wanted.weights) if wanted.model else nets.built_in(name, wanted.cache)
        net = net.to(wanted.device)
        with torch.no_grad():
            console.print(f"\n[bold]{name}[/], clean accuracy {float((net(x).argmax(1) == y).double().mean()):.1%}")
        for match in matches(wanted.attacks):
            rivals = [peer for peer in match.peers if peer.library in (*libraries, OURS)]
            try:
                match.ours(wanted.eps * match.scale)
            except (ImportError, AttributeError):
                console.print(f"{match.name}: ours is not available")
                continue
            with contextlib.redirect_stdout(io.StringIO()):  # peers print
                lines = contest(match, rivals, net, x, y, wanted.eps, wanted.rounds)
            console.print(table_of(match, lines, min(len(x), match.few)), "")
            records += [record(match, name, line) for line in lines]
    return records


def main() -> None:
    """Run the chosen mode, print its tables, and write the JSON file."""
    wanted = arguments()
    torch.set_num_threads(wanted.threads)
    logging.disable(logging.WARNING)  # ART's and torchattacks' notes
    console = Console(file=sys.stdout, width=120, highlight=False)
    where = machine(wanted.device)
    console.print(", ".join(f"{name} {value}" for name, value in where.items()))
    mode = scaling if wanted.scaling else memory if wanted.memory else sweep if wanted.sweep else compare
    records = mode(wanted, console)
    if wanted.json is not None:
        settings = {name: str(value) for name, value in vars(wanted).items() if value is not None}
        wanted.json.write_text(json.dumps({"machine": where, "settings": settings, "records": records}, indent=1))


if __name__ == "__main__":
    main()
