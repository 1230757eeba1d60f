"""What a Trainer is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger

from robustlit.experiment import trainer
from robustlit.experiment.trainer import keep_metrics


@pytest.mark.faults
def test_the_metrics_before_a_stop_are_kept(tmp_path: Path) -> None:
    for part in range(3):
        keep_metrics(tmp_path / "csv" / "metrics.csv")
        logger = CSVLogger(tmp_path, "csv", "")
        logger.log_metrics({"loss": part}, step=part)
        logger.save()
    kept = {file.name: file.read_text().split()[1] for file in (tmp_path / "csv").glob("*.csv")}
    assert kept == {"metrics-1.csv": "0,0", "metrics-2.csv": "1,1", "metrics.csv": "2,2"}


def test_attacks_that_would_share_a_folder_are_refused_before_the_training(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["+sweep.attacks.pgd-greybox._target_=robustlit.attacks.PGD", "save_adversarials=true", "logger=none"]
    assert run("train", "recipe=standard", "sweep=defense", *other) == 1
    assert "two attacks would share the folder 'pgd-greybox_linf_0." in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_fewer_test_images_than_processes_are_refused_before_the_training(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "data.test_size=1", "sweep=none", "logger=none"]
    assert run("train", "recipe=standard", *two) == 1
    message = "error: 1 test examples cannot be shared among 2 processes: every process needs one"
    assert capsys.readouterr().err.count(message) == 1
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_by_multiprocessing_are_refused_before_the_training(
    strategy: str, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["trainer.devices=2", "trainer.accelerator=cpu", f"trainer.strategy={strategy}", "sweep=none", "logger=none"]
    assert run("train", "recipe=standard", *two) == 1
    message = f"error: trainer.strategy={strategy} starts its processes by multiprocessing"
    assert capsys.readouterr().err.count(message) == 1
    assert not list((tmp_path / "runs").glob("*"))


def test_a_process_that_computes_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: called.append("memory"))
    monkeypatch.setattr(trainer, "watch_parent", lambda: called.append("parent"))
    trainer.prepare_process()
    assert called == ["parent", "memory"]
