"""The page in a browser: what it shows and draws, on the screen and on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pages import PROBE, body_of, data_of, judge, needs_a_browser, shown, with_a_script
from torch import Tensor, nn

from robustlit import Evaluation, evaluate
from robustlit.attacks import FGSM, PGD
from robustlit.comparison import compare, write_page
from robustlit.results import Check, Verdict
from robustlit.results.rows import rows_of
from robustlit.verdict import verdict

pytestmark = [pytest.mark.slow, needs_a_browser]

Make = Callable[..., Path]
L2_ALONE = {"nearest_l2": ("l2", ())}
CHOOSE = "const view = document.getElementById('view'); view.value = '{}'; view.dispatchEvent(new Event('change'));"
POINT = """
const slider = document.querySelectorAll('#charts figure')[1].querySelector('input');
slider.value = {}; slider.dispatchEvent(new Event('input'));
"""
# What is cut off or overlaps what follows once the page is laid out for a printer.
MEASURE = """
document.documentElement.dataset.theme = "dark";
window.dispatchEvent(new Event("beforeprint"));
const boxes = [...document.querySelectorAll("#caveats, .wide, #verdicts")];
const seen = (box) => [...box.querySelectorAll("*")].filter((e) => e.checkVisibility());
const inside = (box) => Math.max(0, ...seen(box).map((e) => e.getBoundingClientRect().bottom));
const grave = [...document.querySelectorAll("#caveats li, #verdicts details:has(.overstated) li")];
const found = {
  cut: boxes.filter((box) => inside(box) > box.getBoundingClientRect().bottom + 2).map((box) => box.id),
  wide: [...document.querySelectorAll(".wide table")].map((table) => table.getBoundingClientRect().width),
  folded: grave.filter((e) => !e.checkVisibility()).length,
  paper: getComputedStyle(document.documentElement).getPropertyValue("--paper"),
};
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
"""


@pytest.fixture
def body(tmp_path: Path) -> Callable[..., str]:
    """The visible part of a page in the browser, after a script of the test's; its console must stay empty."""

    def show(page: str, script: str = "") -> str:
        path = write_page(page, tmp_path / "page.html")
        if script:
            path.write_text(with_a_script(page, script))
        elements, console = shown(path)
        assert console == ""
        return body_of(elements)

    return show


def readouts(body: str) -> dict[str, list[str]]:
    """The legend: name of the run -> its accuracies at the rulers, L2 and L-inf."""
    legend = body.split('id="legend"')[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in legend.split("<tr>")[2:]]
    plain = [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in rows]
    return {row[0].split()[-1]: row[1:] for row in plain}


def plots(body: str) -> list[str]:
    """The charts, L2 and L-inf."""
    return [plot.split("</svg>")[0] for plot in body.split('class="plot"')[1:]]


def drawn(plot: str) -> list[tuple[str, bool]]:
    """The width of each line of a chart, and whether it has a band."""
    widths = re.findall(r'<path d="M[^"]*" fill="none" stroke="[^"]*" stroke-width="([^"]*)"', plot)
    bands = plot.count('Z" fill="')
    return [(width, bands == len(widths)) for width in widths]


def notes(body: str) -> str:
    """The notes before the table."""
    return body.split('id="caveats"')[1].split("</section>")[0]


def test_an_axis_that_no_attack_searched_has_only_bounds(make: Make, body: Callable[..., str]) -> None:
    page = compare([make("only", range(200), attacks=L2_ALONE)])
    assert "only: no attack searched L∞; over it the worst case is only an upper bound (≤)." in data_of(page)["caveats"]
    page_body = body(page)
    l2, linf = readouts(page_body)["only"]
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", l2)
    assert re.fullmatch(r"≤ [\d.]+ no attack in L∞", linf)
    over_l2, over_linf = plots(page_body)
    assert drawn(over_l2) == [("2", True)]
    assert drawn(over_linf) == [("1", False)]
    assert "1≤ only" in over_linf
    assert "≤" not in over_l2
    assert 'class="at"' not in over_linf
    l2, linf = readouts(body(page, CHOOSE.format(1)))["only"]  # the attack itself
    assert "≤" not in l2
    assert linf.endswith("searched L2")


