"""Figures of one evaluation: what they show and say, and that nothing runs into anything else."""

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
from matplotlib.text import Text

from robustlit.figures import (
    Search,
    attacked_to,
    budgets_figure,
    curves_csv,
    curves_figure,
    distance_grid,
    exact_at,
    images_figure,
    knob_settings,
    known_at,
    save_figure,
    searched,
)
from robustlit.figures.panel import Look, spread
from robustlit.results import Accuracy, Evaluation, EvaluationError

Make = Callable[..., Evaluation]


def many(table: Make, attacks: int, n: int = 30, meta: dict[str, Any] | None = None) -> Evaluation:
    draws = np.random.default_rng(1)
    rows = [
        (k, f"attack{a}", 0.5, float(reach) if reach < 0.45 else None)
        for a in range(attacks)
        for k, reach in enumerate(draws.uniform(0, 0.5 + 0.02 * a, n))
    ]
    return table(rows, meta=meta)


def label_texts(figure: Figure, names: list[str]) -> list[Text]:
    figure.draw_without_rendering()
    found = {text.get_text(): text for text in figure.findobj(Text)}
    assert set(names) <= set(found)
    return [found[name] for name in names]


@pytest.mark.parametrize("attacks", [1, 3, 9])
@pytest.mark.parametrize("distance", ["l2", "linf"])
def test_every_attack_is_named_beside_the_axes_inside_the_picture(table: Make, attacks: int, distance: str) -> None:
    evaluation = many(table, attacks)
    figure = curves_figure(evaluation, distance)
    texts = label_texts(figure, evaluation.attacks)
    boxes = [text.get_window_extent() for text in texts]
    axes = figure.axes[0].get_window_extent()
    for box in boxes:
        assert box.x0 > axes.x1
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_lines_that_end_together_keep_their_names_apart_and_in_order(table: Make) -> None:
    rows = [(k, f"attack{a}", 0.5, 0.01 * (k + 1) * (a + 1)) for a in range(9) for k in range(5)]
    evaluation = table(rows)  # every attack breaks everything: nine lines end at 0 %
    boxes = [text.get_window_extent() for text in label_texts(curves_figure(evaluation), evaluation.attacks)]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_the_lines_are_the_curves(table: Make) -> None:
    evaluation = many(table, 3)
    lines = {
        (tuple(line.get_xdata()), tuple(line.get_ydata())): line
        for line in curves_figure(evaluation, "linf").axes[0].get_lines()
    }
    for attack in evaluation.attacks:
        curve = evaluation.curve(attack, distance="linf")
        x, y = list(curve["distance"]), list(100 * curve["accuracy"])
        line = lines[(*x, 0.5), (*y, y[-1])]  # attacked up to 0.5, farther than the last witness
        assert line.get_drawstyle() == "steps-post"
    styles = {(line.get_color(), line.get_linestyle()) for line in lines.values() if len(line.get_xdata()) > 3}
    assert len(styles) == 3


def test_a_small_step_is_dropped_and_a_visible_one_kept(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.5, 0.0001 * (k + 1) if k < 3000 else None) for k in range(4000)])
    (line,) = (line for line in curves_figure(evaluation, "linf").axes[0].get_lines() if len(line.get_xdata()) > 3)
    curve = evaluation.curve("pgd", distance="linf")
    drawn = np.interp(curve["distance"], line.get_xdata(), line.get_ydata())
    assert np.abs(drawn - 100 * curve["accuracy"]).max() < 0.25
    assert len(line.get_xdata()) < 500


def test_thirty_five_lines_look_different() -> None:
    assert len({Look.number(k) for k in range(35)}) == 35
    assert len({(look.colour, look.marker) for look in (Look.number(k, "-") for k in range(35))}) == 35


# How far an attack looked


def test_a_budget_attack_looked_as_far_as_its_largest_budget(table: Make) -> None:
    evaluation = table([(0, "pgd", 0.1, None), (0, "pgd", 0.3, None), (1, "pgd", 0.1, 0.05), (1, "pgd", 0.3, 0.05)])
    assert attacked_to(evaluation, "pgd", distance="linf") == 0.3
    assert attacked_to(evaluation, "pgd", distance="l2") == pytest.approx(6.0)  # the failed attempt at 0.3
    known = known_at(evaluation, "pgd", distance="linf", at=[0, 0.05, 0.3, 0.31, 1.0])
    assert known.tolist() == [True, True, True, False, False]
    axes = curves_figure(evaluation, "linf").axes[0]
    (end,) = (line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 1)
    assert (end.get_xdata()[0], end.get_ydata()[0]) == (0.3, 50)
    in_data = [line for line in axes.get_lines() if line.get_transform() == axes.transData]
    assert max(max(line.get_xdata()) for line in in_data) == 0.3


