"""Progress: lines without a terminal, a bar on a terminal."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from io import StringIO

import pytest
import pytorch_lightning as pl
from rich.console import Console

from robustlit.attacks import FGSM, PGD
from robustlit.callbacks import AttackSweep, Progress
from robustlit.callbacks import progress as progress_module
from robustlit.callbacks.progress import sweep_report
from robustlit.data import MNIST
from robustlit.training import RobustClassifier

MakeTrainer = Callable[..., pl.Trainer]
ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=2)}


def bar(terminal: bool, **settings: float) -> tuple[Progress, StringIO]:
    out = StringIO()
    return Progress(console=Console(force_terminal=terminal, file=out, width=100, no_color=True), **settings), out


def test_lines_for_epochs_and_attacks_without_a_terminal(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer
) -> None:
    progress, out = bar(False, seconds_between_lines=0)
    module.validation_attack = FGSM(eps=0.05)
    runner = trainer(progress, AttackSweep(ATTACKS), max_epochs=2)
    runner.fit(module, datamodule=data)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {number}/2  loss \d\.\d+  val clean [\d.]+%  robust [\d.]+%  [\d.]+ s", line)
    assert f"robust {float(runner.callback_metrics['val/robust_accuracy']):.2%}" in lines[1]
    assert f"val clean {float(runner.callback_metrics['val/accuracy']):.2%}" in lines[1]
    out.truncate(0)
    runner.test(module, datamodule=data, verbose=False)
    lines = [line.lstrip("\0") for line in out.getvalue().splitlines()]
    shares = [re.fullmatch(r"attacking: (fgsm|pgd)  (\d+)%  \d+ s left", line) for line in lines]
    assert all(shares)
    found = [int(m[2]) for m in shares if m]
    assert found == sorted(found)
    assert {11, 33, 44, 67, 78, 100} <= {*found}  # ends of FGSM and of PGD-2 on three batches, and steps between
    assert "100%  0 s left" in lines[-1]


def test_the_time_left_is_in_proportion_and_lines_are_rare(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress, out = bar(False, seconds_between_lines=10)
    progress.on_test_start(trainer(), None)  # type: ignore[arg-type]
    for second, share in ((3, 0.1), (12, 0.25), (15, 0.3), (21, 0.5), (23, 0.75)):
        now[0] = 100.0 + second
        progress.sweep_progress("pgd", share)
    assert out.getvalue().splitlines() == ["attacking: pgd  25%  36 s left", "attacking: pgd  75%  8 s left"]


def test_the_time_left_starts_anew_where_the_other_images_begin(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress, out = bar(False, seconds_between_lines=10)
    progress.on_test_start(trainer(), None)  # type: ignore[arg-type]
    first, others = sweep_report(progress, 0.5, 0.5), sweep_report(progress, 0.0, 0.5, others=True)
    for second, report, share in ((80, first, 0.2), (100, others, 0.1), (111, others, 0.5)):
        now[0] = 100.0 + second
        report("pgd", share)
    assert out.getvalue().splitlines() == [
        "attacking: pgd  60%  53 s left", "attacking: pgd, other images  25%  33 s left"
    ]  # fmt: skip


@pytest.mark.parametrize("batch_size", [40, 25])
def test_both_parts_of_a_divided_sweep_go_from_0_to_100(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, batch_size: int
) -> None:
    data.eval_batch_size = batch_size
    progress, out = bar(False, seconds_between_lines=0)
    trainer(progress, AttackSweep(ATTACKS, images=40, on_all=["pgd"])).test(module, datamodule=data, verbose=False)
    shares: dict[str, list[int]] = {"": [], ", other images": []}
    for line in out.getvalue().splitlines():
        found = re.fullmatch(r"attacking: (?:fgsm|pgd)(, other images)?  (\d+)%  \d+ s left", line)
        assert found, line
        shares[found[1] or ""].append(int(found[2]))
    for each in shares.values():
        assert each == sorted(each)
        assert each[0] <= 50
        assert each[-1] == 100


def test_a_bar_on_a_terminal(module: RobustClassifier, data: MNIST, trainer: MakeTrainer) -> None:
    progress, out = bar(True, refresh_per_second=1000)
    runner = trainer(progress, AttackSweep(ATTACKS), max_epochs=2)
    runner.fit(module, datamodule=data)
    for part in ("\x1b[", "epoch 1/2", "/6", "epoch 2/2  loss"):  # of six steps
        assert part in out.getvalue()
    out.truncate(0)
    runner.test(module, datamodule=data, verbose=False)
    assert "attacking: pgd" in out.getvalue()
    assert progress._bars is None  # closed at the end


@pytest.mark.parametrize("terminal", [True, False])
def test_disabled_it_prints_nothing(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, terminal: bool
) -> None:
    progress, out = bar(terminal, seconds_between_lines=0)
    runner = trainer(progress, AttackSweep({"fgsm": FGSM(eps=0.1)}))
    progress.disable()
    assert not progress.is_enabled
    runner.fit(module, datamodule=data)
    runner.test(module, datamodule=data, verbose=False)
    progress.print("nor this")
    assert out.getvalue() == ""
    progress.enable()
    progress.print("but this, [brackets]")
    assert "but this, [brackets]" in out.getvalue()


def test_the_bar_is_gone_when_an_error_leaves(module: RobustClassifier, data: MNIST, trainer: MakeTrainer) -> None:
    class Failing(pl.Callback):
        def on_train_batch_end(self, *arguments: object) -> None:
            raise ZeroDivisionError

    progress, _ = bar(True)
    with pytest.raises(ZeroDivisionError):
        trainer(progress, Failing()).fit(module, datamodule=data)
    assert progress._bars is None


def test_a_running_bar_is_left_out_of_copies(trainer: MakeTrainer) -> None:
    progress, _ = bar(True)
    progress.on_test_start(trainer(), None)  # type: ignore[arg-type]
    for copied in (copy.deepcopy(progress), pickle.loads(pickle.dumps(progress))):
        assert copied._bars is None
        copied.sweep_progress("pgd", 0.5)
        copied.print("it prints")
    assert progress._bars is not None
    progress.disable()
