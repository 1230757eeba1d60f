"""What is not finite is never trained on, called robust or saved."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks import PGD
from robustlit.data import MNIST, Batches
from robustlit.experiment.own_net import own_net
from robustlit.experiment.recipes import ConfigError
from robustlit.models import AdvGANDiscriminator, AdvGANGenerator, SmallCNN
from robustlit.models.generator import load_generator, save_generator
from robustlit.objectives import AdversarialTraining, AdversarialWeightPerturbation, Objective, Standard
from robustlit.training import (
    AdvGANTraining,
    CheckpointError,
    NonFiniteError,
    RobustClassifier,
    SubstituteTraining,
    distil,
    load_classifier,
)
from robustlit.training.finite import IN_A_ROW, not_finite

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
NAN, INF = math.nan, math.inf
Digits = tuple[Tensor, Tensor]
MakeTrainer = Callable[..., pl.Trainer]


class Failing:
    """A loss that is spoilt at some calls."""

    def __init__(self, spoil: Callable[[Tensor], Tensor], calls: set[int], objective: Objective | None = None) -> None:
        self.spoil, self.calls, self.count = spoil, calls, -1
        self.objective = objective or Standard()

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Any:
        self.count += 1
        output = self.objective(net, x, y)
        return {**output, "loss": self.spoil(output["loss"])} if self.count in self.calls else output


def gradient_of_nan(loss: Tensor) -> Tensor:
    return loss + (0 * loss).sqrt()  # finite, with the slope 0 / 0


def nan_without_gradient(loss: Tensor) -> Tensor:
    return loss + NAN


SPOILS = {"nan": lambda loss: loss * NAN, "inf": lambda loss: loss + INF, "constant": nan_without_gradient}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def module(objective: Any = None, net: nn.Module | None = None, **changes: Any) -> RobustClassifier:
    settings: dict[str, Any] = {"optimizer": partial(torch.optim.Adam, lr=1e-3), "num_classes": 10, **changes}
    return RobustClassifier(net or small_net(), objective or Standard(), **settings)


def loader(digits: Digits, size: int = 10, change: Callable[[Tensor, Tensor], None] | None = None) -> DataLoader[Any]:
    x, y = digits[0].clone(), digits[1].clone()
    if change is not None:
        change(x, y)
    return DataLoader(TensorDataset(x, y), batch_size=size)


def run(lit: pl.LightningModule, folder: Path, digits: Digits, trainer: MakeTrainer, **changes: Any) -> pl.Trainer:
    kept = ModelCheckpoint(folder, "good", save_top_k=-1, every_n_train_steps=2, enable_version_counter=False)
    given = changes.pop("train", None) or loader(digits)
    fit = trainer(**{"max_steps": 8, "callbacks": [kept], "enable_checkpointing": True, **changes})
    fit.fit(lit, given)
    return fit


def state_of(lit: RobustClassifier) -> list[Tensor]:
    return [value.clone() for value in lit.net.state_dict().values()]


@pytest.mark.parametrize("name", [*SPOILS, "gradient"])
def test_a_step_that_is_not_finite_stops_the_training(
    name: str, tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    lit = module(Failing(SPOILS.get(name, gradient_of_nan), {5}))
    what = "gradient is" if name == "gradient" else f"loss is {'inf' if name == 'inf' else 'nan'}, which is"
    with pytest.raises(NonFiniteError) as caught:
        run(lit, tmp_path, digits, trainer)
    text = str(caught.value)
    assert f"stopped at step 5, epoch 0: the {what} not finite" in text
    assert f"the last good checkpoint is {tmp_path / 'good.ckpt'}" in text
    assert "\n" not in text
    assert [*not_finite(lit.state_dict())] == []  # the optimizer did not use it
    saved = torch.load(tmp_path / "non_finite_step5.pt", weights_only=True)
    assert torch.equal(saved["images"], digits[0][50:60])
    assert torch.equal(saved["labels"], digits[1][50:60])
    assert saved["step"] == 5
    good = torch.load(tmp_path / "good.ckpt", weights_only=True)
    assert good["global_step"] == 4


def test_weights_far_beyond_reach_stop_it(tmp_path: Path, digits: Digits, trainer: MakeTrainer) -> None:
    attack = PGD(eps=0.1, steps=2)
    for objective in (AdversarialTraining(attack), AdversarialWeightPerturbation(AdversarialTraining(attack))):
        lit = module(objective, SmallCNN(), optimizer=partial(torch.optim.Adam, lr=1e30))
        with pytest.raises(NonFiniteError, match=r"stopped at step 1, .*no checkpoint was saved before"):
            run(lit, tmp_path, digits, trainer)


class Spoil(pl.Callback):
    """Spoil something after a step, too late for the loss to show it."""

    def __init__(self, step: int, spoil: Callable[[pl.Trainer, Any], None]) -> None:
        self.step, self.spoil = step, spoil

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                self.spoil(trainer, pl_module)


def spoil_state(trainer: pl.Trainer, lit: Any) -> None:
    trainer.optimizers[0].state[lit.net[1].weight]["exp_avg_sq"].fill_(INF)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda _, lit: lit.net[1].weight.fill_(NAN), "net.1.weight"),
        (lambda _, lit: lit.net[4].bias.fill_(INF), "net.4.bias"),
        (lambda _, lit: lit.net[2].running_var.fill_(INF), "net.2.running_var"),
        (lambda _, lit: lit.net[2].running_mean.fill_(NAN), "net.2.running_mean"),
        (spoil_state, "exp_avg_sq"),
    ],
)
def test_what_is_not_finite_is_not_saved(
    spoil: Any, named: str, tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    kept = ModelCheckpoint(tmp_path, "good", save_top_k=-1, every_n_train_steps=2, enable_version_counter=False)
    with pytest.raises(NonFiniteError, match=rf"step 4: no checkpoint is written .*{named}.*{tmp_path}/good.ckpt"):
        run(module(), tmp_path, digits, trainer, callbacks=[Spoil(4, spoil), kept])
    good = torch.load(tmp_path / "good.ckpt", weights_only=True)
    assert good["global_step"] == 2
    assert [*not_finite([good["state_dict"], good["optimizer_states"]])] == []
    # A checkpoint that something else asks for, as after Ctrl-C, and the weights that a training without any leaves.
    last = tmp_path / "last.ckpt"
    with pytest.raises(NonFiniteError, match="no checkpoint is written"):
        run(
            module(),
            tmp_path,
            digits,
            trainer,
            callbacks=[Spoil(4, spoil), Spoil(4, lambda t, _: t.save_checkpoint(last))],
        )
    assert not last.exists()
    if named != "exp_avg_sq":
        with pytest.raises(NonFiniteError, match="training ends with"):
            run(module(), tmp_path, digits, trainer, callbacks=[Spoil(8, spoil)], enable_checkpointing=False)


def test_a_mask_of_infinities_is_no_fault(tmp_path: Path, digits: Digits, trainer: MakeTrainer) -> None:
    net = small_net()
    net.register_buffer("mask", torch.tensor([0.0, -INF]))
    run(module(net=net), tmp_path, digits, trainer)
    assert load_net(tmp_path / "good.ckpt", net)


def load_net(path: Path, net: nn.Module) -> nn.Module:
    return load_classifier(path, net=net)[0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", [*SPOILS, "gradient", "images"])
def test_skipping_leaves_a_step_out(
    name: str, accumulate: int, tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    """The weights, Adam's state and BatchNorm's averages are as before the step; the training goes on."""

    class Watch(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[list[Tensor]] = []

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *arguments: Any) -> None:
            state = trainer.optimizers[0].state_dict()["state"]
            moments = [v.clone() for s in state.values() for v in s.values()]
            self.seen.append([*state_of(pl_module), *moments])

    def spoil(x: Tensor, y: Tensor) -> None:
        x[53, 0, 3, 3] = NAN

    images = name == "images"
    lit = module(Standard() if images else Failing(SPOILS.get(name, gradient_of_nan), {5}))
    lit.on_non_finite = "skip"
    watch = Watch()
    fit = run(
        lit, tmp_path, digits, trainer, callbacks=[watch], max_steps=8 // accumulate,
        train=loader(digits, change=spoil if images else None), accumulate_grad_batches=accumulate,
    )  # fmt: skip
    assert fit.global_step == 8 // accumulate
    assert lit.skipped == 1
    assert float(fit.callback_metrics["train/skipped_steps"]) == 1
    equal = [all(map(torch.equal, a, b)) for a, b in zip(watch.seen, watch.seen[1:], strict=False) if len(a) == len(b)]
    if accumulate == 1:
        assert [k for k, same in enumerate(equal) if same] == [4]  # from batch 4 to batch 5
    assert all(map(torch.equal, watch.seen[5], watch.seen[5 - accumulate]))
    assert [*not_finite(lit.state_dict())] == []


def test_skipping_stops_after_many_in_a_row(tmp_path: Path, digits: Digits, trainer: MakeTrainer) -> None:
    lit = module(Failing(SPOILS["nan"], {*range(2, 50)} - {5}))
    lit.on_non_finite = "skip"
    with pytest.raises(
        NonFiniteError, match=f"at step {5 + IN_A_ROW}, .* not finite, for the {IN_A_ROW}th time in a row"
    ):
        run(lit, tmp_path, digits, trainer, max_steps=40)
    assert lit.skipped == 3 + IN_A_ROW
    with pytest.raises(ValueError, match="on_non_finite must be one of stop, skip, got 'ignore'"):
        lit.on_non_finite = "ignore"


def test_a_healthy_training_is_the_same_under_both_policies_and_exact(
    tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    class Bare(RobustClassifier):
        def guarded(self, loss: Tensor) -> Tensor:
            return loss

    found = []
    for kind, policy in ((RobustClassifier, "stop"), (RobustClassifier, "skip"), (Bare, "stop")):
        lit = kind(small_net(), Standard(), partial(torch.optim.Adam, lr=1e-3), num_classes=10)
        lit.on_non_finite = policy
        run(lit, tmp_path, digits, trainer)
        found.append(state_of(lit))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_on_a_gpu_a_step_is_looked_at_after_the_next(digits: Digits, trainer: MakeTrainer) -> None:
    from robustlit.training.finite import _Step

    lit = module()
    trainer(max_steps=1, limit_val_batches=0).fit(lit, loader(digits))
    for look in (lit.on_validation_start, lit.on_train_end, partial(lit.on_save_checkpoint, {})):
        lit._late = _Step(7, 0, [], torch.tensor(NAN))
        with pytest.raises(NonFiniteError, match="stopped at step 7, epoch 0: the gradient is not finite"):
            look()
        look()  # once


PROCESSES = """
import sys, torch, pytorch_lightning as pl
from functools import partial
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from robustlit.objectives import Standard
from robustlit.training import NonFiniteError, RobustClassifier

