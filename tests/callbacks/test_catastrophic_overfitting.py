"""CatastrophicOverfitting: its rule on scripted accuracies, and a real training that collapses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
Looks = Sequence[tuple[float, float]]
COLLAPSE = [(0.5, 0.45), (0.7, 0.65), (0.8, 0.75), (0.95, 0.2), (0.97, 0.05), (0.98, 0.0)]
NEVER_ROBUST = [(0.17, 0.09), (0.52, 0.04), (0.6, 0.01), (0.73, 0.0), (0.9, 0.0), (0.63, 0.0)]


def first_alarm(looks: Looks, **settings: Any) -> int | None:
    guard = CatastrophicOverfitting(**settings)
    return next((k for k, look in enumerate(looks) if guard.looks_collapsed(*look)), None)


@pytest.mark.parametrize(
    ("looks", "settings", "alarm"),
    [
        (COLLAPSE, {}, 4),
        (COLLAPSE, {"patience": 1}, 3),
        (COLLAPSE, {"patience": 3}, 5),
        (NEVER_ROBUST, {}, 4),
        ([(0.8, 0.75)] + [(0.85, 0.45)] * 3, {"drop": 0.2}, 2),
        ([(0.8, 0.75)] + [(0.85, 0.45)] * 3, {"drop": 0.35}, None),
        ([(0.4, 0.05)] * 10, {}, None),  # broken by both attacks: untrained, not overfitted
        ([(0.8, 0.75), (0.9, 0.1), (0.8, 0.75), (0.9, 0.1), (0.8, 0.75)], {}, None),  # single bad batches
        ([(0.8, 0.75)] + [(0.3, 0.05)] * 5, {}, None),  # both fall: the training diverges
        ([(0.8, 0.75)] + [(0.8, 0.6)] * 5, {}, None),  # a small drop
        ([(0.8, 0.4)] + [(0.85, 0.35)] * 5, {}, None),  # a wide gap without a fall
        ([(0.3, 0.2), (0.45, 0.02), (0.6, 0.0)], {}, 2),  # a hundred classes: .2 below the best is below zero
        ([(0.3, 0.2)] + [(0.32, 0.12)] * 5, {}, None),  # noise of a batch around .2
        ([(0.3, 0.2)] + [(0.32, 0.08)] * 5, {"drop": 0.2}, None),
    ],
)
def test_the_rule(looks: Looks, settings: dict[str, Any], alarm: int | None) -> None:
    assert first_alarm(looks, **settings) == alarm


@pytest.mark.parametrize("seed", range(20))
def test_batch_noise_is_not_a_collapse(seed: int) -> None:
    draws, level = np.random.default_rng(seed), np.linspace(0.2, 0.9, 60)  # both accuracies rise together
    one_step, iterated = (draws.binomial(100, share) / 100 for share in (np.minimum(level + 0.05, 1), level))
    assert first_alarm(list(zip(one_step, iterated, strict=True))) is None


@pytest.mark.parametrize("arguments", [{"every": 0}, {"patience": 0}, {"drop": 0.0}, {"drop": 1.0}])
def test_settings_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CatastrophicOverfitting(**arguments)


class Watched(CatastrophicOverfitting):
    """Records the checks; with a script it takes the accuracies from there."""

    def __init__(self, script: Looks = (), **settings: Any) -> None:
        super().__init__(**settings)
        self.script = list(script)
        self.looks: list[tuple[int, float, float]] = []

    def accuracies(self, trainer: pl.Trainer, *arguments: Any) -> tuple[float, float]:
        found = self.script[len(self.looks)] if self.script else super().accuracies(trainer, *arguments)
        self.looks.append((trainer.global_step, *found))
        return found


def fgsm_training(warmup: float = 0.0, classes: int = 10, **attack: Any) -> RobustClassifier:
    torch.manual_seed(0)
    objective = AdversarialTraining(FGSM(**attack), warmup=warmup)
    return RobustClassifier(SmallCNN(classes), objective, partial(torch.optim.Adam, lr=3e-3), num_classes=classes)


@pytest.mark.parametrize("stop", [True, False])
def test_a_collapse_is_reported_logged_and_stops_the_training(trainer: MakeTrainer, data: MNIST, stop: bool) -> None:
    guard = Watched(COLLAPSE, every=1, stop=stop)
    runner = trainer(guard, limit_val_batches=0)
    message = r"at step 5: .* 97 % under the training attack but 5 % under PGD-10 \(best so far 75 %\)"
    with pytest.warns(UserWarning, match=message):
        runner.fit(fgsm_training(eps=0.1), datamodule=data)
    assert guard.collapsed_at == runner.callback_metrics["guard/collapsed"] == 5
    assert runner.callback_metrics["guard/pgd_accuracy"] == pytest.approx(0.05)
    assert [step for step, *_ in guard.looks] == [1, 2, 3, 4, 5]
    assert runner.global_step == (5 if stop else 6)


@pytest.mark.parametrize(("classes", "alarm"), [(10, None), (25, 4), (100, 4)])
def test_a_net_of_many_classes_that_was_never_robust_has_collapsed_at_a_lower_accuracy(
    trainer: MakeTrainer, data: MNIST, classes: int, alarm: int | None
) -> None:
    guard = Watched([(0.24, 0.03)] * 6, every=1)
    trainer(guard, limit_val_batches=0).fit(fgsm_training(classes=classes, eps=0.1), datamodule=data)
    assert guard.collapsed_at == alarm


def test_nothing_is_checked_while_eps_warms_up(trainer: MakeTrainer, data: MNIST) -> None:
    guard = Watched(COLLAPSE, every=1)
    trainer(guard, limit_val_batches=0).fit(fgsm_training(warmup=0.5, eps=0.1), datamodule=data)
    assert [step for step, *_ in guard.looks] == [4, 5, 6]  # 6 steps; the first with the full eps is the fourth


@pytest.mark.slow
def test_a_training_that_collapses_is_noticed(trainer: MakeTrainer) -> None:
    # FGSM without a random start at a large eps: the net learns to bend the loss at the image. At which step, and from
    # which accuracy, depends on the CPU's arithmetic; that it happens does not (at step 420 to 460, given 1 000).
    guard = Watched(every=20, drop=0.1)
    runner = trainer(guard, max_steps=1000, max_epochs=-1, limit_val_batches=0)
    data = MNIST(train_size=10_000, val_size=100, batch_size=100)
    with pytest.warns(UserWarning, match=r"catastrophic overfitting at step \d+"):
        runner.fit(fgsm_training(warmup=0.3, eps=0.3), datamodule=data)
    assert guard.collapsed_at == runner.global_step == guard.looks[-1][0] < 1000
    _, one_step, iterated = guard.looks[-1]
    assert one_step > iterated + guard.drop  # what either rule asks for


def test_the_checks_leave_the_training_as_it_was(trainer: MakeTrainer, data: MNIST) -> None:
    weights = []
    for callbacks in ([], [Watched(every=1)]):
        module = fgsm_training(eps=0.1, random_start=True)
        trainer(*callbacks, limit_val_batches=0).fit(module, datamodule=data)
        weights.append(module.net.state_dict())
    assert len(callbacks[0].looks) == 6
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_accumulated_batches_are_one_check(trainer: MakeTrainer, data: MNIST) -> None:
    guard = Watched(every=1)
    trainer(guard, limit_val_batches=0, accumulate_grad_batches=3).fit(fgsm_training(eps=0.1), datamodule=data)
    assert [step for step, *_ in guard.looks] == [0, 1, 2]


def test_only_adversarial_objectives_can_be_watched(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match="TRADES and MART; remove the callback"):
        trainer(CatastrophicOverfitting()).fit(module, datamodule=data)
