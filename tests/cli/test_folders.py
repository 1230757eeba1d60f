"""A net that was trained on folders of pictures, on other folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_classes_of_other_names_and_images_of_another_size_are_refused(
    run: Run, capsys: Capture, pictures: Path
) -> None:
    data = ["data=image_folder", f"data.root={pictures}", "data.image_size=12", "data.num_workers=0", "eps=8/255"]
    short = ["trainer.max_epochs=1", "data.batch_size=20", "logger=none", "sweep=none", "validation_attack.steps=1"]
    train = ["train", "recipe=standard", "model=small_cnn", *data, *short]
    around = ["train", "recipe=jumprelu", "base=runs/one", *data, "logger=none", "sweep=none"]
    evaluate = ["evaluate", "runs/one", data[1], "logger=none", "sweep=none"]
    assert run(*train, "name=one") == 0
    assert run(*evaluate) == 0
    capsys.readouterr()
    assert run(*around, "data.image_size=16") == 1
    assert "base=runs/one does not take images of shape (1, 3, 16, 16)" in capsys.readouterr().err
    for split in ("train", "test"):
        (pictures / split / "brick").rename(pictures / split / "zebra")  # now the last in alphabetical order
    resumed = [*train, "name=more", "ckpt_path=runs/one/checkpoints/last.ckpt", "trainer.max_epochs=2"]
    for words in (evaluate, around, resumed, ["explore", "runs/one", data[1]]):
        capsys.readouterr()
        assert run(*words) == 1, words
        assert re.search("was trained on 3 classes, .* number 0 was brick, here it is grass", capsys.readouterr().err)
    assert run(*evaluate, "class_names=null") == 0


@pytest.mark.slow
def test_jobs_of_a_multirun_with_one_name_are_all_run(run: Run, pictures: Path) -> None:
    data = ["data=image_folder", f"data.root={pictures}", "data.image_size=12", "data.num_workers=0", "eps=8/255"]
    short = ["trainer.max_epochs=1", "data.batch_size=20", "logger=none", "sweep=none", "validation_attack=null"]
    words = ["train", "recipe=standard", "model=small_cnn", *data, *short, "monitor=val/accuracy", "name=mine"]
    assert run(*words, "-m", "seed=0,1") == 0
    assert {folder.name for folder in Path("runs").glob("mine*")} == {"mine-seed_0", "mine-seed_1"}