class Failing:
    count = -1
    def __call__(self, net, x, y):
        output, self.count = Standard()(net, x, y), self.count + 1
        rank = torch.distributed.get_rank()
        return {**output, "loss": output["loss"] + float("nan")} if (self.count, rank) == (2, 1) else output

class Tell(pl.Callback):
    def on_train_end(self, trainer, lit):
        found = torch.cat([p.detach().flatten() for p in lit.net.parameters()]).double().sum()
        print(f"rank {trainer.global_rank}: skipped {lit.skipped}, weights {float(found)!r}", flush=True)
    def on_exception(self, trainer, lit, error):
        print(f"rank {trainer.global_rank}: {error}", flush=True)

if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    lit = RobustClassifier(net, Failing(), partial(torch.optim.Adam, lr=1e-2), num_classes=3)
    lit.on_non_finite = sys.argv[1]
    data = DataLoader(TensorDataset(torch.rand(80, 1, 4, 4), torch.arange(80) % 3), batch_size=8)
    pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=5, logger=False, enable_progress_bar=False,
               enable_checkpointing=False, callbacks=[Tell()]).fit(lit, data)
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_all_processes_stop_or_skip_together(policy: str, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(PROCESSES)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, str(script), policy], cwd=tmp_path, env={**keep, "OMP_NUM_THREADS": "1"}, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    told = dict(re.findall(r"rank (\d): (skipped \d+, weights [-\d.e]+|training stopped at step \d+)", done.stdout))
    if policy == "skip":
        assert done.returncode == 0
        assert told["0"].startswith("skipped 1, weights ")
        assert told["0"] == told["1"]
    else:  # the main process may end the other before it has printed
        assert done.returncode != 0
        assert {*told.values()} == {"training stopped at step 2"}, done.stdout + done.stderr


