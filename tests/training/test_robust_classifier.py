"""RobustClassifier in a real Trainer, on real digits."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks import PGD
from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import AdversarialTraining, Standard
from robustlit.training import RobustClassifier
from robustlit.training.classifier import training_steps

ADVERSARIAL = AdversarialTraining(PGD(eps=0.1, steps=2), warmup=0.5)
one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=3e-3)


def module(seed: int = 0, **changes: Any) -> RobustClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = changes.pop("net", None) or SmallCNN()
    settings: dict[str, Any] = {
        "objective": ADVERSARIAL,
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "num_classes": 10,
        "schedule": one_cycle,
        "validation_attack": PGD(eps=0.1, steps=2),
        "seed": seed,
    }
    return RobustClassifier(net, **{**settings, **changes})


def data(**changes: Any) -> MNIST:
    return MNIST(**{"batch_size": 50, "train_size": 400, "val_size": 100, "test_size": 100, **changes})


def trainer(folder: Path, **changes: Any) -> pl.Trainer:
    settings = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**settings, **changes})


def weights(lit: RobustClassifier) -> Tensor:
    return torch.cat([p.detach().flatten() for p in lit.net.parameters()])


@pytest.mark.parametrize("inference_mode", [True, False])
def test_it_trains_and_validates_under_attack(tmp_path: Path, inference_mode: bool) -> None:
    lit = module()
    fit = trainer(tmp_path, max_epochs=4, inference_mode=inference_mode)
    fit.fit(lit, datamodule=data(train_size=2000))
    metrics = {k: float(v) for k, v in fit.callback_metrics.items()}
    assert metrics["val/accuracy"] > 0.8
    assert 0.3 < metrics["val/robust_accuracy"] <= metrics["val/accuracy"]
    assert metrics["train/accuracy"] > 0.5
    # Measured again by hand, in one batch.
    x, y, index = (torch.cat(parts) for parts in zip(*data().val_dataloader(), strict=True))
    broken = PGD(eps=0.1, steps=2).run(lit.net, x, y, index=index, seed=0).success
    assert metrics["val/robust_accuracy"] == pytest.approx(float((~broken).float().mean()), abs=0.011)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # the surroundings must not matter
        lit = module(seed)
        trainer(tmp_path).fit(lit, datamodule=data(shuffle_seed=seed))
        return weights(lit)

    first = run(0)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


class StopAt(pl.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, fit: pl.Trainer, *args: Any) -> None:
        if fit.global_step == self.step:
            fit.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [3, 8, 13])  # in an epoch, at its end, in the next
def test_stop_and_resume_equals_an_uninterrupted_run(tmp_path: Path, step: int) -> None:
    whole = module()
    trainer(tmp_path).fit(whole, datamodule=data())
    path = tmp_path / "stopped.ckpt"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[StopAt(step, path)]).fit(module(), datamodule=data())
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored on its way out
    resumed = module(seed=0, net=SmallCNN())  # other weights until the checkpoint is read
    trainer(tmp_path).fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_schedule_spans_the_training(tmp_path: Path) -> None:
    lit = module()
    fit = trainer(tmp_path, max_epochs=3, limit_train_batches=4)
    fit.fit(lit, datamodule=data())
    schedule: Any = lit.lr_schedulers()
    assert schedule.total_steps == fit.global_step == 12
    assert lit.objective.eps == pytest.approx(0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 16),
        ({"max_steps": 5}, 5),
        ({"limit_train_batches": 0.5}, 8),
        ({"limit_train_batches": 3}, 6),
        ({"accumulate_grad_batches": 3}, 6),
    ],
)
def test_training_steps_are_those_that_fit_takes(tmp_path: Path, changes: dict[str, Any], steps: int) -> None:
    fit = trainer(tmp_path, **changes)
    lit = module()
    fit.fit(lit, datamodule=data())
    assert training_steps(fit) == fit.global_step == steps


def test_without_a_datamodule_the_length_must_be_said(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> None:
    loader = DataLoader(TensorDataset(*digits), batch_size=50)
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path).fit(module(), loader)
    trainer(tmp_path, max_steps=4).fit(module(), loader, loader)  # a user's own loader, without indices


def test_warm_up_follows_the_step(tmp_path: Path) -> None:
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, fit: pl.Trainer, lit: Any, *args: Any) -> None:
            seen.append(lit.objective.eps)

    lit = module(objective=AdversarialTraining(PGD(eps=0.2, steps=1), warmup=0.5))
    trainer(tmp_path, max_epochs=1, callbacks=[Watch()]).fit(lit, datamodule=data())
    assert seen == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2])


def test_evaluation_is_in_float32_whatever_training_is_in(tmp_path: Path) -> None:
    seen: dict[str, set[torch.dtype]] = {"train": set(), "eval": set()}

    class Spy(SmallCNN):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            seen["train" if watch["training"] else "eval"].add(logits.dtype)
            return logits

    watch = {"training": False}

    class Watch(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            watch["training"] = True

        def on_validation_start(self, *args: Any) -> None:
            watch["training"] = False

    lit = module(net=Spy())
    fit = trainer(tmp_path, max_epochs=1, precision="bf16-mixed", callbacks=[Watch()])
    fit.fit(lit, datamodule=data())
    watch["training"] = False
    fit.test(lit, datamodule=data(), verbose=False)
    assert torch.bfloat16 in seen["train"]
    assert seen["eval"] == {torch.float32}


def bad(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], digits: tuple[Tensor, Tensor]) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*change(digits[0].clone(), digits[1].clone())), batch_size=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: ((x - 0.13) / 0.31, y), "most likely normalised"),
        (lambda x, y: (x * 255, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x.where(x < 0.99, float("nan")), y), "found NaN"),
        (lambda x, y: (x, y + 5), r"labels must lie in \[0, 9\]"),
    ],
)
def test_bad_data_is_refused_at_the_first_batch(
    tmp_path: Path, digits: tuple[Tensor, Tensor], change: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=4).fit(module(), bad(change, digits))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).test(module(objective=Standard()), bad(change, digits), verbose=False)


@pytest.mark.parametrize(
    ("net", "message"),
    [(nn.Conv2d(1, 10, 3), r"logits \(B, K\)"), (SmallCNN(num_classes=7), "7 logits for 10 classes")],
)
def test_a_net_with_other_outputs_is_refused(tmp_path: Path, net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(module(net=net), datamodule=data())


def test_the_check_leaves_batchnorm_alone(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
    net[1].eval()
    lit = module(net=net)
    before = net[1].running_mean.clone()
    lit._check((digits[0][:50], digits[1][:50]))
    assert torch.equal(net[1].running_mean, before)
    assert [m.training for m in net.modules()] == [True, True, False, True]
