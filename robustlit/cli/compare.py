"""Lay runs side by side on one HTML page.

The page needs no network: a table that sorts, curves, what differs in their settings, the examples that only one of
the runs gets wrong. Folders that are no runs, have no results or are damaged are left out, with a line each.

examples:
  %(prog)s runs/pgd_adv_train runs/fgsm_rs
  %(prog)s runs/* --out all.html --intersect
  %(prog)s runs/* --table runs.csv          the table for other programs; runs.tex for LaTeX
"""

import argparse
import sys
from pathlib import Path

from robustlit.cli.parser import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders; runs/* takes all")
    parser.add_argument("--out", default="compare.html", metavar="FILE.html", help="the page (default compare.html)")
    parser.add_argument("--table", metavar="FILE", help="the table as well, as FILE.csv or FILE.tex; must be new")
    parser.add_argument("--intersect", action="store_true", help="compare on the test images that all runs share")


def run(arguments: argparse.Namespace) -> int:
    runs = [run for run in arguments.runs if Path(run).name != "multirun.yaml"]  # lies in runs/ after -m
    if not runs:
        raise UsageError("which runs? robustlit compare RUN RUN ... [--out FILE.html] [--intersect]")
    from robustlit.comparison import compared, write_page, write_table
    from robustlit.comparison.export import check_new
    from robustlit.comparison.page import render

    if arguments.table:
        check_new(arguments.table)
    without: list[str] = []
    values = compared(runs, intersect=arguments.intersect, left_out=without.append)
    page = render(values)
    for line in (*without, *values["caveats"]):
        print(line, file=sys.stderr)
    path, count = write_page(page, arguments.out), len(runs) - len(without)
    print(f"{count} run{'s' * (count > 1)} compared: {path} ({len(page) / 1e6:.1f} MB)")
    if arguments.table:
        print(f"table: {write_table(values, arguments.table)}")
    return 0
