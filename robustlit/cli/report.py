"""Compute and draw the figures of the 2019 report: what it claims, and what an attacker who knows leaves of it.

Every figure rests on runs, each a command of this program that is printed before it starts; a finished run is never
computed again, and one that was stopped goes on. Without FIGURE it lists the figures and the runs that they still need.

Leaves in report/: figure_N.json (every number), figure_N.png and .svg (drawn from that file alone), runs/.

examples:
  %(prog)s                                         list the figures
  %(prog)s 14 18                                   or all
  %(prog)s 14 --n 200 --few 20                     on fewer test images
  %(prog)s 10 --take base=runs/standard            take a run of yours for one of the report's
  %(prog)s 11 trainer.accelerator=gpu              values of the recipes, for every training
  %(prog)s --redraw                                draw all figures again from their JSON, in seconds
"""

import argparse
import subprocess
import sys
from pathlib import Path

from robustlit.cli.parser import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [FIGURE ...] [--n N] [--few N] [--take NAME=RUN] [--out FOLDER] [--redraw] [key=value ...]"
    parser.add_argument("words", nargs="*", metavar="FIGURE, key=value", help="figures or all; values of the recipes")
    parser.add_argument("--n", type=int, default=1000, metavar="IMAGES", help="test images (default 1000)")
    parser.add_argument("--few", type=int, metavar="IMAGES", help="for the costly attacks (default a tenth of --n)")
    parser.add_argument("--take", action="append", default=[], metavar="NAME=RUN", help="a run folder of yours")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER", help="default: report/")
    parser.add_argument("--redraw", action="store_true", help="only draw again what figure_*.json there hold")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code: that of the run that failed or was stopped, else 0."""
    from robustlit.experiment.reproduction import Reproduction

    figures = [word for word in arguments.words if "=" not in word]
    if arguments.redraw:
        return _redraw(arguments.out, figures)
    few = arguments.few if arguments.few is not None else max(1, arguments.n // 10)
    if arguments.n < 1 or few < 1:
        raise UsageError(f"--n and --few must be at least 1, got {arguments.n} and {few}")
    taken = dict(_pair(word) for word in arguments.take)
    overrides = [word for word in arguments.words if "=" in word]
    report = Reproduction(arguments.out, arguments.n, few, taken, overrides)
    if not figures:
        return _list(report)
    chosen = [*report.figures] if figures == ["all"] else figures
    parts = {part.folder: part for figure in chosen for part in report.parts(figure)}
    (arguments.out / "runs").mkdir(parents=True, exist_ok=True)  # a folder that cannot be written fails now
    for number, part in enumerate(parts.values(), 1):
        print(f"[{number}/{len(parts)}] {part.name}: {'finished' if part.finished else part.command}", flush=True)
        if not part.finished:
            code = _computed([sys.executable, "-m", "robustlit", *part.words])
            if code or not part.finished:
                print(f"{part.name} ended with {code}: the same command goes on here", file=sys.stderr)
                return code if code > 0 else 128 - code if code else 1
    return _write(report, chosen)


def _computed(command: list[str]) -> int:
    """Return the exit code of a command; it answers Ctrl-C itself, and is waited for."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _pair(word: str) -> tuple[str, Path]:
    name, sign, place = word.partition("=")
    if not sign or not place:
        raise UsageError(f"--take takes NAME=RUN, such as base=runs/standard, got {word!r}")
    return name, Path(place)


def _list(report: "Reproduction") -> int:  # type: ignore[name-defined]  # noqa: F821
    for figure, described in report.figures.items():
        parts = report.parts(figure)
        left = [part.name for part in parts if not part.finished]
        state = f"{len(left)} of {len(parts)} runs to compute: {', '.join(left)}" if left else "all runs are finished"
        print(f"{figure:>4}  {described['title']}: {state}")
    return 0


def _write(report: "Reproduction", figures: list[str]) -> int:  # type: ignore[name-defined]  # noqa: F821
    from robustlit.figures.stored import save_record

    for figure in figures:
        print(save_record(report.record(figure), report.folder / f"figure_{figure}.json"))
    return _redraw(report.folder, figures)


def _redraw(folder: Path, figures: list[str]) -> int:
    from robustlit.figures import save_figure
    from robustlit.figures.stored import draw_record, load_record, table_of

    wanted = [f"figure_{figure}.json" for figure in figures if figure != "all"]
    files = [folder / name for name in wanted] or sorted(folder.glob("figure_*.json"))
    if not files:
        raise UsageError(f"{folder} holds no figure_*.json: robustlit report FIGURE computes one there")
    for file in files:
        record = load_record(file)
        print("\n".join(["", record["title"], f"Claim: {record['claim']}", "", *table_of(record), ""]))
        for drawn in save_figure(draw_record(record), file.with_suffix("")):
            print(drawn)
    return 0