def test_where_everything_is_broken_nothing_is_left_to_know(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(2)])
    assert known_at(evaluation, "pgd", distance="linf", at=[0.1, 0.9]).all()


def test_a_minimal_attack_looked_without_a_bound(table: Make) -> None:
    evaluation = table([(0, "deepfool", float("nan"), 0.2), (1, "deepfool", 0.7, None)], eps=float("nan"))
    assert attacked_to(evaluation, "deepfool", distance="linf") == np.inf
    axes = curves_figure(evaluation, "linf").axes[0]
    tails = [line for line in axes.get_lines() if list(line.get_ydata()) == [50, 50] and line.get_linewidth() < 1]
    assert [line.get_xdata()[1] for line in tails] == [axes.get_xlim()[1]]


def test_the_worst_case_is_known_as_far_as_the_attacks_of_that_distance(table: Make) -> None:
    budget = table([(0, "pgd", 0.3, None), (1, "pgd", 0.3, 0.1)]).to_frame()
    minimal = budget.assign(attack="deepfool", norm="l2", eps=float("nan"))
    evaluation = Evaluation(pd.concat([budget, minimal]))
    assert attacked_to(evaluation, distance="linf") == 0.3
    assert attacked_to(evaluation, distance="l2") == np.inf
    assert attacked_to(evaluation, distance="l0") == np.inf  # no attack of that very distance


def test_what_was_not_run_has_no_extent(table: Make) -> None:
    evaluation = many(table, 1)
    with pytest.raises(EvaluationError, match="no attack named 'square'"):
        attacked_to(evaluation, "square")
    with pytest.raises(EvaluationError, match="nothing was run with knowledge 'greybox'"):
        attacked_to(evaluation, knowledge="greybox")
    for ask in (attacked_to, knob_settings):
        with pytest.raises(EvaluationError, match="distance must be one of"):
            ask(evaluation, "attack0", distance="l3")


def test_an_evaluation_of_a_model_that_knows_nothing(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.0) for k in range(3)])
    assert attacked_to(evaluation, "pgd", distance="l2") == 0
    curves_figure(evaluation, "l2").draw_without_rendering()


# Where it searched


def searches(table: Make) -> Evaluation:
    """Budgets of two attacks in L-inf, one of them twice, and an attack that is minimal in L2."""
    rows = [(k, "pgd", eps, reach if reach <= eps else None) for k, reach in enumerate((0.05, 0.15, 0.25, 0.35))
            for eps in (0.1, 0.3)]  # fmt: skip
    rows += [(k, "fgsm", 0.2, 0.2 if k == 0 else None) for k in range(4)]
    minimal = table([(k, "nearest_l2", float("nan"), 0.1 * (k + 1)) for k in range(4)], norm="l2")
    return Evaluation(pd.concat([table(rows).to_frame(), minimal.to_frame()]))


def test_a_curve_is_exact_where_an_attack_searched(table: Make) -> None:
    evaluation = searches(table)
    expected = {
        ("pgd", "linf"): Search(False, (0.1, 0.3)),
        ("pgd", "l2"): Search(False, ()),
        ("nearest_l2", "l2"): Search(True, ()),
        ("nearest_l2", "linf"): Search(False, ()),
        (None, "linf"): Search(False, (0.1, 0.2, 0.3)),
        (None, "l2"): Search(True, ()),
        (None, "l0"): Search(False, ()),
    }
    for (attack, distance), search in expected.items():
        assert searched(evaluation, attack, distance=distance) == search
        assert search.nowhere == (distance == "l0" or (attack, distance) in {("pgd", "l2"), ("nearest_l2", "linf")})
    at = [0.0, 0.05, 0.1, 0.1 + 5e-7, 0.2, 0.31]
    exact = [exact_at(evaluation, attack, distance="linf", at=at).tolist() for attack in ("pgd", None, "nearest_l2")]
    assert exact == [
        [True, False, True, True, False, False],
        [True, False, True, True, True, False],
        [True] + 5 * [False],
    ]
    assert exact_at(evaluation, "nearest_l2", distance="l2", at=at).all()
    assert exact_at(evaluation, "nearest_l2", distance="linf", at=[0.39, 0.4]).tolist() == [False, True]  # none is left
    with pytest.raises(EvaluationError, match="no attack named 'square'"):
        searched(evaluation, "square")
    with pytest.raises(EvaluationError, match="nothing was run with knowledge 'greybox'"):
        searched(evaluation, knowledge="greybox")
    with pytest.raises(EvaluationError, match="distance must be one of"):
        searched(evaluation, "pgd", distance="l3")


