"""Figures of images: clean, adversarial, their difference, and growing budgets."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from parts import check_apart, texts

from robustlit.figures import budgets_figure, images_figure
from robustlit.figures.images import class_labels


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


def test_a_large_difference_is_clipped_and_a_long_title_stays_inside() -> None:
    clean, adversarial = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    title = "true → predicted; PGD(norm='linf', eps=0.03137254901960784, steps=40, step_size=None, restarts=10)"
    figure = images_figure(clean, adversarial, [0], [0], [1], title, magnify=5)
    assert np.asarray(figure.axes[2].get_images()[0].get_array()).max() == 1
    check_apart([drawn.get_window_extent() for text, drawn in texts(figure).items() if text.startswith("true")], figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_at_growing_budgets(channels: int) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (3, 2, channels, 5, 5))
    figure = budgets_figure(images, [0, 0.1, 0.2], [7, 4], np.array([[7, 4], [7, 9], [1, 9]]), "the title")
    grid = np.array(figure.axes).reshape(2, 3)
    for (row, column), axis in np.ndenumerate(grid):
        shown = np.asarray(axis.get_images()[0].get_array())
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
def test_images_must_fit_their_budgets(shape: tuple[int, ...], budgets: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budgets_figure(np.zeros(shape), budgets, [7, 4], np.zeros((3, 2), int), "")


def test_classes_are_named_shortly_and_never_alike() -> None:
    names = ["cat", "n02690373_airliner", "n02690373_and_another_airliner", "golden_retriever_$x^2$", "猫", "a\nb", ""]
    named = class_labels(names, 13)
    assert [named(k) for k in range(-1, 8)] == ["none", "cat", "1", "2", "golden_r…x^2$", "4", "a b", "6", "7"]
    images = np.full((4, 1, 3, 3), 0.5)
    figure = images_figure(images, images, [0, 0, 3, 1], [0, 3, 3, 9], [1, 0, -1, 3], "the title", names=names)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["cat → cat", "cat →\ngolden_r…x^2$", "golden_r…x^2$ →\ngolden_r…x^2$", "1 → 9"]
    assert titles[4:7] == ["cat → 1", "cat → cat", "golden_r…x^2$ →\nnone"]
    drawn = [text for text in texts(figure).values() if "→" in text.get_text()]
    check_apart([text.get_window_extent() for text in drawn], figure)
    figure = budgets_figure(images[:2, None], [0, 8 / 255], [0], np.array([[0], [3]]), "the title", names=names)
    assert [axis.texts[0].get_text() for axis in figure.axes] == ["cat", "golde…^2$"]
    assert [axis.get_title() for axis in figure.axes] == ["clean", "8/255"]
    assert figure.axes[0].get_ylabel() == "true cat"


def test_a_figure_shows_itself_in_a_notebook() -> None:
    figure = images_figure(*[np.zeros((1, 1, 2, 2))] * 2, [0], [0], [1], "the title")
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
