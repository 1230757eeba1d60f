"""Runs that differ in the seed alone: which they are, their mean and range, and paired differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import data_of

from robustlit.comparison import compare
from robustlit.comparison.seeds import over_images, over_pairs
from robustlit.results import Evaluation

Make = Callable[..., Path]


@pytest.fixture
def seeded(make: Make) -> Callable[..., list[Path]]:
    """Write runs of one recipe, a seed each."""

    def write(name: str, seeds: list[int], strength: float = 1.0, **config: Any) -> list[Path]:
        return [
            make(f"{name}-seed_{s}", range(200), seed=s, strength=strength, config={"seed": s, "lr": name, **config})
            for s in seeds
        ]

    return write


def of(folders: list[Path]) -> Any:
    return data_of(compare(folders))["seeds"]


def test_mean_range_and_paired_difference_are_those_of_the_tables(seeded: Callable[..., list[Path]]) -> None:
    weak, strong = seeded("weak", [0, 1, 2]), seeded("strong", [1, 0], strength=2.0)
    found = of([*weak, *strong])
    assert [(g["name"], g["seeds"]) for g in found["groups"]] == [("weak", [0, 1, 2]), ("strong", [0, 1])]
    robust = {f.name: float(Evaluation.load(f).worst_case(eps=0.3)) for f in [*weak, *strong]}
    values = [robust[f.name] for f in weak]
    figure = found["groups"][0]["figures"]["worst case"]
    assert figure == pytest.approx({"mean": np.mean(values), "least": min(values), "largest": max(values)})
    (difference,) = found["differences"]
    assert (difference["a"], difference["b"], difference["seeds"]) == ("weak", "strong", [0, 1])
    apart = [robust[f"weak-seed_{s}"] - robust[f"strong-seed_{s}"] for s in (0, 1)]
    mean, low, high = over_pairs(apart)
    assert difference["figures"]["worst case"] == pytest.approx({"mean": mean, "low": low, "high": high})
    assert mean == pytest.approx(sum(apart) / 2)
    assert high - mean == pytest.approx(12.7062 * abs(apart[0] - apart[1]) / 2, rel=1e-4)  # Student, one degree


def test_only_the_seed_may_differ(seeded: Callable[..., list[Path]], make: Make) -> None:
    assert of(seeded("one", [0])) is None
    assert of([*seeded("a", [0]), *seeded("b", [1])]) is None  # another setting
    assert of([*seeded("c", [0], eps=0.3), *seeded("c", [1], eps=0.1)]) is None  # another budget
    assert (
        of(
            [
                *seeded("d", [0]),
                make("d-x", range(200), seed=4, config={"seed": 1, "lr": "d"}, attacks={"pgd": ("linf", (0.3,))}),
            ]
        )
        is None
    )
    twice = of([*seeded("e", [0, 1]), *seeded("e2", [0], lr="e")])
    assert [g["seeds"] for g in twice["groups"]] == [[0, 1]]  # a seed counts once
    assert of([*seeded("f", [0]), *seeded("f-eval", [1], lr="f", ckpt_path="runs/f-seed_0")]) is None  # one net
    assert of([*seeded("g", [0], recipe="evaluate"), *seeded("g", [1], recipe="evaluate")]) is None  # nets of others
    assert of([*seeded("h", [0], base="runs/a"), *seeded("h", [1], base="runs/b")]) is None
    based = of([*seeded("i", [0], base="runs/a-seed_0"), *seeded("i", [1], base="runs/a-seed_1")])
    assert based["groups"][0]["seeds"] == [0, 1]


def test_what_was_not_measured_alike_is_not_subtracted(seeded: Callable[..., list[Path]], make: Make) -> None:
    weaker = {"attacks": {"pgd": ("linf", (0.1, 0.3, 0.4))}}
    other = make("other-seed_0", range(200), seed=9, config={"seed": 0, "lr": "other"}, **weaker)
    (difference,) = of([*seeded("full", [0]), other])["differences"]
    assert list(difference["figures"]) == ["clean"]
    assert over_pairs([0.1, 0.1]) == (pytest.approx(0.1), None, None)


def test_one_common_seed_is_compared_over_the_images(seeded: Callable[..., list[Path]]) -> None:
    folders = [*seeded("many", [0, 1]), *seeded("single", [1], strength=2.0)]
    (difference,) = of(folders)["differences"]
    assert difference["seeds"] == [1]
    wrong = [Evaluation.load(folders[k]).least_distances(None, distance="linf") <= 0.3 for k in (1, 2)]
    expected = dict(zip(("mean", "low", "high"), over_images(*wrong), strict=True))
    assert difference["figures"]["worst case"] == pytest.approx(expected)


def test_the_interval_over_images() -> None:
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:2], second[2:12] = True, True
    mean, low, high = over_images(first, second)
    assert mean == pytest.approx(0.08)
    assert low < 0.08 < high
    assert over_images(second, first) == pytest.approx((-mean, -high, -low))
    same = over_images(first, first)
    assert same[0] == 0
    assert same[2] == -same[1] > 0
    rng = np.random.default_rng(0)  # it holds the true difference in about 95 % of samples
    held = 0
    for _ in range(400):
        draws = rng.random(60)
        low, high = over_images(draws < 0.2, (draws > 0.1) & (draws < 0.4))[1:]
        held += low <= 0.1 <= high
    assert 0.92 < held / 400 < 0.99
