"""The guard over one-step adversarial training: on sequences made up, and on a training that does collapse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from robustlit.attacks import FGSM
from robustlit.callbacks import CatastrophicOverfitting
from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import AdversarialTraining
from robustlit.training import RobustClassifier

MakeTrainer = Callable[..., pl.Trainer]


def first_alarm(looks: list[tuple[float, float]], **settings: Any) -> int | None:
    guard = CatastrophicOverfitting(**settings)
    return next((k for k, look in enumerate(looks) if guard.looks_collapsed(*look)), None)


def healthy(n: int, seed: int = 0) -> list[tuple[float, float]]:
    """Both accuracies rise together, with the noise of batches of 100."""
    draws = np.random.default_rng(seed)
    level = np.linspace(0.2, 0.9, n)
    one_step = draws.binomial(100, np.minimum(level + 0.05, 1)) / 100
    return list(zip(one_step.tolist(), (draws.binomial(100, level) / 100).tolist(), strict=True))


def test_the_collapse_of_the_paper_is_announced_at_the_second_look() -> None:
    before = [(0.5, 0.45), (0.7, 0.65), (0.8, 0.75)]
    assert first_alarm([*before, (0.95, 0.2), (0.97, 0.05), (0.98, 0.0)]) == 4
    assert first_alarm([*before, (0.95, 0.2), (0.97, 0.05), (0.98, 0.0)], patience=1) == 3
    assert first_alarm([*before, (0.95, 0.2), (0.97, 0.05), (0.98, 0.0)], patience=3) == 5


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_a_collapse(seed: int) -> None:
    assert first_alarm(healthy(60, seed)) is None


@pytest.mark.parametrize(
    "looks",
    [
        [(0.8, 0.75), (0.9, 0.1), (0.8, 0.75), (0.9, 0.1), (0.8, 0.75)],  # single bad looks
        [(0.8, 0.75)] + [(0.3, 0.05)] * 5,  # both fall: the training diverges, no overfitting to one step
        [(0.8, 0.75)] + [(0.8, 0.6)] * 5,  # a small drop
        [(0.8, 0.4)] + [(0.85, 0.35)] * 5,  # a wide gap that is no fall
    ],
)
def test_other_troubles_are_not_taken_for_it(looks: list[tuple[float, float]]) -> None:
    assert first_alarm(looks) is None


def test_the_drop_is_what_was_asked_for() -> None:
    looks = [(0.8, 0.75)] + [(0.85, 0.45)] * 3
    assert first_alarm(looks, drop=0.2) == 2
    assert first_alarm(looks, drop=0.35) is None


@pytest.mark.parametrize("arguments", [{"every": 0}, {"patience": 0}, {"drop": 0.0}, {"drop": 1.0}])
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CatastrophicOverfitting(**arguments)


class Watched(CatastrophicOverfitting):
    """Keeps the looks that were taken."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.looks: list[tuple[int, float, float]] = []
        self.step = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.step = trainer.global_step
        super().on_train_batch_end(trainer, *arguments)

    def looks_collapsed(self, one_step: float, iterated: float) -> bool:
        self.looks.append((self.step, one_step, iterated))
        return super().looks_collapsed(one_step, iterated)


def fgsm_training(warmup: float = 0.0, **attack: Any) -> RobustClassifier:
    torch.manual_seed(0)
    objective = AdversarialTraining(FGSM(**attack), warmup=warmup)
    return RobustClassifier(SmallCNN(), objective, partial(torch.optim.Adam, lr=3e-3), num_classes=10)


def test_a_training_that_collapses_is_noticed(trainer: MakeTrainer) -> None:
    # FGSM without a random start at a large eps: the net learns to bend the loss at the image.
    guard = Watched(every=20, drop=0.1)
    runner = trainer(guard, max_steps=600, max_epochs=-1, limit_val_batches=0)
    with pytest.warns(UserWarning, match=r"catastrophic overfitting at step \d+.*training attack but \d+ % under PGD"):
        runner.fit(
            fgsm_training(warmup=0.5, eps=0.3), datamodule=MNIST(train_size=10_000, val_size=100, batch_size=100)
        )
    assert guard.collapsed_at == runner.global_step < 600
    assert runner.callback_metrics["guard/collapsed"] == guard.collapsed_at
    step, one_step, iterated = guard.looks[-1]
    assert step == guard.collapsed_at
    assert one_step > iterated + 0.3
    assert max(look[2] for look in guard.looks) > iterated + 0.1
    assert min(look[0] for look in guard.looks) >= 300  # while eps warms up nothing is looked at


def test_a_collapse_that_need_not_stop_does_not(
    trainer: MakeTrainer, data: MNIST, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Watched(every=2, stop=False)
    monkeypatch.setattr(guard, "looks_collapsed", lambda one_step, iterated: True)
    runner = trainer(guard, limit_val_batches=0)
    with pytest.warns(UserWarning, match="catastrophic overfitting at step 2"):
        runner.fit(fgsm_training(eps=0.1), datamodule=data)
    assert guard.collapsed_at == 2
    assert runner.global_step == 6


def test_the_looks_leave_the_training_as_it_was(trainer: MakeTrainer, data: MNIST) -> None:
    weights = []
    for callbacks in ([], [Watched(every=1)]):
        module = fgsm_training(eps=0.1, random_start=True)
        trainer(*callbacks, limit_val_batches=0).fit(module, datamodule=data)
        weights.append(module.net.state_dict())
    assert len(callbacks[0].looks) == 6
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_accumulated_batches_are_one_look(trainer: MakeTrainer, data: MNIST) -> None:
    guard = Watched(every=1)
    trainer(guard, limit_val_batches=0, accumulate_grad_batches=3).fit(fgsm_training(eps=0.1), datamodule=data)
    steps = [step for step, *_ in guard.looks]
    assert len(steps) == len(set(steps))


def test_it_watches_adversarial_training_only(module: RobustClassifier, data: MNIST, trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="TRADES and MART; remove the callback"):
        trainer(CatastrophicOverfitting()).fit(module, datamodule=data)


def test_a_net_that_was_never_robust_is_noticed_too() -> None:
    # As seen on MNIST with a random start cut to the box and a step of 1.25 eps.
    looks = [(0.17, 0.17), (0.52, 0.04), (0.6, 0.01), (0.73, 0.0), (0.9, 0.0), (0.63, 0.0)]
    assert first_alarm(looks) == 4
    assert first_alarm([(0.4, 0.05)] * 10) is None  # it withstands neither attack: untrained, not overfitted
