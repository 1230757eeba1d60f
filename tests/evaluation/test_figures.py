"""Figures: what they show and say, and that nothing runs into anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustlit.evaluation import Evaluation
from robustlit.evaluation.figures import (
    _spread,
    curves_csv,
    curves_figure,
    distance_grid,
    images_figure,
    save_curves,
)

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
        line = lines[tuple(curve["distance"]), tuple(100 * curve["accuracy"])]
        assert line.get_drawstyle() == "steps-post"
    styles = {(line.get_color(), line.get_linestyle()) for line in lines.values() if len(line.get_xdata()) > 2}
    assert len(styles) == 3


def test_the_title_says_of_how_many_and_whether_cut_short(table: Make) -> None:
    whole = curves_figure(many(table, 1, n=30)).axes[0].get_title()
    assert "n = 30" in whole
    assert "clean 100.0 %" in whole
    assert "L2" in whole
    assert "cut short" not in whole
    cut = curves_figure(many(table, 1, n=12, meta={"complete": False}), "linf").axes[0]
    assert "n = 12" in cut.get_title()
    assert "(cut short)" in cut.get_title()
    assert "L∞" in cut.get_xlabel()


def test_a_curve_of_a_single_point_is_seen(table: Make) -> None:
    evaluation = table([(0, "pgd", 0.3, None), (1, "pgd", 0.3, 0.0)])
    axes = curves_figure(evaluation).axes[0]
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [(0, 50)]
    low, high = axes.get_xlim()
    assert low <= 0 < high


def test_what_the_attacker_knows_is_drawn_and_written_apart(table: Make) -> None:
    adaptive = many(table, 2).to_frame()
    evaluation = Evaluation(pd.concat([adaptive, adaptive.assign(knowledge="greybox", success=False)]))
    figure = curves_figure(evaluation, "linf")
    label_texts(figure, ["attack0", "attack1", "attack0-greybox", "attack1-greybox"])
    written = curves_csv(evaluation, "linf", [0.0, 0.4])
    assert list(written.columns) == ["attack", "knowledge", "distance", "accuracy", "low", "high"]
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


def test_png_and_svg_are_written(table: Make, tmp_path: Path) -> None:
    save_curves(many(table, 2), "l2", tmp_path / "curves_l2")
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
    assert _spread(values, 5.0) == pytest.approx(expected)


def test_spread_keeps_gap_order_and_bounds() -> None:
    draws = np.random.default_rng(0)
    for count in (2, 7, 15, 40):
        values = draws.uniform(0, 100, count).round()
        placed = np.array(_spread(list(values), 5.0))
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
