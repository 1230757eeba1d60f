"""Curves agree with the table and end where the figures' end; all parts of a page show the same worst case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import data_of, made_evaluation, read_off

from robustlit.checks import rounded_up
from robustlit.comparison import compare
from robustlit.comparison.curves import ruler, thinned
from robustlit.comparison.measures import unmasked
from robustlit.figures import attacked_to
from robustlit.figures.lines import Source, curve_line
from robustlit.figures.panel import Look
from robustlit.results import Evaluation

Make = Callable[..., Path]


def test_curves_agree_with_the_table(make: Make) -> None:
    folder = make("a", range(300), seed=3)
    values = data_of(compare([folder]))
    evaluation = Evaluation.load(folder)
    for axis in ("linf", "l2"):
        unit, end = values["axes"][axis]["unit"], values["axes"][axis]["end"]
        for k, view in enumerate(values["views"]):
            line = values["runs"][0]["curves"][axis][str(k)]
            attack = None if view["worst"] else view["name"]
            reach = evaluation.least_distances(attack, distance=axis)
            for at in np.linspace(0, end if line["to"] is None else line["to"], 50):
                seen = read_off(line["steps"], unit, 300, at)
                assert seen <= np.sum(reach > at + 1e-6)  # never above the true curve
                assert seen >= np.sum(reach > at + end / 200 + unit)
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
            drawn = curve_line(Source("", evaluation, attack, "adaptive", Look.number(0)), axis)
            last = sum(line["steps"][::2]) * unit
            robust = sum(line["steps"][1::2]) < 200
            assert drawn.goes_on == (line["to"] is None)
            assert (line["to"] if line["to"] and robust else last) == pytest.approx(drawn.values[-1, 0], abs=0.02)
            ends.append(line["to"])
            if axis == "linf" and view["worst"]:  # nearest_l2 went farther in L-inf than any attack searched
                assert evaluation.least_distances(distance=axis)[np.isfinite(evaluation.least_distances())].max() > 0.5
                assert last <= 0.4 + unit
    assert None in ends
    assert 0.4 in ends


@pytest.mark.parametrize("knowledge", [("adaptive", "blackbox"), ("greybox", "adaptive", "blackbox"), ("greybox",)])
def test_all_parts_of_a_page_show_the_same_worst_case(make: Make, knowledge: tuple[str, ...]) -> None:
    folder = make("a", range(200), knowledge=knowledge, seed=6)
    values = data_of(compare([folder]))
    run, evaluation = values["runs"][0], Evaluation.load(folder)
    informed = "adaptive" if "adaptive" in knowledge else "greybox"
    worst = evaluation.worst_case(eps=0.3, knowledge=informed)
    assert (run["worst"]["correct"], run["worst"]["n"], run["worst"]["knowledge"]) == (worst.correct, 200, informed)
    if len(knowledge) > 1:
        alone = int((evaluation.least_distances(distance="linf") > 0.3 + 1e-6).sum())
        assert worst.correct < alone  # the others broke examples that the adaptive attacks missed
        assert f"pgd-{knowledge[-1]}" in run["worst"]["rests_on"]
    (view,) = [k for k, v in enumerate(values["views"]) if v["worst"] and v["knowledge"] == informed]
    line = run["curves"]["linf"][str(view)]
    assert read_off(line["steps"], values["axes"]["linf"]["unit"], 200, 0.3) == worst.correct
    wrong = unmasked(run["mistakes"]["worst"]["wrong"], 200)
    assert len(run["mistakes"]["worst"]["as"]) == wrong.sum()
    reach = np.min([evaluation.least_distances(distance="linf", knowledge=k) for k in knowledge], axis=0)
    np.testing.assert_array_equal(wrong, reach <= 0.3 + 1e-6)


def test_a_curve_lists_where_it_is_exact(make: Make) -> None:
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


def test_a_curve_is_exact_at_every_attacked_budget(make: Make, labels: np.ndarray) -> None:
    whole = made_evaluation(np.arange(100), labels[:100], attacks={"pgd": ("linf", (0.123456, 0.3))}, seed=9)
    table = whole.table.copy()
    found = table["success"] & table["clean"]
    side = np.where(table["linf"] <= 0.123456, -5e-6, 5e-6)  # closer together than the steps of the page
    table.loc[found, "linf"] = (0.123456 + side)[found]
    evaluation = Evaluation(table, whole.meta)
    values = data_of(compare([make("a", evaluation=evaluation)]))
    line, unit = values["runs"][0]["curves"]["linf"]["0"], values["axes"]["linf"]["unit"]
    left = read_off(line["steps"], unit, 100, 0.123456)
    assert left == evaluation.worst_case(eps=0.123456).correct
    assert left > evaluation.worst_case(eps=0.3).correct + 5


def test_attacks_that_do_not_count_in_the_worst_case_searched_nothing(make: Make, labels: np.ndarray) -> None:
    whole = made_evaluation(np.arange(40), labels[:40], knowledge=("greybox", "blackbox"))
    kept = ~((whole.table["knowledge"] == "greybox") & (whole.table["attack"] == "nearest_l2"))
    values = data_of(compare([make("c", evaluation=Evaluation(whole.table[kept], whole.meta))]))
    views = [(view["knowledge"], k) for k, view in enumerate(values["views"]) if view["worst"]]
    at = {knowledge: values["runs"][0]["curves"]["l2"][str(k)]["at"] for knowledge, k in views}
    assert at == {"greybox": [], "blackbox": None}
    assert "c: no attack searched L2; over it the worst case is only an upper bound (≤)." in values["caveats"]


def test_a_curve_stays_small_and_exact_at_the_budgets() -> None:
    draws = np.random.default_rng(0)
    reach = np.where(draws.random(5000) < 0.1, np.inf, draws.uniform(0, 3, 5000))
    steps = thinned(reach, ruler(3), 3.0, budgets=(8 / 255, 0.5))
    assert len(steps) <= 2 * 204
    assert sum(steps[1::2]) == np.isfinite(reach).sum()
    assert thinned(np.array([np.inf, np.inf]), 1e-4, 1.0) == []
    assert thinned(np.zeros(3), 1e-4, 0.0) == [0, 3]


@pytest.mark.parametrize("end", [8 / 255, 0.06, 0.4, 1.0, 10.0])
def test_a_curve_is_exact_at_any_budget_on_any_axis(end: float) -> None:
    draws = np.random.default_rng(1)
    for budget in (1 / 255, 2 / 255, 6 / 255, 8 / 255, 19 / 255, 0.03, 0.05, 0.3):
        # Distances of float32 attacks: at the budget up to rounding, just beyond it, and elsewhere.
        at = np.float32(budget) + draws.uniform(-8e-7, 8e-7, 200)
        reach = np.concatenate([at, budget + draws.uniform(1.1e-6, 1e-4, 200), draws.uniform(0, end, 200)])
        steps = thinned(reach, ruler(end), end, budgets=[rounded_up(budget, "linf")])
        assert read_off(steps, ruler(end), 600, budget) == np.sum(reach > budget + 1e-6)
