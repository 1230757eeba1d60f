"""`robustlit explore`, on pictures in colour with names of classes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_colour_pictures_are_explored_side_by_side(run: Run, capsys: Capture, pictures: Path) -> None:
    data = [f"data.root={pictures}", "data.image_size=12", "data.num_workers=0", "eps=8/255"]
    cut = ["trainer.max_epochs=8", "data.batch_size=20", "logger=none", "sweep=none", "validation_attack.steps=1"]
    for name in ("one", "two"):
        recipe = ["recipe=standard", "model=small_cnn", "data=image_folder", f"seed={len(name) + (name == 'two')}"]
        assert run("train", *recipe, *data, *cut, f"name={name}") == 0
    capsys.readouterr()
    words = ["runs/one", "runs/two", "--n", "6", "--pairs", "1", "--side", "9", "--out", "seen", data[0]]
    assert run("explore", *words) == 0
    files = {f"seen/{stem}.png" for stem in ("slices", "neighbours", "pairs")} | {"seen/explore.json"}
    assert {*capsys.readouterr().out.split()} == files
    found = json.loads(Path("seen/explore.json").read_text())
    assert {*found["slices"]} == {*found["neighbours"]} == {*found["pairs"]} == {"one", "two"}
    for name in ("one", "two"):
        assert 0 < found["slices"][name]["distance"] < found["slices"][name]["other_distance"]
        assert np.array(found["pairs"][name]["distance"], dtype=float).shape == (3, 3)
    assert run("explore", "runs/one", "--example", "999", data[0]) == 1
    assert "the test split has no image of that number" in capsys.readouterr().err
    assert run("explore", "runs/one") == 1
    assert "the recipe must give data.root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data.root=x"], 2, "which runs? robustlit explore runs/NAME"),
        (["runs/none"], 1, "there is no checkpoint at runs/none"),
        (["runs/none", "--n", "-1"], 2, "must be at least 0"),
    ],
)
def test_what_cannot_be_explored_is_one_line(
    run: Run, capsys: Capture, words: list[str], code: int, message: str
) -> None:
    assert run("explore", *words) == code
    assert message in capsys.readouterr().err
    assert not Path("explore").exists()
