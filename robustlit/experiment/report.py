"""Print the results of a run: a table on a terminal, else plain lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from robustlit.checks import budget_text
from robustlit.results.rows import rows_of
from robustlit.results.text import part_of_all
from robustlit.results.verdict import FAIL, INCONCLUSIVE, OVERSTATED, PASS, Verdict

_COLOURS = {PASS: "green", FAIL: "bold red", INCONCLUSIVE: "yellow"}


def print_report(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies of `results.json` with Wilson 95 % intervals: clean, each attack, the worst case.

    Where a few of the attacks ran on all images, theirs come last.
    """
    console = console or Console()
    rows = _rows(results)
    if everything := results.get("all_images"):
        rows += [(f"{name}, {part_of_all(everything)}", *cells) for name, *cells in _rows(everything)]
    cut = "" if results.get("complete", True) else ", cut short"
    n, of, copies = results["n"], results.get("of"), results.get("copies")
    part = f" of {of} test images, chosen class by class" if of and n < of else " test images"
    cut += f", {copies} copies of others left out" if copies else ""
    title = f"{results['name']}: {n}{part}{cut}"
    if console.is_terminal:
        right = [Column(header, justify="right") for header in ("accuracy", "95 %", "passes", "seconds")]
        table = Table("attack", "budget", *right, title=escape(title), caption="seconds: of all budgets together")
        for name, *cells in rows:
            table.add_row(escape(name), *cells, end_section=name == "clean")
        console.print(table)
    else:
        _print_line(console, title)
        wide = max(len(name) for name, *_ in rows) + 2
        for name, budget, value, interval, passes, seconds in rows:
            end = f"{passes} passes" if passes else ""
            end += f"  {seconds} s, all budgets" if seconds else ""
            _print_line(console, f"{name:<{wide}}{budget:<18}{value:>9}  {interval}  {end}".rstrip())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    _print_line(console, f"{seconds} on {results['device']}")


def _rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of the report for each figure: name, budget, accuracy, interval, passes, seconds of all budgets."""
    spent = results.get("attack_seconds", {})
    rows: list[tuple[str, ...]] = [("clean", "", *_percent(results["clean"]), "", "")]
    for name, found in results.get("attacks", {}).items():
        rows.append((name, _budget(found), *_percent(found), *_cost(found, spent.get(name))))
    if worst := results.get("worst_case"):
        rows.append(("worst case", _budget(worst), *_percent(worst), "", ""))
    if certified := results.get("certified"):
        for name, found in certified["certificates"].items():
            rows.append((f"certified by {name}", _budget(certified), *_percent(found), *_cost(found, spent.get(name))))
    return rows


def print_verdict(verdict: Verdict) -> None:
    """Print whether the figure is believable, then the checks; those that failed say what to try next."""
    console = Console()
    counts = ", ".join(f"{count} {status}" for status, count in verdict.counts.items())
    budget = f"{verdict.profile}, {verdict.norm} eps {budget_text(verdict.eps)}"
    title = f"{verdict.title} ({budget}): {counts}"
    rows = rows_of(verdict.checks)
    if console.is_terminal:
        style = "bold red" if verdict.status == OVERSTATED else "bold"
        table = Table("", "check", "", "finding", title=escape(title), title_style=style, caption=verdict.caution)
        # Green beside 0 % would read as a robust net.
        colours = {**_COLOURS, PASS: "default"} if verdict.none_robust else _COLOURS
        for row in rows:
            status = f"[{colours[row.first.status]}]{row.first.status}[/]"
            table.add_row(row.numbers, row.name, status, escape(row.first.finding))
        console.print(table)
    else:
        wide = max(2, *(len(row.numbers) for row in rows))
        lines = [f"{row.numbers:>{wide}} {row.first.status:<13}{row.name}: {row.first.finding}" for row in rows]
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
        return f"{found['norm']} {budget_text(found['eps'])}"
    # A minimal attack: its median distance, beside the share of images for which it found nothing at all.
    return f"{found['norm']} any" if found["median"] is None else f"{found['norm']} median {found['median']:.4g}"


def _cost(found: dict[str, Any], seconds: float | None) -> tuple[str, str]:
    return f"{found['passes']:.0f}", "" if seconds is None else f"{seconds:.1f}"


def _percent(found: dict[str, Any]) -> tuple[str, str]:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.2f} %", f"{100 * low:.2f} - {100 * high:.2f}"
