"""AttackSweep in a real Trainer, compared with evaluate()."""

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

Test = Callable[..., None]
FAST = {"fgsm": FGSM(eps=0.1)}
ATTACKS = {**FAST, "pgd": PGD(eps=0.1, steps=4)}
GRID = {"linf": [0.05, 0.2]}


@dataclass(frozen=True)
class Pressed(Attack):
    """Raises Ctrl-C at a batch of 10, the last one here."""

    name: ClassVar[str] = "pressed"
    error: type[BaseException] = KeyboardInterrupt

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, index: Any = None, **rest: Any) -> AttackResult:
        if len(x) <= 10:
            raise self.error("stopped on purpose")
        return FGSM(eps=0.1).run(model, x, y, index=index)

    def _search(self, *args: Any) -> Tensor:
        raise NotImplementedError


def found(sweep: AttackSweep) -> Evaluation:
    assert sweep.evaluation is not None
    return sweep.evaluation


def test_a_single_name_is_a_list_of_one_and_null_an_empty_one() -> None:
    assert AttackSweep(ATTACKS, on_all="pgd", own_eps="pgd").on_all == ("pgd",)
    assert AttackSweep(ATTACKS, own_eps="pgd").sweep.own_eps == ("pgd",)
    assert AttackSweep(ATTACKS, knowledge="greybox").sweep.knowledge == ("greybox",)
    assert AttackSweep(ATTACKS, on_all=None, own_eps=None, grid=None, certificates=None).on_all == ()
    with pytest.raises(ValueError, match="knowledge must name at least one of"):
        AttackSweep(ATTACKS, knowledge=None)
    with pytest.raises(ValueError, match="a sweep needs at least one attack"):
        AttackSweep(None, own_eps="pgd")  # type: ignore[arg-type]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_the_table_equals_that_of_evaluate(
    module: RobustClassifier, data: MNIST, run_test: Test, inference_mode: bool
) -> None:
    sweep = AttackSweep(ATTACKS, grid=GRID, seed=3)
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    with torch.no_grad():
        run_test(sweep, inference_mode=inference_mode)
    expected = evaluate(module.net, data, ATTACKS, grid=GRID, seed=3)
    pd.testing.assert_frame_equal(found(sweep).to_frame(), expected.to_frame())
    metas = [dict(evaluation.meta) for evaluation in (found(sweep), expected)]
    assert {*metas[0].pop("seconds")} == {*metas[1].pop("seconds")} == {*ATTACKS}
    assert metas[0] == metas[1]
    assert found(sweep).complete
    assert sweep.write_error is None
    assert 0 < found(sweep).worst_case(eps=0.1) < found(sweep).clean_accuracy
    assert all(torch.equal(value, before[name]) for name, value in module.net.state_dict().items())
    assert all(p.grad is None for p in module.net.parameters())


