"""The one classifier LightningModule: net + objective + optimizer + schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from robustlit.attacks import Attack
from robustlit.certify import Certificate
from robustlit.classifier import answer_on_a_copy, can_reject, check_labels, check_logits, predicted, writes
from robustlit.objectives import Objective
from robustlit.objectives.objective import Scheduled
from robustlit.threat import check_images
from robustlit.training.checkpoint import pack
from robustlit.training.finite import Batch, GuardedTraining

_IN_PLACE = (
    "{name} changes its input in place in training, so that what comes after would see other images: work on a copy in "
    "its forward (x = x.clone())"
)
_NO_LOGITS = (
    "in training mode {name} returns {found} in place of logits (B, K): build it without auxiliary outputs "
    "(torchvision: aux_logits=False), or return the logits alone"
)
ANSWERS = 50  # training batches that are counted at once: counting each costs a tenth of a small net's step


class RobustClassifier(GuardedTraining):
    """Train a classifier on an objective and validate how robust it is.

    Logs `train/loss`, `train/accuracy` (on the inputs trained on: adversarial ones for an adversarial objective,
    what is proven for certified training), `val/accuracy`, `val/robust_accuracy` (under `validation_attack`; choose the
    checkpoint by it), `val/certified_accuracy` (by `validation_certificate`; of certified training choose by it),
    `test/accuracy`.
    Logits that name no class count as wrong. What is not finite stops the training: see `GuardedTraining`.

    Args:
        net: From images (B, C, H, W) in [0, 1] to logits (B, num_classes). Its weights are the checkpoint's `net.*`.
        objective: `objective(net, x, y) -> {"loss", "logits"}`.
        optimizer: Parameters -> Optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`.
        num_classes: K.
        schedule: Optimizer -> scheduler, stepped every batch. Its parameter `total_steps`, `T_max` or `total_iters`,
            where not given, is set to the number of training steps. None keeps the rate.
        validation_attack: A cheap attack run on every validation batch, in float32; None skips it.
        validation_certificate: A cheap certificate run likewise, at its own eps; None skips it.
        seed: With the step and the rank it seeds each training step, so that a resumed run repeats the draws of an
            uninterrupted one.
        compile_net: Train through `torch.compile(net)`, attacks within a step too. Validation, tests and checkpoints
            have the net itself.
        config: The composed recipe as plain containers, stored in the checkpoint so that the net can be rebuilt.

    Raises:
        ValueError: In any batch, for images outside [0, 1] or not finite, classes out of range; in the first of an
            epoch, for logits that are not (B, K).
        NonFiniteError: A loss, gradient or weight that is not finite.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        num_classes: int,
        schedule: Callable[..., LRScheduler] | None = None,
        validation_attack: Attack | None = None,
        validation_certificate: Certificate | None = None,
        seed: int = 0,
        compile_net: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self._compiled: list[nn.Module] = []  # in a list: no part of this module, whose weights it shares
        self._compile = compile_net
        self.objective = objective
        self.validation_attack = validation_attack
        self.validation_certificate = validation_certificate
        self.seed = seed
        self.config = config
        self._optimizer = optimizer
        self._schedule = schedule
        self.num_classes = num_classes
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_robust_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_certified_accuracy = MeanMetric()
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self._total_steps = 0
        self._answers: list[tuple[Tensor, Tensor]] = []  # logits and labels that `train_accuracy` has not seen yet

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W) in [0, 1]."""
        return self.net(x)

    # Training

    @property
    def lr(self) -> float:
        """The learning rate that the optimizer is built with; Lightning's learning-rate finder sets it."""
        rate = getattr(self._optimizer, "keywords", {}).get("lr")
        if rate is None:
            raise AttributeError("the learning rate is known of an optimizer that is given with it: partial(Adam, lr=)")
        return float(rate)

    @lr.setter
    def lr(self, rate: float) -> None:
        self._optimizer = partial(self._optimizer, lr=rate)  # type: ignore[call-arg]
        if "max_lr" in getattr(self._schedule, "keywords", {}):
            assert self._schedule is not None
            self._schedule = partial(self._schedule, max_lr=rate)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, the schedule over the whole training."""
        if not any(p.requires_grad for p in self.net.parameters()):
            raise ValueError(
                f"no weight of {type(self.net).__name__} can be trained: it has none, or all have requires_grad=False; "
                "leave those that training is to change at True"
            )
        self._total_steps = training_steps(self.trainer)
        optimizer = self._optimizer(self.net.parameters())
        if self._schedule is None:
            return optimizer
        expected = inspect.signature(self._schedule).parameters
        given = getattr(self._schedule, "keywords", {})
        length = {
            name: self._total_steps
            for name in ("total_steps", "T_max", "total_iters")
            if name in expected and given.get(name) is None
        }
        scheduler = self._schedule(optimizer, **length)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Forget the answers of an epoch that was broken off."""
        self._answers = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the batch, and in the first of an epoch the logits; seed the step."""
        super().on_train_batch_start(batch, batch_idx)
        seed = step_seed(self.seed, self.global_step, self.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every backend: 0.1 ms
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if batch_idx == 0:
            self._check(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the objective."""
        x, y = self.pair(batch)
        if isinstance(self.objective, Scheduled):
            self.objective.set_progress(min(1.0, self.global_step / max(1, self._total_steps)))
        before = writes(x)
        try:
            output = self.objective(self.trained_net, x, y)
        except (TypeError, AttributeError):
            self._check_training_output(x)
            raise
        if writes(x) != before:
            raise ValueError(_IN_PLACE.format(name=type(self.net).__name__))
        self._answers.append((output["logits"].detach(), y))
        if len(self._answers) == ANSWERS:
            self._count_answers()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.is_last_batch or (every and (self.global_step + 1) % every == 0):
            self.log("train/loss", output["loss"], on_step=True, on_epoch=False)
        return self.guarded(output["loss"])

    def _check_training_output(self, x: Tensor) -> None:
        """Raise a ValueError where the net returns something else in training mode than logits."""
        with torch.no_grad():
            answer = self.net(x)
        if not isinstance(answer, Tensor):
            raise ValueError(_NO_LOGITS.format(name=type(self.net).__name__, found=type(answer).__name__))

    @property
    def trained_net(self) -> nn.Module:
        """The net, or what computes the same for training: `torch.compile(net)`."""
        if not self._compile:
            return self.net
        if not self._compiled:
            self._compiled = [cast(nn.Module, torch.compile(self.net))]
        return self._compiled[0]

    def on_train_epoch_end(self) -> None:
        """Log the accuracy on the inputs trained on."""
        self._count_answers()
        self.log("train/accuracy", self.train_accuracy)

    def _count_answers(self) -> None:
        answers, self._answers = self._answers, []
        if answers:
            logits, y = map(torch.cat, zip(*answers, strict=True))
            self.train_accuracy.update(predicted(logits), y)

    # Evaluation

    @property
    def monitors(self) -> tuple[str, ...]:
        """What the best checkpoint can be chosen by: logged on validation, and the larger the better."""
        checks = {"val/robust_accuracy": self.validation_attack, "val/certified_accuracy": self.validation_certificate}
        return ("val/accuracy", *(name for name, check in checks.items() if check is not None))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure clean and robust accuracy on the held-out split."""
        if batch_idx == 0:
            self._check(batch)
        x, y = self.pair(batch)
        self.val_accuracy.update(predicted(self._evaluated(x)), y)
        self.log("val/accuracy", self.val_accuracy, on_step=False, on_epoch=True)
        if self.validation_attack is not None:
            # The same draws at every epoch and for any number of processes, so that epochs are comparable.
            index = batch[2] if len(batch) > 2 else torch.arange(len(y), device=y.device) + batch_idx * len(y)
            result = self.validation_attack.run(self.net, x, y, index=index, seed=0)
            # An example is robust when the attack failed.
            prediction = torch.where(result.success, (y + 1) % self.num_classes, y)
            self.val_robust_accuracy.update(prediction, y)
            self.log("val/robust_accuracy", self.val_robust_accuracy, on_step=False, on_epoch=True)
        if (certificate := self.validation_certificate) is not None:
            with torch.autocast(x.device.type, enabled=False):
                radius = certificate.run(self.net, x, y).radius
            self.val_certified_accuracy.update((radius >= certificate.eps).float())
            self.log("val/certified_accuracy", self.val_certified_accuracy, on_step=False, on_epoch=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure clean accuracy on the test split; the callback `AttackSweep` attacks it."""
        if batch_idx == 0:
            self._check(batch)
        x, y = self.pair(batch)
        self.test_accuracy.update(predicted(self._evaluated(x)), y)
        self.log("test/accuracy", self.test_accuracy, on_step=False, on_epoch=True)

    def _evaluated(self, x: Tensor) -> Tensor:
        """Return logits in float32, whatever precision training runs in: those that are deployed and attacked."""
        with torch.autocast(x.device.type, enabled=False):
            return self.net(x)

    def _check(self, batch: Batch) -> None:
        check_images(batch[0])
        check_labels(batch[1], len(batch[0]), self.num_classes)
        x, _ = self.pair(batch)
        with torch.no_grad():
            modes = [(module, module.training) for module in self.net.modules()]
            self.net.eval()  # the check must not update BatchNorm's averages
            with torch.autocast(x.device.type, enabled=False):
                logits = check_logits(answer_on_a_copy(self.net, x[:1]), 1)
            for module, training in modes:
                module.training = training
        if logits.shape[1] - can_reject(self.net) != self.num_classes:
            raise ValueError(
                f"the net returns {logits.shape[1]} logits for {self.num_classes} classes; build it with "
                f"num_classes={self.num_classes}, or take the data that it is for"
            )

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe, as plain containers; refuse weights that are not finite."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["robustlit"] = pack(self.config)


def training_steps(trainer: pl.Trainer) -> int:
    """Return the number of optimizer steps that `trainer.fit` will take.

    Computed from the DataModule: reading `trainer.estimated_stepping_batches` in `configure_optimizers` loads the
    training data early and drops the loader's resumed position (Lightning issue 20550).

    Raises:
        ValueError: Neither `max_steps` nor a DataModule and `max_epochs` are given.
    """
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return trainer.max_steps
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None or trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ValueError(
            "cannot tell how long training lasts; give the Trainer max_steps, or max_epochs and fit a DataModule"
        )
    batches = len(datamodule.train_dataloader())
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return max(1, -(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for (run, step, rank), mixed by SplitMix64's finaliser so that neighbours are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + rank * 0x8CB92BA72F3D8DD7) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)
