"""The callback Verdict: judges the sweep before it, writes and logs the result."""

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
from robustlit.objectives import Standard
from robustlit.results import Evaluation
from robustlit.results import Verdict as Judged
from robustlit.training import RobustClassifier


def sweep_and_judge(net: nn.Module, callbacks: list[pl.Callback], logger: Any = False, size: int = 100) -> None:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", logger=logger, callbacks=callbacks, inference_mode=False, **quiet)
    module = RobustClassifier(net, Standard(), torch.optim.Adam, num_classes=10)
    trainer.test(module, datamodule=MNIST(test_size=size, val_size=100), verbose=False)


@pytest.mark.slow
def test_the_verdict_is_written_and_logged(tmp_path: Path, net: nn.Module) -> None:
    folder = tmp_path / "my-run" / "evaluation"
    judge = Verdict(folder=folder)
    sweep = AttackSweep({"pgd": PGD(eps=0.02, steps=40)}, folder=folder)
    sweep_and_judge(nn.Sequential(net, nn.Softmax(1)), [sweep, judge], CSVLogger(tmp_path, name="", version="csv"))
    assert judge.verdict is not None
    assert judge.verdict == Judged.load(tmp_path / "my-run")
    assert judge.verdict.is_of(Evaluation.load(tmp_path / "my-run")) is True
    assert {file.name for file in folder.glob("verdict.*")} == {"verdict.json", "verdict.png", "verdict.svg"}
    assert "my-run: figure overstated" in (folder / "verdict.svg").read_text()
    for distance in ("l2", "linf"):  # drawn by the sweep, before there was a verdict
        assert "figure overstated" in (folder / f"curves_{distance}.svg").read_text()
    assert 16 in {check.number for check in judge.verdict.failed}
    logged = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    assert logged["verdict/fail"].dropna().tolist() == [judge.verdict.counts["FAIL"]]


@pytest.mark.parametrize(("quoted", "judged"), [((None, None), 0.02), (("linf", 0.05), 0.05), (("linf", 0.3), 0.02)])
def test_the_quoted_budget_is_judged_if_it_was_attacked(
    quoted: tuple[str | None, float | None], judged: float, net: nn.Module
) -> None:
    judge = Verdict(norm=quoted[0], eps=quoted[1])
    sweep_and_judge(net, [AttackSweep({"pgd": PGD(eps=0.02, steps=2)}, grid={"linf": [0.05]}), judge], size=20)
    assert judge.verdict is not None
    assert (judge.verdict.norm, judge.verdict.eps) == ("linf", judged)


@pytest.mark.slow
def test_a_new_sweep_moves_a_verdict_on_another_table_aside(tmp_path: Path, net: nn.Module) -> None:
    def sweep(eps: float) -> AttackSweep:
        return AttackSweep({"pgd": PGD(eps=eps, steps=2)}, folder=tmp_path)

    sweep_and_judge(net, [sweep(0.02), Verdict(folder=tmp_path)], size=20)
    assert (tmp_path / "verdict.json").is_file()
    sweep_and_judge(net, [sweep(0.02)], size=20)  # resumed, and the same came out
    assert Judged.load(tmp_path).is_of(Evaluation.load(tmp_path)) is True
    sweep_and_judge(net, [sweep(0.1)], size=20)
    assert {file.name for file in tmp_path.glob("verdict*")} == {
        f"verdict_of_an_earlier_table.{kind}" for kind in ("json", "png", "svg")
    }


@pytest.mark.slow
def test_wandb_gets_table_and_figure(tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = WandbLogger(mode="offline", save_dir=tmp_path)
    logged: dict[str, Any] = {}
    run = logger.experiment
    monkeypatch.setattr(type(run), "log", lambda self, values, **rest: logged.update(values))
    judge = Verdict()
    sweep_and_judge(net, [AttackSweep({"pgd": PGD(eps=0.02, steps=5)}), judge], logger)
    assert judge.verdict is not None
    assert len(logged["verdict/table"].data) == 1 + len(judge.verdict.checks)
    assert type(logged["figures/verdict"]).__name__ == "Image"
    assert run.summary["verdict"] == judge.verdict.status
    run.finish()


@pytest.mark.slow
def test_the_full_profile_distils_a_substitute(net: nn.Module) -> None:
    sweep = AttackSweep({"pgd": PGD(eps=0.1, steps=5)}, substitute_images=300)
    judge = Verdict("full")
    sweep_and_judge(net, [sweep, judge], size=20)
    assert judge.verdict is not None
    check = {check.number: check for check in judge.verdict.checks}[14]
    assert check.finding.startswith("broken only by examples crafted on another network")
    assert sweep.sweep.substitute is None  # the sweep itself is unchanged


def test_a_sweep_must_come_before_it(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="put one before it"):
        sweep_and_judge(net, [Verdict(), AttackSweep({"pgd": PGD(eps=0.1)})])
    with pytest.raises(ValueError, match="profile must be one of quick, full, got 'long'"):
        Verdict("long")


def test_nothing_to_judge_and_a_write_error_keep_the_evaluation(tmp_path: Path, net: nn.Module) -> None:
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
