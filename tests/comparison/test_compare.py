"""The page: its figures are the tables', it stands alone, and names cannot break out of it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import bits, data_of

from robustlit.comparison import ComparisonError, compare, write_page
from robustlit.comparison.curves import ruler, thinned
from robustlit.evaluation import Evaluation

Make = Callable[..., Path]
HOSTILE = "</script><img src=x onerror=alert(1)> & \"quotes' \u2028 \u202e名\x00<!--"


def read_off(steps: list[int], unit: float, n: int, at: float) -> int:
    """How many stand at a distance, as the page's script reads it."""
    marks = np.cumsum(steps[::2])
    return n - int(np.sum(np.array(steps[1::2])[marks * unit <= at + 1e-9]))


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
        assert run["worst"]["rests_on"] == ["fgsm", "pgd"]
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


def test_curves_are_read_off_as_the_table_has_them(make: Make) -> None:
    folder = make("a", range(300), seed=3)
    values = data_of(compare([folder]))
    evaluation = Evaluation.load(folder)
    for axis, budget in (("linf", 0.3), ("l2", None)):
        unit, end = values["axes"][axis]["unit"], values["axes"][axis]["end"]
        for k, view in enumerate(values["views"]):
            steps = values["runs"][0]["curves"][axis][str(k)]
            attack = None if view["worst"] else view["name"]
            reach = evaluation.least_distances(attack, distance=axis)
            assert end >= reach[np.isfinite(reach)].max()
            for at in np.linspace(0, end, 50):
                shown = read_off(steps, unit, 300, at)
                assert shown <= np.sum(reach > at + 1e-6)  # never flatters
                assert shown >= np.sum(reach > at + end / 200 + unit)
            if budget:
                assert read_off(steps, unit, 300, budget) == np.sum(reach > budget + 1e-6)
            assert read_off(steps, unit, 300, 0) == evaluation.clean_accuracy.correct


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


def test_a_verdict_is_counted(make: Make) -> None:
    folder = make("a")
    checks = [
        {"number": 1, "name": "valid", "status": "PASS"},
        {"number": 9, "name": "gradients exist", "status": "FAIL"},
        {"number": 13, "name": "gradient-free", "status": "INCONCLUSIVE"},
        {"number": 4, "name": "monotone", "status": "PASS"},
    ]
    (folder / "evaluation" / "verdict.json").write_text(json.dumps({"checks": checks}))
    verdict = data_of(compare([folder]))["runs"][0]["verdict"]
    assert verdict == {"counts": {"FAIL": 1, "INCONCLUSIVE": 1, "PASS": 2}, "failed": ["9 gradients exist"]}
    checks[0]["status"] = "fine"
    (folder / "evaluation" / "verdict.json").write_text(json.dumps({"checks": checks}))
    with pytest.raises(ComparisonError, match=r"verdict\.json is no verdict.*--verdict"):
        compare([folder])


def hostile_runs(make: Make, made: Callable[..., Evaluation], labels: np.ndarray) -> list[Path]:
    attacks = {"</script><b>pgd": ("linf", (0.3,)), "__proto__": ("linf", (0.3,))}
    evaluation = made(np.arange(40), labels[:40], attacks=attacks)
    return [
        make("a", results={"name": HOSTILE, "recipe": HOSTILE}, config={"note": HOSTILE}, evaluation=evaluation),
        make("b", results={"name": "long " * 400, "seed": float("nan"), "parameters": "many", "seconds": HOSTILE},
             config={HOSTILE: 1, "model": {"_target_": HOSTILE, "name": "x" * 999}}),
    ]  # fmt: skip


def test_names_and_values_are_data_and_never_markup(
    make: Make, made: Callable[..., Evaluation], labels: np.ndarray
) -> None:
    page = compare(hostile_runs(make, made, labels))
    assert page.count("</script>") == 2  # of the data and of the scripts
    assert "<img" not in page
    values = data_of(page)
    first, second = values["runs"]
    assert first["name"] == first["recipe"] == HOSTILE.replace("\x00", "�").replace("\u202e", "�")
    assert len(second["name"]) == 300
    assert second["name"].endswith("…")
    assert (second["seed"], second["parameters"], second["seconds"]["train"]) == (None, None, None)
    assert any(setting["key"].startswith("</script>") for setting in values["settings"])


def test_the_page_loads_nothing(make: Make) -> None:
    page = compare([make("a")])
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<link|<script[^>]* src|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_hostile_runs_as_text(
    make: Make, made: Callable[..., Evaluation], labels: np.ndarray, tmp_path: Path
) -> None:
    page = write_page(compare(hostile_runs(make, made, labels)), tmp_path / "page.html")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    body = shown.stdout.split("</style>")[1].split('id="data"')[0]
    assert "CONSOLE" not in shown.stderr, shown.stderr
    assert body.count('aria-sort="descending"') == 1
    assert '<h1 id="title">Robustness of 2 runs</h1>' in body
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in body
    assert '<img src="x"' not in body
    assert body.count('class="plot"') == 2
    assert "None between the runs shown" not in body


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
