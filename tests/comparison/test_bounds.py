"""What nobody attacked is an upper bound wherever the page says or draws it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import body_of, data_of, needs_a_browser, shown, with_a_script

from robustlit.comparison import compare, write_page
from robustlit.results import Evaluation

Make = Callable[..., Path]
L2_ALONE = {"nearest_l2": ("l2", ())}
CHOOSE = "const view = document.getElementById('view'); view.value = '{}'; view.dispatchEvent(new Event('change'));"
POINT = """
const slider = document.querySelectorAll('#charts figure')[1].querySelector('input');
slider.value = {}; slider.dispatchEvent(new Event('input'));
"""


def readouts(elements: str) -> dict[str, list[str]]:
    """The legend: name of the run -> what is read off, L2 and L-inf."""
    legend = body_of(elements).split('id="legend"')[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in legend.split("<tr>")[2:]]
    plain = [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in rows]
    return {row[0].split()[-1]: row[1:] for row in plain}


def plots(elements: str) -> list[str]:
    """The charts, L2 and L-inf."""
    return [plot.split("</svg>")[0] for plot in body_of(elements).split('class="plot"')[1:]]


def drawn(plot: str) -> list[tuple[str, bool]]:
    """The width of each line of a chart, and whether it has a band."""
    widths = re.findall(r'<path d="M[^"]*" fill="none" stroke="[^"]*" stroke-width="([^"]*)"', plot)
    bands = plot.count('Z" fill="')
    return [(width, bands == len(widths)) for width in widths]


@needs_a_browser
def test_an_axis_that_no_attack_searched_has_bounds_alone(make: Make, tmp_path: Path) -> None:
    page = compare([make("only", range(200), attacks=L2_ALONE)])
    assert "only: no attack searched L∞; over it the worst case is only an upper bound (≤)." in data_of(page)["caveats"]
    elements, console = shown(write_page(page, tmp_path / "page.html"))
    assert console == ""
    l2, linf = readouts(elements)["only"]
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", l2)
    assert re.fullmatch(r"≤ [\d.]+ no attack in L∞", linf)
    over_l2, over_linf = plots(elements)
    assert drawn(over_l2) == [("2", True)]
    assert drawn(over_linf) == [("1", False)]
    assert "1≤ only" in over_linf
    assert "≤" not in over_l2
    assert 'class="at"' not in over_linf
    chosen = tmp_path / "chosen.html"
    chosen.write_text(with_a_script(page, CHOOSE.format(1)))  # the attack itself
    l2, linf = readouts(shown(chosen)[0])["only"]
    assert "≤" not in l2
    assert linf.endswith("searched L2")


@needs_a_browser
def test_between_budgets_there_are_bounds_and_at_them_figures(make: Make, tmp_path: Path) -> None:
    grid = make("grid", range(200), config={"eps": 0.2}, attacks={"pgd": ("linf", (0.1, 0.2, 0.3)), **L2_ALONE})
    one = make("one", range(200), attacks={"pgd": ("linf", (0.3,)), **L2_ALONE})
    many = make("many", range(200), attacks={"pgd": ("linf", (0.05, 0.1, 0.15, 0.25, 0.3)), **L2_ALONE})
    page = compare([grid, one, many])
    assert any(
        said.endswith("elsewhere: 0.1, 0.2, 0.3 (grid); 0.3 (one); 5 budgets up to 0.3 (many).")
        for said in data_of(page)["caveats"]
    )
    elements = shown(write_page(page, tmp_path / "page.html"))[0]
    read = {name: linf for name, (_, linf) in readouts(elements).items()}
    right = Evaluation.load(grid).worst_case(eps=0.2)
    assert read["grid"].startswith(f"{100 * float(right):.1f} [")  # the budget that the ruler begins at
    assert re.fullmatch(r"≤ [\d.]+ attacked at 0.3", read["one"])
    assert re.fullmatch(r"≤ [\d.]+ 5 budgets to 0.3", read["many"])
    over_l2, over_linf = plots(elements)
    assert drawn(over_l2) == [("2", True)] * 3
    assert drawn(over_linf) == [("1", False)] * 3
    assert over_linf.count('class="at"') == 3 + 1 + 5
    # The slider's thousandths of the axis catch at a budget: 0.1 of 0.3 lies between two.
    for value, bounds in ((333, {"one": True, "grid": False, "many": False}), (350, dict.fromkeys(read, True))):
        moved = tmp_path / f"moved{value}.html"
        moved.write_text(with_a_script(page, POINT.format(value)))
        assert {name: linf.startswith("≤") for name, (_, linf) in readouts(shown(moved)[0]).items()} == bounds


@pytest.mark.parametrize("order", [("grid", "one"), ("one", "grid")])
def test_the_table_quotes_attacked_budgets_alone(make: Make, order: tuple[str, str]) -> None:
    attacks = {"grid": {"pgd": ("linf", (0.1, 0.2, 0.3))}, "one": {"pgd": ("linf", (0.3,))}}
    values = data_of(compare([make(name, config={"eps": 0.2}, attacks=attacks[name]) for name in order]))
    worst = {run["name"]: run["worst"] for run in values["runs"]}
    assert worst["one"] is None
    assert worst["grid"]["n"] == 40
    assert {run["name"]: run["attacks"][str(len(values["views"]) - 1)]["eps"] for run in values["runs"]} == {
        "grid": 0.2,
        "one": 0.3,
    }
