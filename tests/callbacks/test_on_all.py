"""AttackSweep with the whole sweep on the first images and a few attacks on all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks import FGSM, PGD, Attack, AttackResult, NearestL2
from robustlit.callbacks import AttackSweep
from robustlit.certify import IBP
from robustlit.data import MNIST
from robustlit.evaluation import Sweep, evaluate
from robustlit.results import Evaluation
from robustlit.training import RobustClassifier

Test = Callable[..., None]
ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=4)}
GRID = {"linf": [0.05, 0.2]}


@dataclass(frozen=True)
class Stopped(Attack):
    """Raises Ctrl-C as soon as it gets images beyond the first `after`."""

    name: ClassVar[str] = "stopped"
    after: int = 50

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, index: Any = None, **rest: Any) -> AttackResult:
        seen.update(index.tolist())
        if len(seen) > self.after:
            raise KeyboardInterrupt
        return FGSM(eps=0.1).run(model, x, y, index=index)

    def _search(self, *args: Any) -> Tensor:
        raise NotImplementedError


seen: set[int] = set()


def both(sweep: AttackSweep) -> tuple[Evaluation, Evaluation]:
    assert sweep.evaluation is not None
    assert sweep.all_images is not None
    return sweep.evaluation, sweep.all_images


@pytest.mark.parametrize("batch_size", [40, 90, 7])  # batches with images of both parts, and without
def test_every_attack_gets_the_first_images_and_some_get_all(
    module: RobustClassifier, data: MNIST, run_test: Test, batch_size: int
) -> None:
    data.eval_batch_size = batch_size
    sweep = AttackSweep(ATTACKS, grid=GRID, seed=3, images=50, on_all=["pgd"])
    run_test(sweep)
    first, everything = both(sweep)
    size = {"train_size": 300, "val_size": 100, "batch_size": 50}
    expected = evaluate(module.net, MNIST(test_size=50, **size), ATTACKS, grid=GRID, seed=3)
    pd.testing.assert_frame_equal(first.to_frame(), expected.to_frame())
    assert (first.n, first.complete, first.of) == (50, True, 10_000)
    assert (everything.n, everything.complete, everything.runs) == (90, True, [("pgd", "adaptive")])
    assert everything.budgets("pgd") == [0.1]
    assert everything.meta["attacks"] == {"pgd": str(ATTACKS["pgd"])}
    alone = evaluate(module.net, MNIST(test_size=90, **size), {"pgd": ATTACKS["pgd"]}, seed=3)
    others = ~alone.table["index"].isin(first.table["index"])
    pd.testing.assert_frame_equal(
        everything.table[others.to_numpy()].reset_index(drop=True), alone.table[others].reset_index(drop=True)
    )
    # The first images were attacked at smaller budgets too, so as many of them are broken, or more.
    assert everything.accuracy(eps=0.1) <= alone.accuracy(eps=0.1)


def test_few_images_are_attacked_as_ever(run_test: Test) -> None:
    sweep = AttackSweep(ATTACKS, images=90, on_all=["pgd"])
    run_test(sweep)
    assert sweep.evaluation is not None
    assert sweep.evaluation.n == 90
    assert sweep.all_images is None


def test_without_attacks_on_all_images_the_others_are_left_alone(run_test: Test) -> None:
    sweep = AttackSweep(ATTACKS, images=20)
    run_test(sweep)
    assert sweep.evaluation is not None
    assert sweep.evaluation.n == 20
    assert sweep.all_images is None


def test_other_loaders_are_attacked_whole(digits: tuple[Tensor, Tensor], run_test: Test) -> None:
    sweep = AttackSweep(ATTACKS, images=5, on_all=["pgd"])
    run_test(sweep, loader=DataLoader(TensorDataset(*(part[:12] for part in digits))))
    assert sweep.evaluation is not None
    assert sweep.evaluation.n == 12


def test_certificates_run_on_all_images_too(run_test: Test) -> None:
    sweep = AttackSweep(
        ATTACKS, images=20, on_all=["fgsm", "ibp"], certificates={"ibp": IBP(0.01, rounds=1), "more": IBP(0.02)}
    )
    run_test(sweep)
    first, everything = both(sweep)
    assert first.certificates is not None
    assert everything.certificates is not None
    assert (first.certificates.names, everything.certificates.names) == (["ibp", "more"], ["ibp"])
    assert first.certificates.accuracy(eps=0.01, certificate="ibp").n == 20
    assert everything.certificates.accuracy(eps=0.01).n == 90
    assert everything.certificates.accuracy(eps=0.01) <= everything.worst_case(eps=0.1) + 0.5


def test_both_tables_are_written_and_logged_and_no_parts_are_left(run_test: Test, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluation"
    sweep = AttackSweep(ATTACKS, images=20, on_all=["pgd"], folder=folder)
    run_test(sweep, logger=CSVLogger(tmp_path / "csv"))
    first, everything = both(sweep)
    for stored, found in ((Evaluation.load(folder), first), (Evaluation.load(folder / "all_images"), everything)):
        pd.testing.assert_frame_equal(stored.to_frame(), found.to_frame())
    assert not [*folder.rglob("parts")]
    logged = pd.concat(pd.read_csv(file) for file in (tmp_path / "csv").rglob("metrics.csv"))
    for name, value in (("robust/pgd@linf=0.1", first), ("all_images/robust/pgd@linf=0.1", everything)):
        assert logged[name].dropna().tolist() == pytest.approx([value.accuracy(attack="pgd", eps=0.1)])
    assert "robust/worst_case@linf=0.1" in logged
    assert not [name for name in logged if name.startswith("all_images/") and "worst_case" in name]  # of PGD alone


@pytest.mark.parametrize(("after", "first_done", "other"), [(10, 0, None), (20, 20, None), (60, 20, 60)])
def test_an_interrupt_says_which_of_both_tables_is_whole(
    data: MNIST, run_test: Test, tmp_path: Path, after: int, first_done: int, other: int | None
) -> None:
    data.eval_batch_size = 20
    seen.clear()
    sweep = AttackSweep({"stopped": Stopped(after)}, images=20, on_all=["stopped"], folder=tmp_path)
    with pytest.raises(SystemExit):
        run_test(sweep)
    if not first_done:
        assert sweep.evaluation is None
        return
    assert sweep.evaluation is not None
    assert (sweep.evaluation.n, sweep.evaluation.complete) == (20, True)
    if other is None:
        assert sweep.all_images is None
        return
    assert sweep.all_images is not None
    assert sweep.all_images.caveat == "cut short, of 90"
    stored = json.loads((tmp_path / "all_images" / "evaluation.json").read_text())
    assert (stored["complete"], stored["meant"]) == (False, 90)


def test_a_stopped_sweep_goes_on_in_both_parts(data: MNIST, run_test: Test, tmp_path: Path) -> None:
    data.eval_batch_size = 20
    whole = AttackSweep(ATTACKS, images=20, on_all=["pgd"], folder=tmp_path)
    whole.keeps_parts = True
    run_test(whole)
    assert len([*tmp_path.rglob("parts/*.parquet")]) == 5  # one batch, and four of others
    again = AttackSweep(ATTACKS, images=20, on_all=["pgd"], folder=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "attack_batch", None)  # nothing is attacked again
        run_test(again)
    assert again.seconds_before > 0
    for a, b in zip(both(whole), both(again), strict=True):
        pd.testing.assert_frame_equal(a.to_frame(), b.to_frame())
    assert not [*tmp_path.rglob("parts")]


def test_kept_batches_of_other_budgets_are_not_taken(run_test: Test, tmp_path: Path) -> None:
    first = AttackSweep(ATTACKS, grid=GRID, own_eps=["fgsm"], folder=tmp_path)
    first.keeps_parts = True
    run_test(first)
    again = AttackSweep(ATTACKS, grid=GRID, folder=tmp_path)
    run_test(again)
    assert again.evaluation is not None
    assert again.evaluation.budgets("fgsm") == [0.05, 0.1, 0.2]


def test_an_attack_can_keep_to_its_own_eps(run_test: Test) -> None:
    sweep = AttackSweep({**ATTACKS, "nearest_l2": NearestL2()}, grid=GRID, own_eps=["fgsm"], images=20)
    run_test(sweep)
    assert sweep.evaluation is not None
    assert sweep.evaluation.budgets("fgsm") == [0.1]
    assert sweep.evaluation.budgets("pgd") == [0.05, 0.1, 0.2]
    assert sweep.evaluation.rests_on(eps=0.05) == ["pgd"]


def test_certificates_alone_do_not_run_on_all_images_and_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match=r"on_all=\[ibp\] names no attack.*on_all=\[.*,ibp\]"):
        AttackSweep(ATTACKS, images=20, on_all=["ibp"], certificates={"ibp": IBP(0.01, rounds=1)})


@pytest.mark.parametrize("settings", [{"own_eps": ["fgms"]}, {"on_all": ["bim"]}])
def test_names_that_nothing_has_are_left_out_with_a_warning(settings: dict[str, Any], run_test: Test) -> None:
    ((key, (name,)),) = settings.items()
    with pytest.warns(UserWarning, match=f"{key} names '{name}'.* it has fgsm, pgd"):
        sweep = AttackSweep(ATTACKS, images=10, **settings)
    run_test(sweep)
    assert sweep.evaluation is not None
    assert sweep.all_images is None


def test_a_sweep_without_the_attack_at_its_own_eps_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AttackSweep(ATTACKS, own_eps=["worst_case"]).sweep.own_eps == ()


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images must be"):
        AttackSweep(ATTACKS, images=0)
    with pytest.raises(ValueError, match="own_eps must be one of fgsm, pgd, got 'bim'"):
        Sweep(ATTACKS, own_eps=["bim"])


def test_the_first_images_come_first_in_their_order_and_predictions_keep_theirs() -> None:
    data = MNIST(val_size=100, eval_batch_size=500)
    first = data.put_first(1000)
    assert first.tolist() == MNIST(test_size=1000, val_size=100).test_indices.tolist()
    numbers = torch.cat([index for _, _, index in data.test_dataloader()])
    assert numbers[:1000].tolist() == first.tolist()
    assert numbers.sort().values.tolist() == [*range(10_000)]
    assert torch.cat([index for _, _, index in data.predict_dataloader()]).tolist() == [*range(10_000)]
    assert MNIST(test_size=30).put_first(50).tolist() == MNIST(test_size=30).test_indices.tolist()
    with pytest.raises(ValueError, match="size must be"):
        data.put_first(0)