def small_print(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def test_what_is_but_a_bound_is_thin_and_said(table: Make) -> None:
    evaluation = searches(table)
    over_linf, over_l2 = (curves_figure(evaluation, distance) for distance in ("linf", "l2"))
    for figure, wide, bands in ((over_linf, 0, 1), (over_l2, 1, 3)):
        lines = [line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post"]
        assert [line.get_linewidth() > 1.5 for line in lines].count(True) == wide
        assert len([c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]) == bands
    axes = over_linf.axes[0]
    stops = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_linestyle() == "None"]
    in_data = [stop for stop in stops if stop.get_transform() == axes.transData]
    assert [(list(stop.get_xdata()), list(stop.get_ydata())) for stop in in_data] == [
        ([0.1, 0.3], [75, 25]),
        ([0.2], [75]),
    ]
    bars = [
        list(map(tuple, part)) for c in axes.collections if isinstance(c, LineCollection) for part in c.get_segments()
    ]
    low, high = Accuracy(1, 4).interval
    assert any(np.allclose(part, [(0.3, 100 * low), (0.3, 100 * high)]) for part in bars)
    said = small_print(over_linf)
    assert (
        "Between budgets a line is an upper bound. nearest_l2 searched L2: over L∞ its line is an upper bound." in said
    )
    assert said.endswith("Bands and bars: Wilson 95 %.")
    said = small_print(over_l2)
    assert "Between budgets" not in said
    assert "pgd, fgsm searched L∞: over L2 their lines are upper bounds. Bands: Wilson 95 %." in said


def test_a_figure_of_bounds_alone_says_so(table: Make) -> None:
    only = Evaluation(searches(table).to_frame().query("attack == 'nearest_l2'").reset_index(drop=True))
    figure = curves_figure(only, "linf")
    assert small_print(figure) == "nearest_l2 searched L2: over L∞ its line is an upper bound. Bands: Wilson 95 %."
    assert "bound" not in small_print(curves_figure(only, "l2"))
    assert "bound" not in small_print(curves_figure(only, "linf", style="report"))


# The report's axes


def test_settings_of_the_knob_are_mean_distances_and_the_accuracy_left(table: Make) -> None:
    rows = [
        (0, "pgd", 0.1, 0.0), (1, "pgd", 0.1, 0.1), (2, "pgd", 0.1, None), (3, "pgd", 0.1, None),
        (0, "pgd", 0.2, 0.0), (1, "pgd", 0.2, 0.2), (2, "pgd", 0.2, 0.2), (3, "pgd", 0.2, None),
    ]  # fmt: skip
    evaluation = table(rows)
    settings = knob_settings(evaluation, "pgd", distance="linf")
    assert settings["eps"].tolist() == [0, 0.1, 0.2]
    # The misclassified counts as broken, not in the mean; the nearer witness of example 1 counts at 0.2 too.
    assert settings["distance"].tolist() == pytest.approx([0, 0.1, 0.15])
    assert settings["accuracy"].tolist() == [0.75, 0.5, 0.25]
    assert knob_settings(evaluation, "pgd", distance="l2")["distance"].tolist() == pytest.approx([0, 2, 3])
    axes = curves_figure(evaluation, "l2", style="report").axes[0]
    (line,) = (line for line in axes.get_lines() if list(line.get_xdata()) == pytest.approx([0, 2, 3]))
    assert list(line.get_ydata()) == [75, 50, 25]
    assert line.get_marker() == "o"
    assert "mean L2 distance" in axes.get_xlabel()


def test_an_attack_without_witnesses_is_said_not_drawn(table: Make) -> None:
    rows = [(k, name, 0.3, None) for k in range(3) for name in ("pgd", "fgsm")]
    minimal = table(rows, eps=float("nan"))
    figure = curves_figure(
        Evaluation(pd.concat([minimal.to_frame().query("attack == 'fgsm'"), many(table, 1).to_frame()])), style="report"
    )
    assert any("No witness found by fgsm" in text.get_text() for text in figure.findobj(Text))
    stands = curves_figure(table(rows), style="report")  # a budget attack has the clean images alone
    assert any("No witness found by pgd, fgsm" in text.get_text() for text in stands.findobj(Text))
    nothing = curves_figure(minimal, style="report")
    nothing.draw_without_rendering()
    assert any("No witness found by pgd, fgsm" in text.get_text() for text in nothing.findobj(Text))


def test_an_unknown_style_is_refused(table: Make) -> None:
    with pytest.raises(EvaluationError, match=r"no figure style 'raport'; there are 'curve' .* and 'report'"):
        curves_figure(many(table, 1), style="raport")


# Titles


def test_the_title_says_of_how_many_and_whether_cut_short(table: Make) -> None:
    whole = curves_figure(many(table, 1, n=30, meta={"complete": True})).get_suptitle()
    assert "n = 30" in whole
    assert "clean 100.0 %" in whole
    assert "L2" in whole
    assert "(" not in whole
    cut = curves_figure(many(table, 1, n=12, meta={"complete": False}), "linf", name="my net")
    assert "n = 12" in cut.get_suptitle()
    assert "my net" in cut.get_suptitle()
    assert "(cut short)" in cut.get_suptitle()
    of = curves_figure(many(table, 1, n=12, meta={"complete": False, "meant": 99}))
    assert "n = 12 (cut short, of 99)" in of.get_suptitle().replace("\n", " ")
    unknown = curves_figure(many(table, 1, n=12))
    assert "n = 12 (not known whether complete)" in unknown.get_suptitle().replace("\n", " ")
    assert "L∞" in cut.axes[0].get_xlabel()
    assert any("Budgets attacked: L∞ 0.5: attack0." in text.get_text() for text in cut.findobj(Text))


def test_a_name_with_dollars_is_drawn_as_it_is(table: Make) -> None:
    figure = curves_figure(table([(0, "$a_{$", 0.3, None)]), name="$x_{$")
    figure.draw_without_rendering()  # as mathematics it would raise
    label_texts(figure, ["$a_{$"])


def test_a_curve_of_a_single_point_is_seen(table: Make) -> None:
    evaluation = table([(0, "pgd", 0.3, 0.0), (1, "pgd", 0.3, 0.0)])
    axes = curves_figure(evaluation).axes[0]
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [(0, 0)]
    low, high = axes.get_xlim()
    assert low <= 0 < high


def test_what_the_attacker_knows_is_drawn_and_written_apart(table: Make) -> None:
    adaptive = many(table, 2).to_frame()
    evaluation = Evaluation(pd.concat([adaptive, adaptive.assign(knowledge="greybox", success=False)]))
    figure = curves_figure(evaluation, "linf")
    label_texts(figure, ["attack0", "attack1", "attack0-greybox", "attack1-greybox"])
    written = curves_csv(evaluation, "linf", [0.0, 0.4])
    assert list(written.columns) == ["attack", "knowledge", "distance", "accuracy", "low", "high", "attacked", "exact"]
    assert len(written) == 8
    assert (written.query("knowledge == 'greybox'")["accuracy"] == 1).all()
    only = Evaluation(adaptive.assign(knowledge="greybox"))  # nothing adaptive was run
    assert len(curves_csv(only, "linf", [0.1])) == 2
    label_texts(curves_figure(only), ["attack0-greybox"])


def test_the_table_of_curves_is_that_of_the_evaluation(table: Make) -> None:
    evaluation = many(table, 2)
    grid = distance_grid(0.5, 6)
    np.testing.assert_allclose(grid, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    written = curves_csv(evaluation, "linf", grid)
    for attack, rows in written.groupby("attack"):
        expected = evaluation.curve(str(attack), distance="linf", at=grid)
        pd.testing.assert_frame_equal(rows[list(expected.columns)].reset_index(drop=True), expected)
        assert rows["attacked"].all()  # up to 0.5
    beyond = curves_csv(evaluation, "linf", [0.5, 0.6])
    assert beyond["attacked"].tolist() == [True, False] * 2
    assert written["exact"].tolist() == [True, False, False, False, False, True] * 2  # at 0, and at the budget
    assert not curves_csv(evaluation, "l2", grid[1:])["exact"].any()


def test_png_and_svg_are_written(table: Make, tmp_path: Path) -> None:
    save_figure(curves_figure(many(table, 2), "l2"), tmp_path / "curves_l2")
    assert (tmp_path / "curves_l2.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curves_l2.svg").read_text()


def test_figures_leave_pyplot_alone(table: Make) -> None:
    import matplotlib.pyplot as plt

    open_before, settings = plt.get_fignums(), dict(mpl.rcParams)
    curves_figure(many(table, 2))
    images_figure(np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 4)), [0], [0], [0], "title")
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


