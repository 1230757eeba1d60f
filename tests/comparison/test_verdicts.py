"""Verdicts on the page: those of real nets, at a glance and in full; a failed one does not win."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pages import body_of, data_of, needs_a_browser, shown
from torch import Tensor, nn

from robustlit import Evaluation, evaluate
from robustlit.attacks import FGSM, PGD
from robustlit.comparison import compare, write_page
from robustlit.results import Check, Verdict
from robustlit.verdict import verdict

Make = Callable[..., Path]


class Rounded(nn.Module):
    """Rounds its input, which has no gradient: attacks by gradients find nothing."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.round(x * 3) / 3)


@pytest.fixture
def judged(make: Make, net: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[list[Path], list[Verdict]]:
    """A plain net and one with masked gradients, attacked and judged as any run is, and a run without a verdict."""
    x, y = digits[0][:40], digits[1][:40]
    attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=5)}
    folders, verdicts = [], []
    for name, model in (("masked", Rounded(net)), ("plain", net)):
        evaluation = evaluate(model, (x, y), attacks, grid={"linf": [0.1]})
        found = verdict(evaluation, model, (x, y), attacks, profile="full")
        folders.append(make(name, config={"eps": 0.1}, evaluation=evaluation))
        found.save(folders[-1] / "evaluation")
        verdicts.append(found)
    unjudged = make("unjudged", config={"eps": 0.1}, evaluation=Evaluation.load(folders[-1]))
    (unjudged / "checkpoints").mkdir()
    return [*folders, unjudged], verdicts


@needs_a_browser
def test_real_verdicts_are_shown_with_what_failed_and_what_to_try(
    judged: tuple[list[Path], list[Verdict]], tmp_path: Path
) -> None:
    folders, verdicts = judged
    assert verdicts[0].status == "FAIL"
    page = compare(folders)
    values = data_of(page)
    for run, found in zip(values["runs"], verdicts, strict=False):
        assert (run["verdict"]["status"], run["verdict"]["counts"]) == (found.status, found.counts)
        assert run["verdict"]["profile"] == "full"
        told = {check["number"]: check["finding"] for check in run["verdict"]["checks"]}
        assert told == {check.number: check.finding for check in found.checks if check.status != "PASS"}
        assert len(told) + len(run["verdict"]["passed"]) == len(found.checks)
    assert any(said.startswith("masked: the verdict is FAIL (") for said in values["caveats"])
    elements, console = shown(write_page(page, tmp_path / "page.html"))
    body = body_of(elements)
    assert console == ""
    for check in verdicts[0].failed:  # in full, below the table
        assert f"✕ {check.number} {check.name}" in body
        assert check.finding.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in body
    assert re.search(r'<a href="#verdict-0"[^>]*><span class="badge fail">✕ FAIL</span>', body)
    assert re.search(r'<details id="verdict-0" open="">', body)
    assert re.search(r'<a href="#verdicts-none"[^>]*>none</a>', body)
    assert f"<code>robustlit evaluate {folders[2]} --verdict</code>" in body


@needs_a_browser
def test_a_failed_verdict_is_marked_and_does_not_lead(make: Make, tmp_path: Path) -> None:
    strengths = {"overstated": 0.3, "honest": 1.0, "undecided": 0.9, "weakest": 3.0}
    folders = [make(name, strength=strength, seed=k) for k, (name, strength) in enumerate(strengths.items())]
    statuses = {"overstated": "FAIL", "honest": "PASS", "undecided": "INCONCLUSIVE"}
    for folder in folders[:3]:
        check = Check(
            13, "gradient-free does not win", statuses[folder.name], "Square alone breaks 9: attack by WorstCase"
        )
        Verdict([check], "quick", 40, "linf", 0.3, 0, 10, 0.1).save(folder / "evaluation")
    page = compare(folders)
    shares = {run["name"]: run["worst"]["correct"] for run in data_of(page)["runs"]}
    assert max(shares, key=lambda name: shares[name]) == "overstated"
    body = body_of(shown(write_page(page, tmp_path / "page.html"))[0])
    table = body.split('id="runs"')[1].split("</table>")[0]
    order = re.findall(r'<th scope="row"><bdi class="name" title="([a-z]+)"', table)
    assert order[-1] == "overstated"
    assert shares[order[0]] >= shares[order[1]] >= shares[order[2]]
    assert table.count("✕ overstated") == 1
    assert table.count("<strong") == 3  # the other worst cases
    assert [table.count(mark) for mark in ("✕ FAIL", "✓ PASS", "? INCONCLUSIVE")] == [1, 1, 1]
    assert "quick: 0 of 1 pass" in table
    assert "runs whose verdict is FAIL come after the others" in body
    assert "1✕ overstated" in body  # beside its curve


