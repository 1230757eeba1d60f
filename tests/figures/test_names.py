"""Long names: short forms beside the axes, the full names in a note."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from parts import all_text, check_apart, texts

from robustlit.figures import TrainedRun, curves_figure, models_figure, save_figure, training_time_figure
from robustlit.figures.names import LONGEST, names_in_full, short_names
from robustlit.results import Accuracy, Evaluation

Make = Callable[..., Evaluation]
LONG = [f"cifar10_{'x' * 42}_seed_{k}_{'y' * 42}" for k in (1, 2, 30)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fgsm", "a" * LONGEST], ["fgsm", "a" * LONGEST]),
        (["b" * 20 + "c" * 80, "pgd"], ["b" * 18 + "…" + "c" * 17, "pgd"]),
        (LONG, ["…xx_seed_1_yyyyyyy…", "…xx_seed_2_yyyyyyy…", "…xx_seed_30_yyyyyyy…"]),
        (["a" * 60, "a" * 61], ["…aaaaaaaa", "…aaaaaaaaa"]),
    ],
)
def test_long_names_are_shortened_and_stay_apart(names: list[str], expected: list[str]) -> None:
    assert [*short_names(names).values()] == expected


def test_names_that_differ_in_the_middle_are_numbered() -> None:
    middles = [f"{'a' * 40}{'bc'[k]}{'d' * 40}{'bc'[k]}{'e' * 40}" for k in range(2)]
    other = ["f" * 100]
    short = short_names([*middles, *other])
    assert len({*short.values()}) == 3
    assert max(map(len, short.values())) <= LONGEST
    note = " ".join(names_in_full(short))
    assert all(name in note for name in (*middles, *other))
    assert names_in_full(short_names(["a", "b"])) == []


def by_model(table: Make) -> Figure:
    rows = [(k, a, 0.3, 0.1 if k < 5 else None) for a in ("fgsm", "pgd") for k in range(20)]
    return models_figure({name: table(rows, meta={}) for name in LONG}, "linf")


def by_attack(table: Make) -> Figure:
    return curves_figure(table([(k, a, 0.3, 0.1 if k < 5 else None) for a in LONG for k in range(20)]), "linf")


def by_time(table: Make) -> Figure:
    runs = enumerate(LONG)
    return training_time_figure([
        TrainedRun(name, 30 + k, Accuracy(150, 200), Accuracy(198, 200), "linf", 0.3, ("pgd",) * (k + 1), "a CPU")
        for k, name in runs
    ])  # fmt: skip


@pytest.mark.parametrize("draw", [by_model, by_attack, by_time])
def test_names_of_a_hundred_characters_fit_and_stand_in_full_in_a_note(
    draw: Callable[[Make], Figure], table: Make
) -> None:
    figure = draw(table)
    found, axes = texts(figure), figure.axes[0]
    beside = [text for words, text in found.items() if words.startswith("…xx_seed") and len(words) < 2 * LONGEST]
    assert len(beside) == 3
    check_apart([text.get_window_extent() for text in beside], figure)
    width = axes.get_window_extent().width
    assert width > 0.4 * figure.bbox.width
    notes = next(text for words, text in found.items() if "Names in full" in words.replace("\n", " "))
    assert figure.bbox.x0 <= notes.get_window_extent().x0 < notes.get_window_extent().x1 <= figure.bbox.x1
    assert not notes.get_window_extent().overlaps(axes.get_tightbbox(for_layout_only=True))
    assert all(name in all_text(figure).replace(" ", "") for name in LONG)


def test_letters_that_the_font_lacks_raise_no_warning(table: Make, tmp_path: Path) -> None:
    figure = models_figure({"模型": table([(0, "pgd", 0.3, 0.1)])}, "linf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "models")
        figure._repr_png_()  # type: ignore[attr-defined]
