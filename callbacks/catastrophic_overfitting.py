"""Detect catastrophic overfitting: the collapse of one-step adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from robustlit.attacks import PGD
from robustlit.checks import check_count, check_share
from robustlit.objectives import MART, NFGSM, TRADES, AdversarialTraining
from robustlit.tracking.metrics import GUARD_COLLAPSED, GUARD_PGD, GUARD_TRAIN_ATTACK

DROP = 0.2  # fall of the PGD accuracy in a collapse; half of the best accuracy where that is less
SMALLEST_DROP = 0.1  # two standard errors of an accuracy over a batch of 128 are .09 at most
# A net that was never robust cannot fall below its best. It counts as collapsed where its accuracy under the training
# attack is above five times chance, and that under PGD below a fifth of this bound. Seen on MNIST with a random start
# cut to the box and a step of 1.25 eps (.52 and .04 at step 200).
NEVER_ROBUST_TIMES_CHANCE, NEVER_ROBUST_RATIO = 5, 5
NEVER_ROBUST_BOUNDS = (0.2, 0.5)  # with many classes and with few


class CatastrophicOverfitting(pl.Callback):
    """Watch FGSM training for the collapse that Wong et al. describe (2020, arXiv:2001.03994, section 5.4).

    Within a few steps the net learns to defeat the single step while any iterative attack breaks it: its accuracy under
    PGD falls to zero and its accuracy under the training attack rises. Every `every` steps the callback attacks the
    training batch both ways. It reports a collapse, logs it as `guard/collapsed` and ends the training unless
    `stop=False`. The best checkpoint is chosen by robust accuracy, so it predates the collapse.

    Args:
        every: Training steps between two checks.
        steps: Steps of the PGD that checks.
        drop: How far PGD accuracy must fall below its best so far, in (0, 1). None takes .2, and half of the best
            accuracy where that is less (as on CIFAR-100), but at least .1.
        patience: Consecutive checks that must agree, because one batch is noisy; twice as many for a net that was
            never robust.
        stop: End the training on a collapse.

    Attributes:
        collapsed_at: The step at which a collapse was reported, or None.
    """

    def __init__(
        self, *, every: int = 50, steps: int = 10, drop: float | None = None, patience: int = 2, stop: bool = True
    ) -> None:
        check_count(every, "every")
        check_count(patience, "patience")
        if drop is not None:
            check_share(drop, "drop")
        self.every, self.steps, self.drop, self.patience, self.stop = every, steps, drop, patience, stop
        self.collapsed_at: int | None = None
        self._last_checked = -1
        self._best_pgd = self._training_at_best = 0.0
        self._suspicions = self._never_robust = 0
        self._never_robust_above = NEVER_ROBUST_BOUNDS[1]  # accuracy under the training attack

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse an objective without a training attack."""
        if not isinstance(getattr(pl_module, "objective", None), (AdversarialTraining, NFGSM, TRADES, MART)):
            raise ValueError(
                "CatastrophicOverfitting watches AdversarialTraining, NFGSM, TRADES and MART; remove the callback"
            )
        low, high = NEVER_ROBUST_BOUNDS
        classes: Any = getattr(pl_module, "num_classes", None) or 1
        self._never_robust_above = min(high, max(low, NEVER_ROBUST_TIMES_CHANCE / classes))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Sequence[Tensor], batch_idx: int
    ) -> None:
        """Check every `every` steps, once eps has warmed up."""
        step = trainer.global_step
        # Under gradient accumulation several batches share a step.
        if step % self.every or step == self._last_checked or self.collapsed_at is not None:
            return
        self._last_checked = step
        objective: Any = pl_module.objective
        if objective.eps < objective.attack.eps:  # accuracies fall because eps rises
            return
        one_step, iterated = self.accuracies(trainer, pl_module, batch)
        pl_module.log_dict({GUARD_TRAIN_ATTACK: one_step, GUARD_PGD: iterated})
        if self.looks_collapsed(one_step, iterated):
            self.collapsed_at = step
            pl_module.log(GUARD_COLLAPSED, float(step))
            rank_zero_warn(
                f"catastrophic overfitting at step {step}: accuracy on the training batch is {100 * one_step:.0f} % "
                f"under the training attack but {100 * iterated:.0f} % under PGD-{self.steps} (best so far "
                f"{100 * self._best_pgd:.0f} %). Lower the attack's step, shorten the training, or train with PGD "
                "(recipe=pgd_adv_train)."
            )
            if self.stop:
                rank_zero_info("training stops here; the best checkpoint predates the collapse")
                trainer.should_stop = True

    def accuracies(self, trainer: pl.Trainer, pl_module: Any, batch: Sequence[Tensor]) -> tuple[float, float]:
        """Return the accuracies in [0, 1] on a batch under the training attack and under PGD, over all processes."""
        (x, y), training = batch[:2], pl_module.objective.attack
        pgd = PGD(eps=training.eps, norm=training.norm, steps=self.steps)
        index = torch.arange(len(y), device=y.device)
        # Seeded, so that the check draws nothing from the training's generator.
        results = [a.run(pl_module.net, x, y, index=index, seed=trainer.global_step) for a in (training, pgd)]
        pair = torch.stack([1 - result.success.float().mean() for result in results])
        pair = trainer.strategy.reduce(pair, reduce_op="mean") if trainer.world_size > 1 else pair
        one_step, iterated = pair.tolist()
        return one_step, iterated

    def looks_collapsed(self, one_step: float, iterated: float) -> bool:
        """Record one check (accuracies under the training attack and PGD) and return whether training has collapsed."""
        if iterated >= self._best_pgd:
            self._best_pgd, self._training_at_best = iterated, one_step
        drop = self.drop or min(DROP, max(self._best_pgd / 2, SMALLEST_DROP))
        fell = iterated < self._best_pgd - drop
        # On a bad batch the net falls under both attacks alike.
        apart = one_step - iterated > drop and one_step > self._training_at_best - drop / 2
        above = self._never_robust_above
        never = one_step > above and iterated < above / NEVER_ROBUST_RATIO
        self._suspicions = self._suspicions + 1 if fell and apart else 0
        self._never_robust = self._never_robust + 1 if never else 0
        return self._suspicions >= self.patience or self._never_robust >= 2 * self.patience