WRONG = [
    (lambda x, y: x[53].fill_(NAN), "images must be finite, in [0, 1], found NaN; look at the loader"),
    (lambda x, y: x[53, 0, 0, 0].fill_(-INF), "images must be finite, in [0, 1], found -inf"),
    (lambda x, y: x[53].fill_(1.5), "images must lie in [0, 1], found values in [0, 1.5]"),
    (lambda x, y: y[53].fill_(10), "labels must lie in [0, 9] for a model with 10 outputs, found values in"),
    (lambda x, y: y[53].fill_(-1), "labels must lie in [0, 9]"),
]


@pytest.mark.parametrize(("change", "rule"), WRONG)
def test_any_batch_out_of_range_is_one_line(
    change: Any, rule: str, tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    wrong = loader(digits, change=change)
    for policy in ("stop", "skip"):
        if policy == "skip" and "finite" in rule:
            continue
        lit = module()
        lit.on_non_finite = policy
        with pytest.raises(ValueError, match="training batch 5 of epoch 0: ") as caught:
            run(lit, tmp_path, digits, trainer, train=wrong)
        assert rule in str(caught.value)
        assert "\n" not in str(caught.value)
        saved = torch.load(tmp_path / "out_of_range_training_epoch0_batch5.pt", weights_only=True)
        torch.testing.assert_close(saved["images"], wrong.dataset.tensors[0][50:60], equal_nan=True)
    with pytest.raises(ValueError, match="validation batch 5 of epoch ") as caught:
        trainer().validate(module(validation_attack=PGD(eps=0.1, steps=1)), wrong, verbose=False)
    assert rule in str(caught.value)
    with pytest.raises(ValueError, match="test batch 5 of epoch ") as caught:
        trainer().test(module(), wrong, verbose=False)
    assert rule in str(caught.value)


def test_loaders_of_images_in_memory_are_looked_at_where_they_can_be_wrong(
    digits: Digits, trainer: MakeTrainer
) -> None:
    images, labels = (digits[0] * 255).byte(), digits[1]
    run = trainer(max_epochs=-1, max_steps=2)
    for loader, message in (
        (Batches(images, labels, 50, augment=lambda x, generator: x * 2), "images must lie in"),
        (Batches(images, labels.clone().index_fill_(0, torch.tensor([60]), 10), 50), "labels must lie in"),
    ):
        with pytest.raises(ValueError, match=f"training batch . of epoch 0: {message}"):
            run.fit(module(), loader)

    class Brighter(MNIST):
        def loader(self, split: str, indices: Tensor, *, train: bool = False) -> Batches:
            images, labels = super().loader(split, indices).images, super().loader(split, indices).labels
            return self.batches(images, labels, indices, lambda x, generator: x * 2, train=train)

    with pytest.raises(ValueError, match="training batch 0 of epoch 0: images must lie in"):
        run.fit(module(), datamodule=Brighter(batch_size=50, val_size=100, train_size=200, augment=True))
    lit = module()
    run.fit(lit, datamodule=MNIST(batch_size=50, val_size=100, train_size=200, augment=True))
    assert lit._in_range


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_net_is_not_called_robust(value: float, digits: Digits, trainer: MakeTrainer) -> None:
    lit = module(validation_attack=PGD(eps=0.1, steps=2))
    with torch.no_grad():
        lit.net[4].bias.fill_(value)
    test = trainer()
    test.validate(lit, loader(digits), verbose=False)
    assert {k: float(v) for k, v in test.callback_metrics.items()} == {"val/accuracy": 0, "val/robust_accuracy": 0}
    test.test(lit, loader(digits), verbose=False)
    assert float(test.callback_metrics["test/accuracy"]) == 0


def test_broken_weights_are_not_loaded(tmp_path: Path, digits: Digits, trainer: MakeTrainer) -> None:
    run(module(), tmp_path, digits, trainer)
    checkpoint, broken = torch.load(tmp_path / "good.ckpt", weights_only=True), tmp_path / "broken.ckpt"
    checkpoint["state_dict"]["net.1.weight"][0, 0] = NAN
    torch.save(checkpoint, broken)
    with pytest.raises(CheckpointError, match=r"broken.ckpt holds weights that are not finite \(1.weight\)"):
        load_classifier(broken, net=small_net())
    with pytest.raises(NonFiniteError, match=r"training starts from weights that are not finite \(net.1.weight\)"):
        trainer(max_steps=12).fit(module(), loader(digits), ckpt_path=broken, weights_only=True)
    net = SmallCNN()
    net.state_dict()["2.weight" if "2.weight" in net.state_dict() else next(iter(net.state_dict()))].view(-1)[0] = INF
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"--weights .*weights.pt holds weights that are not finite"):
        own_net("robustlit.models:SmallCNN", str(tmp_path / "weights.pt"))
    generator = AdvGANGenerator()
    next(generator.parameters()).data.view(-1)[0] = NAN
    save_generator(generator, tmp_path / "generator.pt")
    with pytest.raises(ValueError, match=r"generator.pt holds weights that are not finite"):
        load_generator(tmp_path / "generator.pt")