def test_the_table_curves_and_figures_are_written(run_test: Test, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluation"
    sweep = AttackSweep(ATTACKS, grid=GRID, folder=folder, curve_linf=0.4)
    run_test(sweep, logger=CSVLogger(tmp_path / "csv"))
    pd.testing.assert_frame_equal(Evaluation.load(tmp_path / "run").to_frame(), found(sweep).to_frame())
    for distance, end in (("l2", 10.0), ("linf", 0.4)):
        written = pd.read_csv(folder / f"curves_{distance}.csv")
        assert list(written["attack"].unique()) == ["fgsm", "pgd"]
        for attack, rows in written.groupby("attack"):
            assert rows["distance"].iloc[[0, -1]].tolist() == [0, end]
            expected = found(sweep).curve(attack, distance=distance, at=rows["distance"])
            assert rows["accuracy"].tolist() == pytest.approx(expected["accuracy"].tolist())
        assert (folder / f"curves_{distance}.png").stat().st_size > 1000
        assert "<svg" in (folder / f"curves_{distance}.svg").read_text()
    logged = pd.concat(pd.read_csv(file) for file in (tmp_path / "csv").rglob("metrics.csv"))
    value = logged["robust/pgd@linf=0.1"].dropna().tolist()
    assert value == pytest.approx([found(sweep).accuracy(attack="pgd", eps=0.1)])


def test_a_write_error_keeps_the_evaluation_and_a_second_test_starts_anew(run_test: Test, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sweep = AttackSweep(FAST, folder=tmp_path / "file" / "evaluation")
    with pytest.warns(UserWarning, match="could not write the evaluation"):
        run_test(sweep)
    assert isinstance(sweep.write_error, OSError)
    assert found(sweep).n == 90
    sweep.folder = None
    run_test(sweep)
    assert sweep.write_error is None
    assert len(found(sweep).to_frame()) == 90


def test_an_interrupt_or_error_keeps_the_finished_part(
    module: RobustClassifier, data: MNIST, run_test: Test, tmp_path: Path
) -> None:
    sweep = AttackSweep({**FAST, "pressed": Pressed()}, folder=tmp_path)
    with pytest.raises(SystemExit):
        run_test(sweep)
    assert not found(sweep).complete
    assert found(sweep).n == 80
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert (stored["complete"], stored["meant"]) == (False, 90)
    assert Evaluation.load(tmp_path).caveat == "cut short, of 90"
    assert "short, of 90)" in (tmp_path / "curves_l2.svg").read_text()
    whole = evaluate(module.net, [tuple(part[:80] for part in data.tensors("test"))], FAST)
    kept = found(sweep).to_frame().query("attack == 'fgsm'").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.drop(columns="l2"), whole.to_frame().drop(columns="l2"))
    sweep = AttackSweep({"pressed": Pressed(error=ZeroDivisionError)})
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        run_test(sweep)
    assert not found(sweep).complete


@pytest.mark.parametrize("knowledge", [("greybox", "adaptive"), ("greybox",)])
def test_each_kind_of_knowledge_is_drawn_if_there_are_several(
    knowledge: tuple[str, ...], run_test: Test, tmp_path: Path
) -> None:
    folder = tmp_path / "my-run" / "evaluation"
    sweep = AttackSweep(FAST, knowledge=knowledge, folder=folder)
    run_test(sweep, logger=CSVLogger(tmp_path / "csv"))
    several = {"knowledge_fgsm_l2", "knowledge_fgsm_linf"} if len(knowledge) > 1 else set()
    assert {file.stem for file in folder.glob("*.png")} == {"curves_l2", "curves_linf", *several}
    assert set(pd.read_csv(folder / "curves_l2.csv")["knowledge"]) == {*knowledge}
    assert sweep.write_error is None
    assert all("my-run" in (folder / f"{name}.svg").read_text() for name in several)


def test_examples_of_plain_loaders_are_numbered(
    module: RobustClassifier, digits: tuple[Tensor, Tensor], run_test: Test
) -> None:
    sweep, loader = AttackSweep(FAST), DataLoader(TensorDataset(*(part[:50] for part in digits)), batch_size=20)
    run_test(sweep, loader=loader)
    pd.testing.assert_frame_equal(found(sweep).to_frame(), evaluate(module.net, loader, FAST).to_frame())


def test_several_loaders_are_an_error(net: nn.Module, trainer: Callable[..., pl.Trainer]) -> None:
    class Several(pl.LightningModule):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            raise NotImplementedError

    loader = DataLoader(TensorDataset(torch.zeros(2, 1, 28, 28), torch.zeros(2)))
    with pytest.raises(ValueError, match="one test loader"):
        trainer(AttackSweep(FAST)).test(Several(), dataloaders=[loader, loader], verbose=False)


def test_a_loader_without_a_length(digits: tuple[Tensor, Tensor], run_test: Test) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            yield from zip(digits[0][:30], digits[1][:30], strict=True)

    sweep = AttackSweep(FAST)
    run_test(sweep, loader=DataLoader(Stream(), batch_size=20))
    assert found(sweep).n == 30