def test_spread_keeps_gap_order_and_bounds() -> None:
    draws = np.random.default_rng(0)
    for count in (2, 7, 15, 40):
        values = draws.uniform(0, 100, count).round()
        placed = np.array(spread(list(values), 5.0))
        gaps = np.diff(np.sort(placed))
        assert gaps.min() >= min(5.0, 100 / (count - 1)) - 1e-9
        assert placed.min() >= -1e-9
        assert placed.max() <= 100 + 1e-9
        assert (placed[np.argsort(values, kind="stable")] == np.sort(placed)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_with_their_difference_around_mid_grey(channels: int) -> None:
    draws = np.random.default_rng(0)
    clean = draws.uniform(0.2, 0.8, (4, channels, 6, 6)).astype("float32")
    change = draws.choice([-0.1, 0.0, 0.1], clean.shape).astype("float32")
    figure = images_figure(clean, clean + change, [1, 2, 3, 4], [1, 2, 3, 0], [1, 5, 6, 7], "the title", magnify=4)
    grid = np.array(figure.axes).reshape(3, 4)
    for column in range(4):
        shown = [np.asarray(axis.get_images()[0].get_array()) for axis in grid[:, column]]
        expected = [clean[column], clean[column] + change[column], 0.5 + 2 * change[column]]
        for picture, wanted in zip(shown, expected, strict=True):
            assert picture.shape == ((6, 6) if channels == 1 else (6, 6, 3))
            np.testing.assert_allclose(picture, np.moveaxis(wanted, 0, -1).squeeze(), atol=1e-6)
        assert all(axis.get_images()[0].get_clim() == (0, 1) for axis in grid[:, column])
    assert [axis.get_title() for axis in grid[1]] == ["1 → 1", "2 → 5", "3 → 6", "4 → 7"]
    red = [mpl.colors.to_rgb(axis.title.get_color())[0] > 0.5 for axis in grid[:2].ravel()]
    assert red == [False, False, False, True, False, True, True, True]
    assert grid[2, 0].get_ylabel() == "difference ×4"


def test_a_difference_too_large_to_show_is_cut_not_wrapped() -> None:
    clean, adversarial = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    figure = images_figure(clean, adversarial, [0], [0], [1], "", magnify=5)
    assert np.asarray(figure.axes[2].get_images()[0].get_array()).max() == 1


def test_a_long_title_stays_inside_a_narrow_picture() -> None:
    image = np.zeros((1, 1, 4, 4))
    title = "true → predicted; PGD(norm='linf', eps=0.03137254901960784, steps=40, step_size=None, restarts=10)"
    figure = images_figure(image, image, [0], [0], [1], title)
    figure.draw_without_rendering()
    box = next(t for t in figure.findobj(Text) if t.get_text().startswith("true")).get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("channels", [1, 3])
def test_images_at_growing_budgets(channels: int) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (3, 2, channels, 5, 5))
    figure = budgets_figure(images, [0, 0.1, 0.2], [7, 4], np.array([[7, 4], [7, 9], [1, 9]]), "the title")
    grid = np.array(figure.axes).reshape(2, 3)
    for row in range(2):
        for column in range(3):
            shown = np.asarray(grid[row, column].get_images()[0].get_array())
            np.testing.assert_allclose(shown, np.moveaxis(images[column, row], 0, -1).squeeze())
    assert [axis.get_title() for axis in grid[0]] == ["clean", "0.1", "0.2"]
    assert [axis.get_ylabel() for axis in grid[:, 0]] == ["true 7", "true 4"]
    corners = [axis.texts[0] for axis in grid.ravel()]
    assert [text.get_text() for text in corners] == ["7", "7", "1", "4", "9", "9"]
    assert [text.get_color() for text in corners] == ["black", "black", "white", "black", "white", "white"]
    assert "L∞" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("shape", "budgets", "message"),
    [
        ((2, 2, 1, 5, 5), [0, 0.1, 0.2], "images must be"),
        ((3, 1, 1, 5, 5), [0, 0.1, 0.2], "images must be"),
        ((3, 2, 1, 5, 5), [0, 0.2, 0.1], "ascending"),
    ],
)
def test_images_that_do_not_fit_their_budgets_are_refused(
    shape: tuple[int, ...], budgets: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        budgets_figure(np.zeros(shape), budgets, [7, 4], np.zeros((3, 2), int), "")
