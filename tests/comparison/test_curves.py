"""Curves: read off as the table has them, ending where the figures' end; one worst case wherever the page tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import bits, data_of, read_off

from robustlit.comparison import compare
from robustlit.figures import attacked_to
from robustlit.figures.curves import curve_line
from robustlit.figures.panel import Look
from robustlit.results import Evaluation

Make = Callable[..., Path]


def test_curves_are_read_off_as_the_table_has_them(make: Make) -> None:
    folder = make("a", range(300), seed=3)
    values = data_of(compare([folder]))
    evaluation = Evaluation.load(folder)
    for axis, budget in (("linf", 0.3), ("l2", None)):
        unit, end = values["axes"][axis]["unit"], values["axes"][axis]["end"]
        for k, view in enumerate(values["views"]):
            line = values["runs"][0]["curves"][axis][str(k)]
            attack = None if view["worst"] else view["name"]
            reach = evaluation.least_distances(attack, distance=axis)
            for at in np.linspace(0, end if line["to"] is None else line["to"], 50):
                seen = read_off(line["steps"], unit, 300, at)
                assert seen <= np.sum(reach > at + 1e-6)  # never flatters
                assert seen >= np.sum(reach > at + end / 200 + unit)
            if budget:
                assert read_off(line["steps"], unit, 300, budget) == np.sum(reach > budget + 1e-6)
            assert read_off(line["steps"], unit, 300, 0) == evaluation.clean_accuracy.correct


def test_curves_end_where_the_figures_end(make: Make) -> None:
    folder = make("a", range(200), seed=4)
    values = data_of(compare([folder]))
    evaluation = Evaluation.load(folder)
    ends = []
    for axis in ("linf", "l2"):
        unit = values["axes"][axis]["unit"]
        for k, view in enumerate(values["views"]):
            line = values["runs"][0]["curves"][axis][str(k)]
            attack = None if view["worst"] else view["name"]
            to = attacked_to(evaluation, attack, distance=axis)
            assert line["to"] == (None if np.isinf(to) else pytest.approx(to, abs=1e-6))
            drawn = curve_line(evaluation, attack, "", axis, "adaptive", Look.number(0))
            last = sum(line["steps"][::2]) * unit
            stands = sum(line["steps"][1::2]) < 200
            assert drawn.goes_on == (line["to"] is None)
            assert (line["to"] if line["to"] and stands else last) == pytest.approx(drawn.x[-1], abs=0.02)
            ends.append(line["to"])
            if axis == "linf" and view["worst"]:  # nearest_l2 went farther in L-inf than anybody looked there
                assert evaluation.least_distances(distance=axis)[np.isfinite(evaluation.least_distances())].max() > 0.5
                assert last <= 0.4 + unit
    assert None in ends
    assert 0.4 in ends


@pytest.mark.parametrize("knowledge", [("adaptive", "blackbox"), ("greybox", "adaptive", "blackbox"), ("greybox",)])
def test_the_page_tells_one_worst_case(make: Make, labels: np.ndarray, knowledge: tuple[str, ...]) -> None:
    folder = make("a", range(200), knowledge=knowledge, seed=6)
    values = data_of(compare([folder]))
    run, evaluation = values["runs"][0], Evaluation.load(folder)
    informed = "adaptive" if "adaptive" in knowledge else "greybox"
    worst = evaluation.worst_case(eps=0.3, knowledge=informed)
    assert (run["worst"]["correct"], run["worst"]["n"], run["worst"]["knowledge"]) == (worst.correct, 200, informed)
    if len(knowledge) > 1:
        alone = int((evaluation.least_distances(distance="linf") > 0.3 + 1e-6).sum())
        assert worst.correct < alone  # others broke what the adaptive ones missed
        assert f"pgd-{knowledge[-1]}" in run["worst"]["rests_on"]
    (view,) = [k for k, v in enumerate(values["views"]) if v["worst"] and v["knowledge"] == informed]
    line = run["curves"]["linf"][str(view)]
    assert read_off(line["steps"], values["axes"]["linf"]["unit"], 200, 0.3) == worst.correct
    wrong = bits(run["mistakes"]["worst"]["who"], 200)
    assert len(wrong) - wrong.sum() == worst.correct
    assert len(run["mistakes"]["worst"]["as"]) == wrong.sum()
    reach = np.min([evaluation.least_distances(distance="linf", knowledge=k) for k in knowledge], axis=0)
    for of_class in range(10):
        mine = labels[:200] == of_class
        assert wrong[mine].sum() == np.sum(reach[mine] <= 0.3 + 1e-6)


def test_a_curve_says_where_it_is_exact(make: Make, made: Callable[..., Evaluation], labels: np.ndarray) -> None:
    budgets = {"pgd": ("linf", (0.05, 0.123456, 0.3)), "fgsm": ("linf", (0.2,)), "nearest_l2": ("l2", ())}
    folder = make("a", range(300), attacks=budgets, seed=7)
    only = make("only", range(300), attacks={"nearest_l2": ("l2", ())}, seed=8)
    values = data_of(compare([folder, only]))
    where = {name: run["curves"] for name, run in zip(("a", "only"), values["runs"], strict=True)}
    number = {view["name"]: str(k) for k, view in enumerate(values["views"])}
    expected = {
        "a": {
            "linf": {
                "worst case": [0.05, 0.123456, 0.2, 0.3], "pgd": [0.05, 0.123456, 0.3], "fgsm": [0.2], "nearest_l2": [],
            },
            "l2": {"worst case": None, "pgd": [], "fgsm": [], "nearest_l2": None},
        },
        "only": {"linf": {"worst case": [], "nearest_l2": []}, "l2": {"worst case": None, "nearest_l2": None}},
    }  # fmt: skip
    for run, axes in expected.items():
        for axis, views in axes.items():
            assert {name: where[run][axis][number[name]]["at"] for name in views} == views
    evaluation, unit = Evaluation.load(folder), values["axes"]["linf"]["unit"]
    for name, budgets_of in expected["a"]["linf"].items():
        attack = None if name == "worst case" else name
        reach = evaluation.least_distances(attack, distance="linf")
        for at in budgets_of or []:
            assert read_off(where["a"]["linf"][number[name]]["steps"], unit, 300, at) == np.sum(reach > at + 1e-6)


def test_a_curve_is_exact_at_an_attacked_budget_that_nobody_quotes(
    make: Make, made: Callable[..., Evaluation], labels: np.ndarray
) -> None:
    whole = made(np.arange(100), labels[:100], attacks={"pgd": ("linf", (0.123456, 0.3))}, seed=9)
    table = whole.table.copy()
    found = table["success"] & table["clean"]
    side = np.where(table["linf"] <= 0.123456, -5e-6, 5e-6)  # too near to each other for the steps of the page
    table.loc[found, "linf"] = (0.123456 + side)[found]
    evaluation = Evaluation(table, whole.meta)
    values = data_of(compare([make("a", evaluation=evaluation)]))
    line, unit = values["runs"][0]["curves"]["linf"]["0"], values["axes"]["linf"]["unit"]
    left = read_off(line["steps"], unit, 100, 0.123456)
    assert left == evaluation.worst_case(eps=0.123456).correct
    assert left > evaluation.worst_case(eps=0.3).correct + 5


def test_an_attacker_whose_witnesses_do_not_count_searched_nothing(
    make: Make, made: Callable[..., Evaluation], labels: np.ndarray
) -> None:
    whole = made(np.arange(40), labels[:40], knowledge=("greybox", "blackbox"))
    kept = ~((whole.table["knowledge"] == "greybox") & (whole.table["attack"] == "nearest_l2"))
    values = data_of(compare([make("c", evaluation=Evaluation(whole.table[kept], whole.meta))]))
    views = [(view["knowledge"], k) for k, view in enumerate(values["views"]) if view["worst"]]
    at = {knowledge: values["runs"][0]["curves"]["l2"][str(k)]["at"] for knowledge, k in views}
    assert at == {"greybox": [], "blackbox": None}
    assert "c: no attack searched L2; over it the worst case is only an upper bound (≤)." in values["caveats"]
