"""The callback Verdict: judges the sweep before it, writes and logs what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import nn

from robustlit.attacks import PGD
from robustlit.callbacks import AttackSweep, Verdict
from robustlit.data import MNIST
from robustlit.evaluation import Verdict as Judged
from robustlit.objectives import Standard
from robustlit.training import RobustClassifier


def sweep_and_judge(net: nn.Module, callbacks: list[pl.Callback], logger: Any = False, size: int = 100) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, enable_checkpointing=False, callbacks=callbacks, inference_mode=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = RobustClassifier(net, Standard(), torch.optim.Adam, num_classes=10)
    trainer.test(module, datamodule=MNIST(test_size=size, val_size=100), verbose=False)


def test_it_judges_writes_and_logs(tmp_path: Path, net: nn.Module) -> None:
    folder = tmp_path / "my-run" / "evaluation"
    judge = Verdict(folder=folder)
    sweep = AttackSweep({"pgd": PGD(eps=0.02, steps=40)}, folder=folder)
    sweep_and_judge(nn.Sequential(net, nn.Softmax(1)), [sweep, judge], CSVLogger(tmp_path, name="", version="csv"))
    assert judge.verdict is not None
    assert judge.verdict == Judged.load(tmp_path / "my-run")
    assert {file.name for file in folder.glob("verdict.*")} == {"verdict.json", "verdict.png", "verdict.svg"}
    assert "my-run: verdict FAIL" in (folder / "verdict.svg").read_text()
    for distance in ("l2", "linf"):  # drawn by the sweep, before there was a verdict
        assert "verdict FAIL (quick, L∞ 0.02)" in (folder / f"curves_{distance}.svg").read_text()
    assert 16 in {check.number for check in judge.verdict.failed}
    logged = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    assert logged["verdict/fail"].dropna().tolist() == [judge.verdict.counts["FAIL"]]


def test_wandb_gets_the_table_and_the_figure(tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = WandbLogger(mode="offline", save_dir=tmp_path)
    logged: dict[str, Any] = {}
    run = logger.experiment
    monkeypatch.setattr(type(run), "log", lambda self, values, **rest: logged.update(values))
    judge = Verdict()
    sweep_and_judge(net, [AttackSweep({"pgd": PGD(eps=0.02, steps=5)}), judge], logger)
    assert judge.verdict is not None
    assert len(logged["verdict/table"].data) == len(judge.verdict.checks)
    assert type(logged["figures/verdict"]).__name__ == "Image"
    assert run.summary["verdict"] == judge.verdict.status
    run.finish()


def test_the_full_profile_distils_what_it_crafts_on(net: nn.Module) -> None:
    sweep = AttackSweep({"pgd": PGD(eps=0.1, steps=5)}, substitute_images=300)
    judge = Verdict("full")
    sweep_and_judge(net, [sweep, judge], size=20)
    assert judge.verdict is not None
    check = {check.number: check for check in judge.verdict.checks}[14]
    assert check.finding.startswith("crafted on another net, there fall alone")
    assert sweep.sweep.substitute is None  # the evaluation's own stays what it was


def test_it_needs_a_sweep_before_it(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="put one before it"):
        sweep_and_judge(net, [Verdict(), AttackSweep({"pgd": PGD(eps=0.1)})])
    with pytest.raises(ValueError, match="profile must be one of quick, full, got 'long'"):
        Verdict("long")


def test_nothing_to_judge_or_a_folder_that_cannot_be_written_cost_nothing_else(tmp_path: Path, net: nn.Module) -> None:
    judge, sweep = Verdict(), AttackSweep({"pgd": PGD(eps=0.1, steps=2)}, knowledge=["greybox"])
    with pytest.warns(UserWarning, match="there is no verdict: there is no adaptive budget attack"):
        sweep_and_judge(net, [sweep, judge])
    assert judge.verdict is None
    assert sweep.evaluation is not None
    (tmp_path / "file").touch()
    judge = Verdict(folder=tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="could not write the verdict"):
        sweep_and_judge(net, [AttackSweep({"pgd": PGD(eps=0.1, steps=2)}), judge])
    assert judge.verdict is not None