def test_only_at_attacked_budgets_there_are_exact_accuracies(make: Make, body: Callable[..., str]) -> None:
    grid = make("grid", range(200), config={"eps": 0.2}, attacks={"pgd": ("linf", (0.1, 0.2, 0.3)), **L2_ALONE})
    one = make("one", range(200), attacks={"pgd": ("linf", (0.3,)), **L2_ALONE})
    many = make("many", range(200), attacks={"pgd": ("linf", (0.05, 0.1, 0.15, 0.25, 0.3)), **L2_ALONE})
    page = compare([grid, one, many])
    assert any(
        note.endswith("elsewhere: 0.1, 0.2, 0.3 (grid); 0.3 (one); 5 budgets up to 0.3 (many).")
        for note in data_of(page)["caveats"]
    )
    page_body = body(page)
    read = {name: linf for name, (_, linf) in readouts(page_body).items()}
    right = Evaluation.load(grid).worst_case(eps=0.2)
    assert read["grid"].startswith(f"{100 * float(right):.1f} [")  # the ruler starts at this budget
    assert re.fullmatch(r"≤ [\d.]+ attacked at 0.3", read["one"])
    assert re.fullmatch(r"≤ [\d.]+ 5 budgets to 0.3", read["many"])
    over_l2, over_linf = plots(page_body)
    assert drawn(over_l2) == [("2", True)] * 3
    assert drawn(over_linf) == [("1", False)] * 3
    assert over_linf.count('class="at"') == 3 + 1 + 5
    # In thousandths of the axis: 333 snaps to the budget 0.1, 350 lies between budgets.
    for value, bounds in ((333, {"one": True, "grid": False, "many": False}), (350, dict.fromkeys(read, True))):
        moved = readouts(body(page, POINT.format(value)))
        assert {name: linf.startswith("≤") for name, (_, linf) in moved.items()} == bounds


def test_hostile_runs_are_shown_as_text(hostile: list[Path], tmp_path: Path) -> None:
    elements, console = shown(write_page(compare(hostile), tmp_path / "page.html"))
    body = body_of(elements)
    assert console == ""
    assert "data-broken" not in elements
    assert '<img src="x"' not in body
    assert '<h1 id="title">Robustness of 2 runs</h1>' in body
    assert "&lt;/script&gt;&lt;img src=x onerror=" in body
    assert body.count('aria-sort="descending"') == 1
    assert body.count('class="plot"') == 2
    assert "None between the runs shown" not in body


def test_the_policy_stops_markup_that_slipped_in(hostile: list[Path], tmp_path: Path) -> None:
    slipped = compare(hostile).replace("<main>", f"<main>{PROBE}")
    elements, console = shown(write_page(slipped, tmp_path / "slipped.html"))
    assert "Content Security Policy" in console
    assert "data-broken" not in elements
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", slipped)
    assert "data-broken" in shown(write_page(bare, tmp_path / "bare.html"))[0]  # the probe works without the policy