def test_a_verdict_on_another_budget_is_said(make: Make) -> None:
    folder = make("a")
    Verdict([Check(1, "x", "PASS", "fine")], "quick", 5, "linf", 0.1, 0, 1, 0.1).save(folder / "evaluation")
    said = data_of(compare([folder]))["caveats"]
    assert "a: the verdict is on L∞ 0.1, the worst case is quoted at L∞ 0.3." in said
    assert data_of(compare([folder]))["runs"][0]["again"] is None


def test_a_verdict_on_another_table_is_not_shown_and_it_is_said(make: Make) -> None:
    a, b = make("a"), make("b", seed=1)
    found = Verdict([Check(1, "x", "PASS", "fine")], "quick", 5, "linf", 0.3, 0, 1, 0.1)
    found.of(Evaluation.load(a)).save(a / "evaluation")
    (b / "checkpoints").mkdir()
    found.of(Evaluation.load(a)).save(b / "evaluation")  # as where folders are copied over each other
    values = data_of(compare([a, b]))
    assert [run["verdict"] and run["verdict"]["status"] for run in values["runs"]] == ["PASS", None]
    assert [said for said in values["caveats"] if "verdict" in said] == [
        "b: verdict.json judged another table than the one here (of as many examples, with other results), so it is "
        f"not shown; judge it again: robustlit evaluate {b} --verdict."
    ]


def test_a_verdict_that_says_no_table_is_shown_and_that_is_said_once(make: Make) -> None:
    folders = [make(name, seed=k) for k, name in enumerate("ab")]
    for folder in folders:
        Verdict([Check(1, "x", "PASS", "fine")], "quick", 5, "linf", 0.3, 0, 1, 0.1).save(folder / "evaluation")
    values = data_of(compare(folders))
    assert [run["verdict"]["status"] for run in values["runs"]] == ["PASS", "PASS"]
    assert [said for said in values["caveats"] if "verdict" in said] == [
        "a, b: verdict.json does not say which table it judged, as it is of an older version; nothing ties it to the "
        "figures here."
    ]


def test_intersected_runs_keep_their_verdicts_and_a_table_that_is_gone_has_none(make: Make) -> None:
    a, b, gone = make("a"), make("b", range(30), seed=1), make("gone", seed=2)
    for folder in (a, b, gone):
        found = Verdict([Check(1, "x", "PASS", "fine")], "quick", 5, "linf", 0.3, 0, 1, 0.1)
        found.of(Evaluation.load(folder)).save(folder / "evaluation")
    (gone / "evaluation" / "examples.parquet").unlink()
    values = data_of(compare([a, b, gone], intersect=True))
    assert [run["verdict"] and run["verdict"]["status"] for run in values["runs"]] == ["PASS", "PASS", None]
    assert "verdicts are on its own examples." in values["caveats"][0]
    assert not any("judged" in said for said in values["caveats"])


def test_many_failed_verdicts_are_one_sentence(make: Make) -> None:
    folders = [make(f"run{k}", seed=k) for k in range(4)]
    for folder in folders:
        Verdict([Check(13, "x", "FAIL", "y")], "quick", 5, "linf", 0.3, 0, 1, 0.1).save(folder / "evaluation")
    said = [caveat for caveat in data_of(compare(folders))["caveats"] if "FAIL" in caveat]
    assert said == ["run0, run1, run2, run3: the verdicts are FAIL. Their worst cases are not to be believed."]
    said = [caveat for caveat in data_of(compare(folders[:2]))["caveats"] if "FAIL" in caveat]
    assert [caveat.split(":")[0] for caveat in said] == ["run0", "run1"]
    assert "(Square wins)" in said[0]


@needs_a_browser
def test_of_many_runs_a_failed_verdict_is_not_among_the_best(make: Make, tmp_path: Path) -> None:
    folders = [make(f"run{k}", strength=0.3 if k == 0 else 1.0, seed=k) for k in range(9)]
    Verdict([Check(13, "x", "FAIL", "y")], "quick", 5, "linf", 0.3, 0, 1, 0.1).save(folders[0] / "evaluation")
    plots = body_of(shown(write_page(compare(folders), tmp_path / "page.html"))[0]).split('id="charts"')[1]
    assert "1✕ run0<" not in plots
    assert all(f"{k + 1} run{k}<" in plots for k in range(1, 9))
