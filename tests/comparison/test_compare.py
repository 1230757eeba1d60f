"""The page: its figures are the tables', it stands alone, and names cannot break out of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import bits, data_of, read_off

from robustlit.comparison import compare, write_page
from robustlit.comparison.curves import ruler, thinned
from robustlit.results import Evaluation

Make = Callable[..., Path]


def test_the_figures_are_those_of_the_tables(make: Make) -> None:
    folders = [make("a", seed=1), make("b", seed=2, knowledge=("greybox", "adaptive"))]
    values = data_of(compare(folders))
    names = [view["name"] for view in values["views"]]
    assert names[:2] == ["worst case", "worst case-greybox"]
    assert {"fgsm", "pgd", "nearest_l2", "fgsm-greybox"} < set(names)
    for run, folder in zip(values["runs"], folders, strict=True):
        evaluation = Evaluation.load(folder)
        clean, worst = evaluation.clean_accuracy, evaluation.worst_case(eps=0.3)
        assert run["clean"] == [clean.correct, clean.n]
        assert (run["worst"]["correct"], run["worst"]["n"]) == (worst.correct, worst.n)
        assert run["worst"]["rests_on"][:2] == ["fgsm", "pgd"]
        assert len(run["attacks"]) == len(evaluation.runs)
        for number, found in run["attacks"].items():
            view = values["views"][int(number)]
            attack = view["name"].removesuffix("-greybox")
            if found["eps"] is None:
                median = evaluation.median_distance(attack, distance="l2", knowledge=view["knowledge"])
                assert found["median"] == pytest.approx(median)
            else:
                asked = {"attack": attack, "eps": 0.3, "knowledge": view["knowledge"]}
                assert found["correct"] == evaluation.accuracy(**asked).correct
        assert (run["parameters"], run["recipe"], run["net"], run["method"]) == (
            1234,
            "standard",
            "SmallCNN",
            "Standard",
        )
        assert run["seconds"] == {"train": 10.0, "evaluate": 2.5}
        spent = evaluation.table[["forwards", "backwards"]].to_numpy().sum() / evaluation.n
        assert run["passes"] == pytest.approx(spent)


def test_a_curve_stays_small_and_exact_where_it_is_quoted() -> None:
    draws = np.random.default_rng(0)
    reach = np.where(draws.random(5000) < 0.1, np.inf, draws.uniform(0, 3, 5000))
    steps = thinned(reach, ruler(3), 3.0, budgets=(8 / 255, 0.5))
    assert len(steps) <= 2 * 204
    for budget in (8 / 255, 0.5):
        assert read_off(steps, ruler(3), 5000, budget) == np.sum(reach > budget + 1e-6)
    assert sum(steps[1::2]) == np.isfinite(reach).sum()
    assert thinned(np.array([np.inf, np.inf]), 1e-4, 1.0) == []
    assert thinned(np.zeros(3), 1e-4, 0.0) == [0, 3]


@pytest.mark.parametrize("end", [8 / 255, 0.06, 0.4, 1.0, 10.0])
def test_a_curve_is_exact_at_any_budget_on_any_axis(end: float) -> None:
    draws = np.random.default_rng(1)
    for budget in (1 / 255, 2 / 255, 6 / 255, 8 / 255, 19 / 255, 0.03, 0.05, 0.3):
        # As float32 attacks leave them: on the budget but for rounding, just beyond it, and elsewhere.
        at = np.float32(budget) + draws.uniform(-8e-7, 8e-7, 200)
        reach = np.concatenate([at, budget + draws.uniform(1.1e-6, 1e-4, 200), draws.uniform(0, end, 200)])
        steps = thinned(reach, ruler(end), end, budgets=[budget])
        assert read_off(steps, ruler(end), 600, budget) == np.sum(reach > budget + 1e-6)


def test_who_was_got_wrong_and_as_what(make: Make, labels: np.ndarray) -> None:
    folder = make("a", range(100, 180), seed=4)
    values = data_of(compare([folder]))
    evaluation, mistakes = Evaluation.load(folder), values["runs"][0]["mistakes"]
    assert values["index"] == list(range(100, 180))
    assert values["labels"] == labels[100:180].tolist()
    broken = evaluation.least_distances(distance="linf") <= 0.3 + 1e-6
    np.testing.assert_array_equal(bits(mistakes["worst"]["who"], 80), broken)
    clean = evaluation.table.drop_duplicates("index")["clean"].to_numpy()
    np.testing.assert_array_equal(bits(mistakes["clean"]["who"], 80), ~clean)
    rows = evaluation.table[evaluation.table["success"]]
    for number, predicted in zip(np.arange(100, 180)[broken], mistakes["worst"]["as"], strict=True):
        mine = rows[rows["index"] == number]
        assert predicted in mine.loc[mine["linf"] <= mine["linf"].min() + 1e-12, "prediction"].tolist()


def test_the_digits_are_the_ones_that_were_attacked(make: Make, labels: np.ndarray) -> None:
    from PIL import Image

    from robustlit.data import load_mnist

    values = data_of(compare([make("a", range(30), seed=5), make("b", range(30), seed=6)]))
    images = load_mnist()[2]
    assert values["pictures"]
    for number, uri in values["pictures"].items():
        png = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        shades = np.asarray(png.convert("L"), dtype=int)
        assert np.abs(shades - images[int(number), 0].numpy().astype(int)).max() <= 9


def test_no_digits_for_other_images_of_the_same_numbers(make: Make, made: Callable[..., Evaluation]) -> None:
    other = made(np.arange(20), np.arange(20) % 10)
    assert data_of(compare([make("a", evaluation=other)]))["pictures"] == {}
    assert data_of(compare([make("b", data="FashionMNIST")]))["pictures"] == {}


def test_only_what_was_set_differently_is_listed(make: Make) -> None:
    a = make("a", config={"seed": 1, "optimizer": {"lr": 0.1, "name": "adam"}})
    b = make("b", config={"seed": 1, "optimizer": {"lr": 0.2, "name": "adam"}, "warmup": 0.5})
    settings = data_of(compare([a, b]))["settings"]
    assert settings == [
        {"key": "optimizer.lr", "values": ["0.1", "0.2"], "of": [0, 1]},
        {"key": "warmup", "values": ["–", "0.5"], "of": [0, 1]},
    ]


def test_a_page_is_written_over_a_page_only(make: Make, tmp_path: Path) -> None:
    folder = make("a")
    page, out = compare([folder]), tmp_path / "new" / "compare.html"
    assert write_page(page, out).read_text(encoding="utf-8") == page
    write_page(page, out)
    with pytest.raises(FileExistsError, match=r"no page of robustlit compare; choose another --out"):
        write_page(page, folder / "results.json")
    with pytest.raises(FileExistsError, match=r"is a folder; give a file"):
        write_page(page, tmp_path)
    assert [f.name for f in out.parent.iterdir()] == ["compare.html"]
    assert json.loads((folder / "results.json").read_text())["name"] == "a"
    assert yaml.safe_load((folder / "config.yaml").read_text())
