"""CatastrophicOverfitting: notices when a one-step adversary stops teaching robustness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from robustlit.attacks import PGD
from robustlit.objectives import MART, TRADES, AdversarialTraining


class CatastrophicOverfitting(pl.Callback):
    """Watches FGSM training for the collapse that Wong et al. describe (2020, arXiv:2001.03994, section 5.4).

    Within a few steps the net learns to defeat the single step while any iterative attack breaks it: the accuracy
    under PGD falls to nothing while that under the training attack rises. Every so many steps the training batch is
    attacked both ways; a collapse is announced, logged as `guard/collapsed`, and, if asked for, ends the training. The
    best checkpoint is chosen by robust accuracy, so it stems from before the collapse.

    Args:
        every: training steps between two looks.
        steps: of the PGD that looks.
        drop: how far, in accuracy, PGD must fall below its best so far, in (0, 1).
        patience: looks in a row that must agree: one batch is noisy. A net that was never robust, though it withstands
            the training attack, has nothing to fall from: it is given twice as many.
        stop: end the training on a collapse.

    Attributes:
        collapsed_at: the step at which a collapse was announced, or None.
    """

    def __init__(
        self, *, every: int = 50, steps: int = 10, drop: float = 0.2, patience: int = 2, stop: bool = True
    ) -> None:
        for name, value in (("every", every), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < drop < 1:
            raise ValueError(f"drop must be an accuracy in (0, 1), got {drop}")
        self.every, self.steps, self.drop, self.patience, self.stop = every, steps, drop, patience, stop
        self.collapsed_at: int | None = None
        self._looked_at = -1
        self._best = 0.0
        self._suspicions = self._never_robust = 0
        self._fgsm_at_best = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks that there is an attack to watch."""
        if not isinstance(getattr(pl_module, "objective", None), (AdversarialTraining, TRADES, MART)):
            raise ValueError(
                "CatastrophicOverfitting watches AdversarialTraining, TRADES and MART; remove the callback"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Sequence[Tensor], batch_idx: int
    ) -> None:
        """Looks, every so many steps."""
        step = trainer.global_step
        # Under gradient accumulation several batches share a step.
        if step % self.every or step == self._looked_at or self.collapsed_at is not None:
            return
        self._looked_at = step
        objective: Any = pl_module.objective
        if objective.eps < objective.attack.eps:  # while eps warms up accuracies fall for that reason
            return
        x, y = batch[0], batch[1]
        net: Any = pl_module.net
        # A seed keeps the look out of the training's random numbers: a run repeats with the guard or without.
        seed = step
        index = torch.arange(len(y), device=y.device)
        attack = objective.attack
        one_step = 1 - attack.run(net, x, y, index=index, seed=seed).success.float().mean()
        pgd = PGD(eps=attack.eps, norm=attack.norm, steps=self.steps)
        iterated = 1 - pgd.run(net, x, y, index=index, seed=seed).success.float().mean()
        pair = torch.stack([one_step, iterated])
        pair = trainer.strategy.reduce(pair, reduce_op="mean") if trainer.world_size > 1 else pair
        fgsm_accuracy, pgd_accuracy = pair.tolist()
        pl_module.log_dict({"guard/train_attack_accuracy": fgsm_accuracy, "guard/pgd_accuracy": pgd_accuracy})
        if self.looks_collapsed(fgsm_accuracy, pgd_accuracy):
            self._announce(trainer, pl_module, step, fgsm_accuracy, pgd_accuracy)

    def looks_collapsed(self, one_step: float, iterated: float) -> bool:
        """Takes in one look (accuracies in [0, 1] under the training attack and PGD) and says whether it is enough."""
        if iterated >= self._best:
            self._best, self._fgsm_at_best = iterated, one_step
        fell = iterated < self._best - self.drop
        # A net that merely has a bad batch falls under both attacks alike.
        apart = one_step - iterated > self.drop and one_step > self._fgsm_at_best - self.drop / 2
        self._suspicions = self._suspicions + 1 if fell and apart else 0
        self._never_robust = self._never_robust + 1 if iterated < 0.1 and one_step > 0.5 else 0
        return self._suspicions >= self.patience or self._never_robust >= 2 * self.patience

    def _announce(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int, one_step: float, iterated: float
    ) -> None:
        self.collapsed_at = step
        pl_module.log("guard/collapsed", float(step))
        rank_zero_warn(
            f"catastrophic overfitting at step {step}: accuracy on the training batch is {100 * one_step:.0f} % under "
            f"the training attack but {100 * iterated:.0f} % under PGD-{self.steps} (best so far "
            f"{100 * self._best:.0f} %). Lower the attack's step_size, shorten the training, or train with PGD "
            "(recipe=pgd_adv_train)."
        )
        if self.stop:
            rank_zero_info("training stops here; the best checkpoint stems from before the collapse")
            trainer.should_stop = True