@pytest.fixture
def gan(net: nn.Module) -> AdvGANTraining:
    return AdvGANTraining(
        net, AdvGANGenerator(), AdvGANDiscriminator(), mode="black_box", substitute=SmallCNN(), distillation_epochs=0
    )


@pytest.mark.parametrize("part", ["generator", "discriminator", "substitute"])
def test_advgan_is_guarded(
    part: str, gan: AdvGANTraining, tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    def spoil(_: pl.Trainer, lit: Any) -> None:
        next(getattr(lit, part).parameters()).fill_(NAN)

    with pytest.raises(NonFiniteError, match=r"stopped at step \d+, epoch 0: the (loss|gradient) is"):
        run(gan, tmp_path, digits, trainer, max_steps=30, max_epochs=1, callbacks=[Spoil(3, spoil)])
    with pytest.raises(ValueError, match="training batch 5 of epoch 0: labels must lie in"):
        run(
            gan_again(gan),
            tmp_path,
            digits,
            trainer,
            max_steps=30,
            max_epochs=1,
            train=loader(digits, change=WRONG[3][0]),
        )


def gan_again(gan: AdvGANTraining) -> AdvGANTraining:
    return AdvGANTraining(gan.net, AdvGANGenerator(), AdvGANDiscriminator())


def test_a_substitute_is_guarded_and_learns_from_answers_alone(
    net: nn.Module, tmp_path: Path, digits: Digits, trainer: MakeTrainer
) -> None:
    def spoil(_: pl.Trainer, lit: Any) -> None:
        next(lit.net.parameters()).fill_(NAN)

    with pytest.raises(NonFiniteError, match="stopped at step 3, epoch 0: the loss is nan"):
        run(SubstituteTraining(net, SmallCNN()), tmp_path, digits, trainer, callbacks=[Spoil(3, spoil)])

    class Lost(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * NAN

    found = distil(Lost(), SmallCNN(), digits[0], epochs=1)
    assert found.agreement == 0  # two nets without an answer do not agree
    assert [*not_finite(found.net.state_dict())] == []
