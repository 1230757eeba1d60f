"""The last checkpoint is where training is; the newest that can be read is resumed from; a full disk costs none."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from robustlit.attacks import PGD
from robustlit.data import MNIST
from robustlit.experiment.checkpoints import SaveLast, WholeFiles, keep_best, newest_readable
from robustlit.experiment.recipes import ConfigError
from robustlit.models import SmallCNN
from robustlit.objectives import Standard
from robustlit.training import CheckpointError, RobustClassifier
from robustlit.training.checkpoint import pack

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
# Three steps an epoch; the rate of 0 leaves the net, so that the monitored value never improves after the first.
STUCK = ["recipe=standard", "model=small_cnn", "data.train_size=300", "data.batch_size=100", "data.val_size=100",
         "data.test_size=20", "validation_attack.steps=1", "sweep=none", "logger=none", "schedule=null",
         "optimizer.lr=0", "trainer.precision=32-true", "callbacks.images=null"]  # fmt: skip


def step(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_a_run_that_stops_improving_resumes_at_its_last_step(run: Run, tmp_path: Path, capsys: Capture) -> None:
    checkpoints = tmp_path / "runs" / "x" / "checkpoints"
    assert run("train", *STUCK, "trainer.max_epochs=3", "name=x") == 0
    assert (step(checkpoints / "best.ckpt"), step(checkpoints / "last.ckpt")) == (3, 9)
    assert run("train", *STUCK, "trainer.max_epochs=4", "name=x", "resume=auto") == 0
    assert "after step 9 (last.ckpt)" in capsys.readouterr().err
    assert (step(checkpoints / "best.ckpt"), step(checkpoints / "last.ckpt")) == (3, 12)


def test_the_best_checkpoint_is_chosen_by_what_validation_logs(run: Run, tmp_path: Path, capsys: Capture) -> None:
    plain, attacked = (
        RobustClassifier(SmallCNN(), Standard(), torch.optim.Adam, num_classes=10, validation_attack=attack)
        for attack in (None, PGD(eps=0.1))
    )
    assert keep_best(tmp_path, "val/robust_accuracy", attacked).monitor == "val/robust_accuracy"
    for net, monitor in ((plain, "val/robust_accuracy"), (attacked, "val/certified_accuracy"), (attacked, "val/loss")):
        with pytest.raises(ConfigError, match=f"{' or '.join(net.monitors)}, got {monitor}"):
            keep_best(tmp_path, monitor, net)
    # Elsewhere the names are not known.
    for module, checked in ((pl.LightningModule(), True), (plain, False)):
        assert keep_best(tmp_path, "val/mine", module, checked=checked).monitor == "val/mine"
    listed = "; a module of yours that logs another names it in its attribute monitors"
    for monitor, hint in (("train/loss", listed), ("val/robust_acuracy", "; did you mean val/robust_accuracy?")):
        assert run("train", *STUCK, "trainer.max_epochs=1", "name=x", f"monitor={monitor}") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"is best, val/accuracy or val/robust_accuracy, got {monitor}{hint}")
    assert not (tmp_path / "runs" / "x").exists()


class Steps(pl.Callback):
    """Notes the steps at which a checkpoint is saved."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self.saved.append(trainer.global_step)


@pytest.mark.parametrize(
    ("minutes", "settings", "saved"),
    [
        (None, {}, [3, 6]),
        (10, {}, [3, 6]),
        (1e-9, {}, [1, 2, 3, 4, 5, 6]),
        (1e-9, {"accumulate_grad_batches": 2}, [1, 2, 3, 4]),  # steps of two batches, and of the last one
        (1e-9, {"val_check_interval": 2}, [1, 3, 4, 6]),  # not before a validation
        (1e-9, {"max_steps": 5}, [1, 2, 3, 4, 5, 5]),
        (1e-9, {"limit_val_batches": 0, "check_val_every_n_epoch": 2}, [1, 2, 3, 4, 5, 6]),
        (1e-9, {"fast_dev_run": True}, []),
    ],
)
def test_it_saves_after_every_epoch_and_when_minutes_have_passed(
    minutes: float | None, settings: dict[str, Any], saved: list[int], tmp_path: Path
) -> None:
    steps = Steps()
    module = RobustClassifier(SmallCNN(), Standard(), partial(torch.optim.Adam, lr=1e-3), num_classes=10)
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 2,
                             "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    trainer = pl.Trainer(
        **{**quiet, **settings}, callbacks=[SaveLast(tmp_path, minutes), steps], plugins=[WholeFiles()]
    )
    trainer.fit(module, datamodule=MNIST(train_size=300, val_size=100, batch_size=100, eval_batch_size=100))
    assert steps.saved == saved
    if saved:
        assert step(tmp_path / "last.ckpt") == saved[-1]


def checkpoint(path: Path, step: int) -> None:
    torch.save({"state_dict": {}, "robustlit": pack(None), "global_step": step}, path)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("last", "best", "found"),
    [(6, 3, "last"), (3, 3, "last"), (3, 6, "best"), ("cut", 3, "best"), (6, "cut", "last"), (6, None, "last"),
     (None, 3, "best"), (None, None, None), ("cut", "cut", "error"), ("cut", None, "error")],
)  # fmt: skip
def test_the_newest_that_can_be_read_is_resumed_from(
    last: Any, best: Any, found: str | None, tmp_path: Path, capsys: Capture
) -> None:
    for name, content in (("last", last), ("best", best)):
        path = tmp_path / f"{name}.ckpt"
        if content is not None:
            checkpoint(path, 6 if content == "cut" else content)
        if content == "cut":
            path.write_bytes(path.read_bytes()[:-300])
    if found == "error":
        with pytest.raises(CheckpointError, match=r"last\.ckpt is not a checkpoint that can be read"):
            newest_readable(tmp_path)
        return
    newest = newest_readable(tmp_path)
    assert (newest and newest[0].stem) == found
    cut = next((name for name, content in (("last", last), ("best", best)) if content == "cut"), None)
    assert (f"resuming from {tmp_path / str(found)}.ckpt" in capsys.readouterr().err) == (cut is not None)


@pytest.mark.slow
@pytest.mark.faults
def test_a_disk_that_fills_up_keeps_the_former_checkpoint_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    save, calls = WholeFiles.save_checkpoint, []

    def full(self: WholeFiles, content: Any, path: Any, storage_options: Any = None) -> None:
        calls.append(path)
        if len(calls) == 4:
            monkeypatch.setattr(
                "os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
        save(self, content, path, storage_options)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", full)
    overrides = [*STUCK, "trainer.max_epochs=4", "name=x", "resume=auto"]
    assert run("train", *overrides) == 1
    error = capsys.readouterr().err
    last = tmp_path / "runs" / "x" / "checkpoints" / "last.ckpt"
    assert re.search(rf"^error: .*cannot write {last}: No space left on device.*$", error, re.MULTILINE), error
    assert "Traceback" not in error
    assert step(last) == 6
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run("train", *overrides) == 0
    assert step(last) == 12
    assert not list(last.parent.glob("*.part"))
