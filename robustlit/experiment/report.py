"""Print the results of a run: a table on a terminal, else plain lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from robustlit.results.verdict import Verdict

_COLOURS = {"PASS": "green", "FAIL": "bold red"}


def print_report(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies of `results.json` with Wilson 95 % intervals: clean, each attack, the worst case."""
    console = console or Console()
    rows = [("clean", "", *_percent(results["clean"]), "")]
    for name, found in results.get("attacks", {}).items():
        rows.append((name, _budget(found), *_percent(found), f"{found['passes']:.0f}"))
    if worst := results.get("worst_case"):
        rows.append(("worst case", _budget(worst), *_percent(worst), ""))
    cut = "" if results.get("complete", True) else ", cut short"
    title = f"{results['name']}: {results['n']} test images{cut}"
    if console.is_terminal:
        right = [Column(header, justify="right") for header in ("accuracy", "95 %", "passes")]
        table = Table("attack", "budget", *right, title=escape(title))
        for name, *cells in rows:
            table.add_row(escape(name), *cells, end_section=name == "clean")
        console.print(table)
    else:
        _print_line(console, title)
        wide = max(len(name) for name, *_ in rows) + 2
        for name, budget, value, interval, passes in rows:
            end = f"{passes} passes" if passes else ""
            _print_line(console, f"{name:<{wide}}{budget:<18}{value:>9}  {interval}  {end}".rstrip())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    _print_line(console, f"{seconds} on {results['device']}")


def print_verdict(verdict: Verdict) -> None:
    """Print the checks of a verdict; those that failed say what to try next."""
    console = Console()
    counts = ", ".join(f"{count} {status}" for status, count in verdict.counts.items())
    title = f"verdict ({verdict.profile}, {verdict.norm} eps {verdict.eps:.4g}): {verdict.status}: {counts}"
    if console.is_terminal:
        table = Table("", "check", "", "finding", title=escape(title), caption=verdict.caution)
        for check in verdict.checks:
            status = f"[{_COLOURS.get(check.status, 'yellow')}]{check.status}[/]"
            table.add_row(str(check.number), check.name, status, escape(check.finding))
        console.print(table)
    else:
        lines = [f"{check.number:>2} {check.status:<13}{check.name}: {check.finding}" for check in verdict.checks]
        _print_line(console, "\n".join((title, *lines, verdict.caution)))


def print_found(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what a module's `results()` returned, a line for each entry."""
    for name, values in found.items():
        shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items() if v is not None]
        print(f"{name}: {', '.join(shown)}")


def _print_line(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)  # a name may hold brackets


def _budget(found: dict[str, Any]) -> str:
    if found["eps"] is not None:
        return f"{found['norm']} {found['eps']:.4g}"
    # A minimal attack: its median distance, beside the share of images for which it found nothing at all.
    return f"{found['norm']} any" if found["median"] is None else f"{found['norm']} median {found['median']:.4g}"


def _percent(found: dict[str, Any]) -> tuple[str, str]:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.2f} %", f"{100 * low:.2f} - {100 * high:.2f}"
