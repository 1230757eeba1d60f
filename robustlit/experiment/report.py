"""The table that ends a run, on a terminal or as plain lines."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustlit.results.verdict import Verdict


def print_report(results: dict[str, Any], console: Console | None = None) -> None:
    """Prints the accuracies of `results.json` with their Wilson 95 % intervals: clean, each attack, the worst case.

    Args:
        results: as written to results.json.
        console: where to; None means standard output.
    """
    console = console or Console()
    rows: list[tuple[str, str, dict[str, Any], str]] = [("clean", "", results["clean"], "")]
    for name, found in results.get("attacks", {}).items():
        rows.append((name, _budget(found), found, f"{found['passes']:.0f}"))
    if worst := results.get("worst_case"):
        rows.append(("worst case", f"{worst['norm']} {worst['eps']:.4g}", worst, ""))
    cut = "" if results.get("complete", True) else ", cut short"
    title = f"{results['name']}: {results['n']} test images{cut}"
    if console.is_terminal:
        table = Table(title=escape(title))
        for header, justify in (("attack", "left"), ("budget", "left"), ("accuracy", "right"), ("95 %", "right")):
            table.add_column(header, justify=justify)  # type: ignore[arg-type]
        table.add_column("passes", justify="right")
        for name, budget, found, passes in rows:
            table.add_row(escape(name), budget, *_percent(found), passes, end_section=name == "clean")
        console.print(table)
    else:
        _print_line(console, title)
        wide = max(len(name) for name, *_ in rows) + 2
        for name, budget, found, passes in rows:
            value, interval = _percent(found)
            end = f"{passes} passes" if passes else ""
            _print_line(console, f"{name:<{wide}}{budget:<18}{value:>9}  {interval}  {end}".rstrip())
    parts = [f"{name} {value:.0f} s" for name, value in results["seconds"].items()]
    _print_line(console, f"{', '.join(parts)} on {results['device']}")


def print_verdict(verdict: Verdict, console: Console | None = None) -> None:
    """Prints the checks of a verdict; those that failed say what to try next."""
    console = console or Console()
    counts = ", ".join(f"{count} {status}" for status, count in verdict.counts.items())
    title = f"verdict ({verdict.profile}, {verdict.norm} eps {verdict.eps:.4g}): {verdict.status}: {counts}"
    if console.is_terminal:
        table = Table(title=escape(title), caption=verdict.caution)
        for header in ("", "check", "", "finding"):
            table.add_column(header)
        colours = {"PASS": "green", "FAIL": "bold red"}
        for check in verdict.checks:
            colour = colours.get(check.status, "yellow")
            table.add_row(str(check.number), check.name, f"[{colour}]{check.status}[/]", escape(check.finding))
        console.print(table)
    else:
        _print_line(console, title)
        for check in verdict.checks:
            _print_line(console, f"{check.number:>2} {check.status:<13}{check.name}: {check.finding}")
        _print_line(console, verdict.caution)


def _print_line(console: Console, text: str) -> None:
    # A name may hold brackets, which are no markup here.
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _budget(found: dict[str, Any]) -> str:
    if found["eps"] is not None:
        return f"{found['norm']} {found['eps']:.4g}"
    # A minimal attack: how far it had to go, beside the share of images for which it found nothing at all.
    return f"{found['norm']} {'median ' + format(found['median'], '.4g') if found['median'] is not None else 'any'}"


def _percent(found: dict[str, Any]) -> tuple[str, str]:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.2f} %", f"{100 * low:.2f} - {100 * high:.2f}"
