"""The page shows the tables' numbers, needs no network, and shows names and values as text only."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import HOSTILE, data_of, made_evaluation

from robustlit.comparison import compare, write_page
from robustlit.comparison.measures import unmasked
from robustlit.results import Evaluation
from robustlit.results.certificates import Certificates

Make = Callable[..., Path]


def test_the_numbers_are_those_of_the_tables(make: Make) -> None:
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
        assert [run[key] for key in ("parameters", "recipe", "net")] == [1234, "standard", "SmallCNN"]
        assert run["seconds"] == {"train": 10.0, "evaluate": 2.5}
        spent = evaluation.table[["forwards", "backwards"]].to_numpy().sum() / evaluation.n
        assert run["passes"] == pytest.approx(spent)


def test_certified_accuracy_stands_beside_the_worst_case(make: Make) -> None:
    folder = make("a", seed=1)
    evaluation = Evaluation.load(folder)
    table = evaluation.table.drop_duplicates("index").rename(columns={"attack": "certificate"})
    radius = np.where(table["index"] % 2 == 0, 0.3, 0.1)
    evaluation.certificates = Certificates(table.assign(certificate="ibp", norm="linf", radius=radius))
    evaluation.save(folder / "evaluation")
    proven = int((table["clean"] & (table["index"] % 2 == 0)).sum())
    page = compare([folder])
    assert data_of(page)["runs"][0]["certified"] == [proven, evaluation.n]
    assert "% proven at that budget" in page


def test_misclassified_examples_and_their_predictions(make: Make, labels: np.ndarray) -> None:
    folder = make("a", range(100, 180), seed=4)
    values = data_of(compare([folder]))
    evaluation, mistakes = Evaluation.load(folder), values["runs"][0]["mistakes"]
    assert values["index"] == list(range(100, 180))
    assert values["labels"] == labels[100:180].tolist()
    broken = evaluation.least_distances(distance="linf") <= 0.3 + 1e-6
    np.testing.assert_array_equal(unmasked(mistakes["worst"]["wrong"], 80), broken)
    clean = evaluation.table.drop_duplicates("index")["clean"].to_numpy()
    np.testing.assert_array_equal(unmasked(mistakes["clean"]["wrong"], 80), ~clean)
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


def test_no_digits_for_other_images_of_the_same_numbers(make: Make) -> None:
    other = made_evaluation(np.arange(20), np.arange(20) % 10)
    assert data_of(compare([make("a", evaluation=other)]))["pictures"] == {}
    assert data_of(compare([make("b", data="FashionMNIST")]))["pictures"] == {}


def test_only_settings_that_differ_are_listed(make: Make) -> None:
    a = make("a", config={"seed": 1, "optimizer": {"lr": 0.1, "name": "adam"}})
    b = make("b", config={"seed": 1, "optimizer": {"lr": 0.2, "name": "adam"}, "warmup": 0.5})
    assert data_of(compare([a, b]))["settings"] == [
        {"key": "optimizer.lr", "values": ["0.1", "0.2"], "of": [0, 1]},
        {"key": "warmup", "values": ["–", "0.5"], "of": [0, 1]},
    ]


def test_only_an_older_page_is_replaced(make: Make, tmp_path: Path) -> None:
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


def test_hostile_names_and_values_are_data_and_never_markup(hostile: list[Path]) -> None:
    page = compare(hostile)
    assert page.count("</script>") == 2  # of the data and of the scripts
    assert "<img" not in page
    values = data_of(page)
    first, second = values["runs"]
    assert first["name"] == first["recipe"] == HOSTILE.replace("\x00", "�").replace("\u202e", "�")
    assert first["verdict"]["checks"][0]["finding"] == first["name"]
    assert len(second["name"]) == 300
    assert second["name"].endswith("…")
    assert (second["seed"], second["parameters"], second["seconds"]["train"]) == (None, None, None)
    assert any(setting["key"].startswith("</script>") for setting in values["settings"])


def test_the_page_loads_nothing(make: Make) -> None:
    page = compare([make("a")])
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<link|<script[^>]* src|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


@pytest.mark.slow
def test_nothing_heavy_is_loaded_to_compare(make: Make) -> None:
    script = (
        "import sys; from robustlit.comparison import compare; compare(sys.argv[1:]); "
        "print([m for m in ('torch', 'sklearn', 'pytorch_lightning', 'matplotlib', 'wandb') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(make("a")), str(make("b", seed=1))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