class Rounded(nn.Sequential):
    """A network that rounds its input, so that it has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.round(x * 3) / 3)


def test_real_verdicts(make: Make, body: Callable[..., str], net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=5)}
    folders, verdicts = [], []
    for name, model in (("masked", Rounded(net)), ("plain", net)):
        evaluation = evaluate(model, (x, y), attacks, grid={"linf": [0.1]})
        verdicts.append(verdict(evaluation, model, (x, y), attacks, profile="full"))
        folders.append(make(name, config={"eps": 0.1}, evaluation=evaluation))
        verdicts[-1].save(folders[-1] / "evaluation")
    unjudged = make("unjudged", config={"eps": 0.1}, evaluation=Evaluation.load(folders[-1]))
    (unjudged / "checkpoints").mkdir()
    page = compare([*folders, unjudged])
    assert verdicts[0].status == "overstated"
    for run, found in zip(data_of(page)["runs"], verdicts, strict=False):
        stored = run["verdict"]
        assert (stored["status"], stored["counts"], stored["profile"]) == (found.status, found.counts, "full")
        assert stored["robust"] == [found.robust, 40]
        findings, rows = {check["numbers"]: check["finding"] for check in stored["checks"]}, rows_of(found.checks)
        assert findings == {row.numbers: row.first.finding for row in rows if row.first.status != "PASS"}
        assert len(findings) + len(stored["passed"]) == len(rows)
    page_body = body(page)
    for check in verdicts[0].failed:  # in full, below the table
        assert f"✕ {check.number} {check.name}" in page_body
        assert check.finding.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page_body
    assert re.search(r'<a href="#verdict-0"[^>]*><span class="badge overstated">✕ overstated</span>', page_body)
    assert re.search(r'<details id="verdict-0" open="">', page_body)
    assert re.search(r'<a href="#verdicts-none"[^>]*>none</a>', page_body)
    assert f"<code>robustlit evaluate {unjudged} --verdict</code>" in page_body


def test_a_failed_verdict_is_marked_and_does_not_lead(make: Make, body: Callable[..., str]) -> None:
    strengths = {"overstated": 0.3, "honest": 1.0, "undecided": 0.9, "weakest": 3.0}
    folders = [make(name, strength=strength, seed=k) for k, (name, strength) in enumerate(strengths.items())]
    for folder, status in zip(folders, ("FAIL", "PASS", "INCONCLUSIVE"), strict=False):
        judge(folder, status)
    page = compare(folders)
    shares = {run["name"]: run["worst"]["correct"] for run in data_of(page)["runs"]}
    assert max(shares, key=lambda name: shares[name]) == "overstated"
    page_body = body(page)
    table = page_body.split('id="runs"')[1].split("</table>")[0]
    order = re.findall(r'<th scope="row"><bdi class="name" title="([a-z]+)"', table)
    assert order[-1] == "overstated"
    assert shares[order[0]] >= shares[order[1]] >= shares[order[2]]
    assert table.count("✕ overstated</small>") == 1
    assert table.count("<strong") == 3  # the other worst cases
    assert [table.count(mark) for mark in ("✕ overstated</span>", "• believable", "? undecided")] == [1, 1, 1]
    assert "quick: 0 of 1 pass" in table
    assert "runs with an overstated figure come after the others" in page_body
    assert "1✕ overstated" in page_body  # beside its curve


def test_of_many_runs_a_failed_verdict_is_not_among_the_best(make: Make, body: Callable[..., str]) -> None:
    folders = [make(f"run{k}", strength=0.3 if k == 0 else 1.0, seed=k) for k in range(9)]
    judge(folders[0], "FAIL")
    charts = body(compare(folders)).split('id="charts"')[1]
    assert "1✕ run0<" not in charts
    assert all(f"{k + 1} run{k}<" in charts for k in range(1, 9))


def test_the_command_and_its_note(make: Make, body: Callable[..., str]) -> None:
    evaluated = make("new", command="robustlit evaluate runs/x '~sweep.attacks.bim'", seed=1)
    older = make("older", config={"ckpt_path": "runs/x"}, seed=2)
    quick = judge(make("quick", command="robustlit evaluate runs/x --verdict eps=0.3", seed=3))
    page_body = body(compare([evaluated, older, quick]))
    assert "<code>robustlit evaluate runs/x '~sweep.attacks.bim' --verdict</code>" in page_body
    assert "<code>robustlit evaluate runs/x --verdict</code> (the folder does not say how it was" in page_body
    assert "<code>robustlit evaluate runs/x eps=0.3 --verdict=full</code>" in page_body


def test_on_paper_nothing_is_cut_off(make: Make, tmp_path: Path) -> None:
    knowledge = ("adaptive", "greybox", "blackbox")
    folders = [make(f"a run of some name {k}", seed=k, knowledge=knowledge, config={"seed": k}) for k in range(14)]
    for k, folder in enumerate(folders):
        checks = [Check(n, f"check {n}", "FAIL" if k < 5 else "PASS", "a finding " * 12) for n in range(9)]
        Verdict(checks, "quick", 40, "linf", 0.3, 0, 10, 0.1).save(folder / "evaluation")
    for_paper = compare(folders).replace("@media print", "@media all").replace("@media screen", "@media not all")
    path = tmp_path / "page.html"
    path.write_text(with_a_script(for_paper, MEASURE))
    measured = re.search(r'<pre id="found">(.*?)</pre>', shown(path)[0])
    assert measured
    found = json.loads(measured[1])
    assert found["cut"] == []
    assert max(found["wide"]) <= 962
    assert found["folded"] == 0
    assert found["paper"].strip() == "#fff"


def test_many_notes_are_folded_and_counted_a_few_are_not(make: Make, body: Callable[..., str]) -> None:
    others = [make(f"other{k}", config={"eps": e, "data": {"_target_": "MNIST", "image_size": 28 + k}},
                   attacks={"pgd": ("linf", (e,))}) for k, e in enumerate((0.1, 0.2))]  # fmt: skip
    (others[1] / "evaluation" / "evaluation.json").unlink()
    page = compare([*others, make("grey", knowledge=("greybox",), seed=2), judge(make("bad", seed=1), "FAIL")])
    count = len(data_of(page)["caveats"])
    first, folded = notes(body(page)).split("<details>")
    assert first.count("<li>") == 6
    assert folded.count("<li>") == count - 6 > 0
    assert f"<summary>{count - 6} more note" in folded
    page = compare([make("a"), make("b", seed=1, config={"eps": 0.1})])
    section = notes(body(page))
    assert section.count("<li>") == len(data_of(page)["caveats"])
    assert "<details>" not in section
