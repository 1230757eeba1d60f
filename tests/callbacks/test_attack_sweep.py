"""AttackSweep through a real Trainer, against evaluate()."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from robustlit.attacks import FGSM, PGD, Attack, AttackResult
from robustlit.callbacks import AttackSweep
from robustlit.data import MNIST
from robustlit.evaluation import evaluate
from robustlit.results import Evaluation
from robustlit.training import RobustClassifier

MakeTrainer = Callable[..., pl.Trainer]
ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=4)}
GRID = {"linf": [0.05, 0.2]}


@dataclass(frozen=True)
class Pressed(Attack):
    """Ctrl-C when a batch of 10 comes up, the last one here."""

    name: ClassVar[str] = "pressed"
    error: type[BaseException] = KeyboardInterrupt

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, index: Any = None, **rest: Any) -> AttackResult:
        if len(x) <= 10:
            raise self.error("stopped on purpose")
        return FGSM(eps=0.1).run(model, x, y, index=index)

    def _search(self, *args: Any) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("inference_mode", [True, False])
def test_the_table_is_that_of_evaluate(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, inference_mode: bool
) -> None:
    sweep = AttackSweep(ATTACKS, grid=GRID, seed=3)
    trainer(sweep, inference_mode=inference_mode).test(module, datamodule=data, verbose=False)
    assert sweep.evaluation is not None
    expected = evaluate(module.net, data, ATTACKS, grid=GRID, seed=3)
    pd.testing.assert_frame_equal(sweep.evaluation.to_frame(), expected.to_frame())
    assert sweep.evaluation.meta == expected.meta
    assert sweep.evaluation.complete
    assert sweep.write_error is None
    assert 0 < sweep.evaluation.worst_case(eps=0.1) < sweep.evaluation.clean_accuracy


def test_a_second_test_forgets_the_first(module: RobustClassifier, data: MNIST, trainer: MakeTrainer) -> None:
    sweep = AttackSweep({"fgsm": FGSM(eps=0.1)})
    runner = trainer(sweep)
    for _ in range(2):
        runner.test(module, datamodule=data, verbose=False)
        assert sweep.evaluation is not None
        assert len(sweep.evaluation.to_frame()) == 90


def test_the_table_curves_and_figures_are_written(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "evaluation"
    logger = CSVLogger(tmp_path / "csv")
    sweep = AttackSweep(ATTACKS, grid=GRID, folder=folder, curve_linf=0.4)
    trainer(sweep, logger=logger).test(module, datamodule=data, verbose=False)
    assert sweep.evaluation is not None
    pd.testing.assert_frame_equal(Evaluation.load(tmp_path / "run").to_frame(), sweep.evaluation.to_frame())
    for distance, end in (("l2", 10.0), ("linf", 0.4)):
        written = pd.read_csv(folder / f"curves_{distance}.csv")
        assert list(written["attack"].unique()) == ["fgsm", "pgd"]
        for attack, rows in written.groupby("attack"):
            assert rows["distance"].iloc[[0, -1]].tolist() == [0, end]
            expected = sweep.evaluation.curve(attack, distance=distance, at=rows["distance"])
            assert rows["accuracy"].tolist() == pytest.approx(expected["accuracy"].tolist())
        assert (folder / f"curves_{distance}.png").stat().st_size > 1000
        assert "<svg" in (folder / f"curves_{distance}.svg").read_text()
    logged = pd.concat(pd.read_csv(file) for file in (tmp_path / "csv").rglob("metrics.csv"))
    value = logged["robust/pgd@linf=0.1"].dropna().tolist()
    assert value == pytest.approx([sweep.evaluation.accuracy(attack="pgd", eps=0.1)])


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    sweep = AttackSweep({"fgsm": FGSM(eps=0.1)}, folder=tmp_path / "file" / "evaluation")
    with pytest.warns(UserWarning, match="could not write the evaluation"):
        trainer(sweep).test(module, datamodule=data, verbose=False)
    assert isinstance(sweep.write_error, OSError)
    assert sweep.evaluation is not None
    assert sweep.evaluation.n == 90


def test_an_interrupt_keeps_and_writes_the_finished_part(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path
) -> None:
    attacks = {"fgsm": FGSM(eps=0.1), "pressed": Pressed()}
    sweep = AttackSweep(attacks, folder=tmp_path)
    with pytest.raises(SystemExit):
        trainer(sweep).test(module, datamodule=data, verbose=False)
    assert sweep.evaluation is not None
    assert not sweep.evaluation.complete
    assert sweep.evaluation.n == 80
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["complete"] is False
    assert stored["meant"] == 90
    assert Evaluation.load(tmp_path).caveat == "cut short, of 90"
    assert "short, of 90)" in (tmp_path / "curves_l2.svg").read_text()
    x, y, index = (part[:80] for part in data.tensors("test"))
    whole = evaluate(module.net, [(x, y, index)], {"fgsm": FGSM(eps=0.1)})
    kept = sweep.evaluation.to_frame().query("attack == 'fgsm'").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.drop(columns="l2"), whole.to_frame().drop(columns="l2"))


def test_an_error_in_a_later_batch_is_raised_and_the_finished_part_kept(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer
) -> None:
    sweep = AttackSweep({"pressed": Pressed(error=ZeroDivisionError)})
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        trainer(sweep).test(module, datamodule=data, verbose=False)
    assert sweep.evaluation is not None
    assert not sweep.evaluation.complete


def test_several_kinds_of_knowledge_have_their_figures(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path
) -> None:
    folder = tmp_path / "my-run" / "evaluation"
    sweep = AttackSweep({"fgsm": FGSM(eps=0.1)}, knowledge=("greybox", "adaptive"), folder=folder)
    trainer(sweep).test(module, datamodule=data, verbose=False)
    drawn = {file.stem for file in folder.glob("*.png")}
    assert drawn == {"curves_l2", "curves_linf", "knowledge_fgsm_l2", "knowledge_fgsm_linf"}
    assert "my-run" in (folder / "knowledge_fgsm_l2.svg").read_text()


def test_what_only_a_greybox_attacker_found_is_written_too(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path
) -> None:
    sweep = AttackSweep({"fgsm": FGSM(eps=0.1)}, knowledge=("greybox",), folder=tmp_path)
    trainer(sweep, logger=CSVLogger(tmp_path / "csv")).test(module, datamodule=data, verbose=False)
    assert set(pd.read_csv(tmp_path / "curves_l2.csv")["knowledge"]) == {"greybox"}
    assert sweep.write_error is None


def test_plain_loaders_are_numbered(
    module: RobustClassifier, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    x, y = digits[0][:50], digits[1][:50]
    sweep = AttackSweep({"fgsm": FGSM(eps=0.1)})
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    trainer(sweep).test(module, dataloaders=loader, verbose=False)
    assert sweep.evaluation is not None
    expected = evaluate(module.net, loader, {"fgsm": FGSM(eps=0.1)})
    pd.testing.assert_frame_equal(sweep.evaluation.to_frame(), expected.to_frame())


def test_several_loaders_would_mix_up_their_examples(
    net: nn.Module, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    class Several(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.net(batch[0])

    loader = DataLoader(TensorDataset(digits[0][:50], digits[1][:50]), batch_size=20)
    with pytest.raises(ValueError, match="one test loader"):
        trainer(AttackSweep({"fgsm": FGSM(eps=0.1)})).test(Several(), dataloaders=[loader, loader], verbose=False)


def test_a_loader_without_a_length_will_do(
    module: RobustClassifier, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            yield from zip(digits[0][:30], digits[1][:30], strict=True)

    sweep = AttackSweep({"fgsm": FGSM(eps=0.1)})
    trainer(sweep).test(module, dataloaders=DataLoader(Stream(), batch_size=20), verbose=False)
    assert sweep.evaluation is not None
    assert sweep.evaluation.n == 30


def test_the_sweep_is_not_disturbed_by_training_mode_or_gradients_off(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer
) -> None:
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    sweep = AttackSweep({"pgd": PGD(eps=0.1, steps=2)})
    with torch.no_grad():
        trainer(sweep).test(module, datamodule=data, verbose=False)
    assert all(torch.equal(value, before[name]) for name, value in module.net.state_dict().items())
    assert all(p.grad is None for p in module.net.parameters())
