"""Figures of one evaluation: lines, names, notes and titles, the axes of the report, and the table of curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from parts import check_apart, curves_in, texts

from robustlit.figures import curves_csv, curves_figure, distance_grid, knob_settings, save_figure
from robustlit.figures.panel import Look, spread
from robustlit.results import Accuracy, Evaluation, EvaluationError

Make = Callable[..., Evaluation]


def many(table: Make, attacks: int, n: int = 30, apart: float = 0.02, meta: dict[str, Any] | None = None) -> Evaluation:
    """Attacks named attack0, attack1, ... at budget 0.5 that break most of n examples."""
    draws = np.random.default_rng(1)
    rows = [
        (k, f"attack{a}", 0.5, float(reach) if reach < 0.45 else None)
        for a in range(attacks)
        for k, reach in enumerate(draws.uniform(0, 0.5 + apart * a, n))
    ]
    return table(rows, meta=meta)


def notes_of(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def title_of(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


# Lines and their names


@pytest.mark.parametrize(("attacks", "apart"), [(1, 0.02), (3, 0.02), (9, 0.02), (9, 0.0), (30, 0.01)])
def test_every_attack_is_named_beside_the_axes_inside_the_picture(table: Make, attacks: int, apart: float) -> None:
    evaluation = many(table, attacks, apart=apart)
    figure = curves_figure(evaluation, "linf" if attacks == 3 else "l2")
    found = texts(figure)
    boxes = [found[name].get_window_extent() for name in evaluation.attacks]
    assert figure.axes[0].get_window_extent().x1 < min(box.x0 for box in boxes)
    check_apart(boxes, figure)


def test_the_lines_are_the_curves(table: Make) -> None:
    evaluation = many(table, 3)
    drawn = curves_in(curves_figure(evaluation, "linf"))
    lines = [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in drawn]
    for attack in evaluation.attacks:
        curve = evaluation.curve(attack, distance="linf")
        x, y = list(curve["distance"]), list(100 * curve["accuracy"])
        assert ((*x, 0.5), (*y, y[-1])) in lines  # attacked up to 0.5, farther than the last example that broke
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 3


def test_only_steps_too_small_to_see_are_left_out(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.5, 0.0001 * (k + 1) if k < 3000 else None) for k in range(4000)])
    (line,) = curves_in(curves_figure(evaluation, "linf"))
    curve = evaluation.curve("pgd", distance="linf")
    drawn = np.interp(curve["distance"], line.get_xdata(), line.get_ydata())
    assert np.abs(drawn - 100 * curve["accuracy"]).max() < 0.25
    assert len(line.get_xdata()) < 500


def test_thirty_five_lines_look_different() -> None:
    assert len({Look.number(k) for k in range(35)}) == 35
    assert len({(look.colour, look.marker) for look in (Look.number(k, "-") for k in range(35))}) == 35


def test_the_line_of_a_budget_attack_ends_with_a_dot_at_its_largest_budget(table: Make) -> None:
    evaluation = table([(0, "pgd", 0.1, None), (0, "pgd", 0.3, None), (1, "pgd", 0.1, 0.05), (1, "pgd", 0.3, 0.05)])
    axes = curves_figure(evaluation, "linf").axes[0]
    (end,) = (line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 1)
    assert (end.get_xdata()[0], end.get_ydata()[0]) == (0.3, 50)
    in_data = [line for line in axes.get_lines() if line.get_transform() == axes.transData]
    assert max(max(line.get_xdata()) for line in in_data) == 0.3


def test_the_line_of_a_minimal_attack_goes_on(table: Make) -> None:
    evaluation = table([(0, "deepfool", float("nan"), 0.2), (1, "deepfool", 0.7, None)], eps=float("nan"))
    axes = curves_figure(evaluation, "linf").axes[0]
    tails = [line for line in axes.get_lines() if list(line.get_ydata()) == [50, 50] and line.get_linewidth() < 1]
    assert [line.get_xdata()[1] for line in tails] == [axes.get_xlim()[1]]


def test_a_model_that_misclassifies_everything_is_a_visible_point(table: Make) -> None:
    axes = curves_figure(table([(k, "pgd", 0.3, 0.0) for k in range(3)])).axes[0]
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [(0, 0)]
    low, high = axes.get_xlim()
    assert low <= 0 < high


# Bounds


@pytest.mark.parametrize(("distance", "wide", "bands"), [("linf", 0, 1), ("l2", 1, 3)])
def test_lines_are_thin_where_they_are_upper_bounds(mixed: Evaluation, distance: str, wide: int, bands: int) -> None:
    figure = curves_figure(mixed, distance)
    assert [line.get_linewidth() > 1.5 for line in curves_in(figure)].count(True) == wide
    assert len([c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]) == bands


def test_attacked_budgets_have_dots_and_bars(mixed: Evaluation) -> None:
    axes = curves_figure(mixed, "linf").axes[0]
    dots = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_linestyle() == "None"]
    in_data = [(list(d.get_xdata()), list(d.get_ydata())) for d in dots if d.get_transform() == axes.transData]
    assert in_data == [([0.1, 0.3], [75, 25]), ([0.2], [75])]
    bars = [list(map(tuple, s)) for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    low, high = Accuracy(1, 4).interval
    assert any(np.allclose(bar, [(0.3, 100 * low), (0.3, 100 * high)]) for bar in bars)


@pytest.mark.parametrize(
    ("distance", "attack", "expected"),
    [
        ("linf", None, "Between budgets a line is an upper bound. nearest_l2 searched L2: over L∞ its line is"),
        ("l2", None, "pgd, fgsm searched L∞: over L2 their lines are upper bounds. Bands: Wilson 95 %."),
        ("linf", "nearest_l2", "nearest_l2 searched L2: over L∞ its line is an upper bound. Bands: Wilson 95 %."),
    ],
)
def test_notes_name_the_upper_bounds(mixed: Evaluation, distance: str, attack: str | None, expected: str) -> None:
    if attack is not None:
        mixed = Evaluation(mixed.to_frame().query("attack == @attack").reset_index(drop=True))
    notes = notes_of(curves_figure(mixed, distance))
    assert expected in notes
    assert ("Between budgets" in notes) == ("Between budgets" in expected)


@pytest.mark.parametrize(("distance", "style"), [("l2", "curve"), ("linf", "report")])
def test_exact_lines_have_no_note_on_bounds(mixed: Evaluation, distance: str, style: str) -> None:
    only = Evaluation(mixed.to_frame().query("attack == 'nearest_l2'").reset_index(drop=True))
    assert "bound" not in notes_of(curves_figure(only, distance, style=style))


# The axes of the report


def test_a_setting_is_the_mean_distance_and_the_remaining_accuracy(table: Make) -> None:
    rows = [
        (0, "pgd", 0.1, 0.0), (1, "pgd", 0.1, 0.1), (2, "pgd", 0.1, None), (3, "pgd", 0.1, None),
        (0, "pgd", 0.2, 0.0), (1, "pgd", 0.2, 0.2), (2, "pgd", 0.2, 0.2), (3, "pgd", 0.2, None),
    ]  # fmt: skip
    evaluation = table(rows)
    settings = knob_settings(evaluation, "pgd", distance="linf")
    assert settings["eps"].tolist() == [0, 0.1, 0.2]
    # The misclassified example counts as broken but not in the mean; example 1 counts at its nearest.
    assert settings["distance"].tolist() == pytest.approx([0, 0.1, 0.15])
    assert settings["accuracy"].tolist() == [0.75, 0.5, 0.25]
    axes = curves_figure(evaluation, "l2", style="report").axes[0]
    (line,) = (line for line in axes.get_lines() if list(line.get_xdata()) == pytest.approx([0, 2, 3]))
    assert list(line.get_ydata()) == [75, 50, 25]
    assert line.get_marker() == "o"
    assert axes.get_xlabel() == "mean L2 distance of the adversarial examples (pixel units)"


@pytest.mark.parametrize("minimal", [False, True])
def test_an_attack_that_broke_nothing_is_named_in_a_note(table: Make, minimal: bool) -> None:
    rest = {"eps": float("nan")} if minimal else {}
    evaluation = table([(k, name, 0.3, None) for k in range(3) for name in ("pgd", "fgsm")], **rest)
    figure = curves_figure(evaluation, style="report")
    assert "No adversarial example found: pgd, fgsm." in notes_of(figure)


def test_an_unknown_style_is_refused(table: Make) -> None:
    with pytest.raises(EvaluationError, match=r"no figure style 'raport'; there are 'curve' .* and 'report'"):
        curves_figure(many(table, 1), style="raport")


# Titles and names


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"complete": True}, "n = 12, clean 100.0 %"),
        ({"complete": False}, "n = 12 (cut short), clean"),
        ({"complete": False, "meant": 99}, "n = 12 (cut short, of 99), clean"),
        ({}, "n = 12 (not known whether complete), clean"),
    ],
)
def test_the_title_has_n_and_whether_it_is_complete(table: Make, meta: dict[str, Any], expected: str) -> None:
    figure = curves_figure(many(table, 1, n=12, meta=meta), "linf", name="my net")
    assert title_of(figure).startswith("my net: accuracy against L∞ distance")
    assert expected in title_of(figure)
    assert "L∞" in figure.axes[0].get_xlabel()
    assert "Budgets attacked: L∞ 0.5: attack0." in notes_of(figure)


def test_a_name_with_dollars_is_not_drawn_as_mathematics(table: Make) -> None:
    figure = curves_figure(table([(0, "$a_{$", 0.3, None)]), name="$x_{$")
    assert "$a_{$" in texts(figure)


def test_each_kind_of_knowledge_has_its_own_line_and_rows(table: Make) -> None:
    adaptive = many(table, 2).to_frame()
    evaluation = Evaluation(pd.concat([adaptive, adaptive.assign(knowledge="greybox", success=False)]))
    figure = curves_figure(evaluation, "linf")
    assert {"attack0", "attack1", "attack0-greybox", "attack1-greybox"} <= set(texts(figure))
    assert {line.get_linestyle() for line in curves_in(figure)} == {"-", "--"}
    written = curves_csv(evaluation, "linf", [0.0, 0.4])
    assert list(written.columns) == ["attack", "knowledge", "distance", "accuracy", "low", "high", "attacked", "exact"]
    assert len(written) == 8
    assert (written.query("knowledge == 'greybox'")["accuracy"] == 1).all()
    assert "attack0-greybox" in texts(curves_figure(Evaluation(adaptive.assign(knowledge="greybox"))))


def test_the_table_of_curves_is_that_of_the_evaluation(table: Make) -> None:
    evaluation = many(table, 2)
    grid = distance_grid(0.5, 6)
    np.testing.assert_allclose(grid, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    written = curves_csv(evaluation, "linf", grid)
    for attack, rows in written.groupby("attack"):
        expected = evaluation.curve(str(attack), distance="linf", at=grid)
        pd.testing.assert_frame_equal(rows[list(expected.columns)].reset_index(drop=True), expected)
        assert rows["attacked"].all()  # up to 0.5
    assert curves_csv(evaluation, "linf", [0.5, 0.6])["attacked"].tolist() == [True, False] * 2
    assert written["exact"].tolist() == [True, False, False, False, False, True] * 2  # at 0, and at the budget
    assert not curves_csv(evaluation, "l2", grid[1:])["exact"].any()


def test_png_and_svg_are_written_without_pyplot(table: Make, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    open_before, settings = plt.get_fignums(), dict(mpl.rcParams)
    save_figure(curves_figure(many(table, 2), "l2"), tmp_path / "curves_l2")
    assert (tmp_path / "curves_l2.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curves_l2.svg").read_text()
    assert plt.get_fignums() == open_before
    assert dict(mpl.rcParams) == settings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10.0, 50.0, 90.0], [10.0, 50.0, 90.0]),
        ([50.0, 50.0, 50.0], [45.0, 50.0, 55.0]),
        ([0.0, 0.0, 0.0], [0.0, 5.0, 10.0]),
        ([100.0, 99.0], [100.0, 95.0]),
        ([20.0, 80.0, 22.0, 81.0], [18.5, 78.0, 23.5, 83.0]),
        ([30.0], [30.0]),
    ],
)
def test_spread_moves_as_little_as_it_must(values: list[float], expected: list[float]) -> None:
    assert spread(values, 5.0) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 7, 15, 40])
def test_spread_keeps_gap_order_and_bounds(count: int) -> None:
    values = np.random.default_rng(0).uniform(0, 100, count).round()
    placed = np.array(spread(list(values), 5.0))
    assert np.diff(np.sort(placed)).min() >= min(5.0, 100 / (count - 1)) - 1e-9
    assert placed.min() >= -1e-9
    assert placed.max() <= 100 + 1e-9
    assert (placed[np.argsort(values, kind="stable")] == np.sort(placed)).all()
