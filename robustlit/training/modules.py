"""LightningModules by name: the classifiers that a user looks for first, each a `RobustClassifier` put together.

    pl.Trainer(max_epochs=5).fit(module := BaseCNNClassifier(), datamodule=(data := MNIST()))
    robustlit.evaluate(module.net, data, attacks=[PGD(eps=0.3)])

They say in Python what a recipe says in YAML, and fill in nothing else: for another optimizer, schedule or objective
take `RobustClassifier` itself. Their checkpoints hold no recipe, so they come back by `load_classifier(path, net=...)`
with the same net. All take, beside their own arguments,

    num_classes, in_chans, image_size: of the data, for the net that is built where none is given.
    lr: largest rate of Adam, which a one-cycle schedule rises to and falls from.
    validation_attack: a cheap attack run on every validation batch; choose the checkpoint by `val/robust_accuracy`.
    seed: of every training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import PGD, Attack
from robustlit.defenses.jumprelu import JumpReLUDefense, RandomJumpReLUDefense
from robustlit.models import BaseCNN, SmallCNN
from robustlit.objectives import TRADES, AdversarialTraining, Objective, SoftLabelEmbedding, Standard
from robustlit.training.classifier import RobustClassifier

REFERENCE_IMAGES = 10_000  # from which class similarities are computed


class _OneCycle(RobustClassifier):
    """A `RobustClassifier` under Adam and a one-cycle schedule."""

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        *,
        num_classes: int,
        lr: float,
        validation_attack: Attack | None,
        seed: int,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        super().__init__(
            net,
            objective,
            partial(torch.optim.Adam, lr=lr),
            num_classes=num_classes,
            schedule=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=lr),
            validation_attack=validation_attack,
            seed=seed,
        )


class BaseCNNClassifier(_OneCycle):
    """The base network of the 2019 report (594 922 parameters on MNIST), trained as usual: the undefended control.

    Args:
        dropout: probability of dropping a unit before the last layer, in [0, 1).
        others: see the module.
    """

    def __init__(
        self,
        *,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 2e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        net = BaseCNN(num_classes, in_chans, image_size, dropout=dropout)
        super().__init__(
            net, Standard(), num_classes=num_classes, lr=lr, validation_attack=validation_attack, seed=seed
        )


class JumpReLUClassifier(_OneCycle):
    """A net trained with JumpReLU in place of its activations (Erichson et al., 2019, arXiv:1904.03750).

    The jump is there from the start. To give it to a net that is trained already, which is how the paper means it, no
    training is needed: `robustlit.defenses.JumpReLUDefense(net, kappa)`.

    Args:
        kappa: threshold of the jump, at least 0, in units of the activations; 0 is the plain activation.
        net: the classifier whose activations are replaced (in a copy); None builds a BaseCNN.
        others: see the module.
    """

    def __init__(
        self,
        kappa: float = 0.0645,
        *,
        net: nn.Module | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 2e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        net = BaseCNN(num_classes, in_chans, image_size) if net is None else net
        defended = JumpReLUDefense(net, kappa)
        super().__init__(
            defended, Standard(), num_classes=num_classes, lr=lr, validation_attack=validation_attack, seed=seed
        )


class RandomJumpReLUClassifier(_OneCycle):
    """As `JumpReLUClassifier`, the threshold drawn anew from U(low, high) for each layer and forward.

    Its randomness is no merit by itself: attacks average their gradients over draws, and a validation attack takes as
    many times longer.

    Args:
        low, high: bounds of the threshold, 0 <= low <= high, in units of the activations.
        net: the classifier whose activations are replaced (in a copy); None builds a BaseCNN.
        others: see the module.
    """

    def __init__(
        self,
        low: float = 0.6 * 0.0645,
        high: float = 0.0645,
        *,
        net: nn.Module | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 2e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        net = BaseCNN(num_classes, in_chans, image_size) if net is None else net
        defended = RandomJumpReLUDefense(net, low, high)
        super().__init__(
            defended, Standard(), num_classes=num_classes, lr=lr, validation_attack=validation_attack, seed=seed
        )


class LabelEmbeddingClassifier(_OneCycle):
    """A classifier trained against rows of a class-similarity matrix in place of one-hot labels (the soft label loss).

    A similarity that is computed is computed when training starts, from images of the DataModule's training split; the
    matrix is stored in the checkpoint, so that a resumed run goes on with the same.

    Args:
        similarity: a (K, K) matrix, or "pixels", "logits" or "confusion"; see `SoftLabelEmbedding`.
        reference: a trained classifier, for "logits" and "confusion".
        temperature: positive; above 1 it evens the similarities out.
        floor: least probability of the true class, in (0, 1].
        net: the classifier to train; None builds a SmallCNN.
        others: see the module.

    Raises:
        ValueError: no reference where one is needed, and as `SoftLabelEmbedding`.
    """

    objective: SoftLabelEmbedding

    def __init__(
        self,
        similarity: str | Sequence[Sequence[float]] = "pixels",
        *,
        reference: nn.Module | None = None,
        temperature: float = 1.0,
        floor: float = 0.9,
        net: nn.Module | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 5e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        objective = SoftLabelEmbedding(similarity, temperature, floor)
        if objective.needs_reference and reference is None:
            raise ValueError(f"similarity={similarity!r} needs a trained classifier: reference=NET")
        net = SmallCNN(num_classes, in_chans, image_size) if net is None else net
        super().__init__(net, objective, num_classes=num_classes, lr=lr, validation_attack=validation_attack, seed=seed)
        self._reference = [reference]  # in a list: no part of this module, neither trained nor saved with it

    def on_fit_start(self) -> None:
        """Computes the similarity matrix, unless it is there."""
        if not self.objective.needs_data:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "tensors"):
            raise ValueError(
                "similarities are computed from a DataModule of robustlit.data; fit one, or call "
                "module.objective.prepare(reference, images, labels) before"
            )
        images, labels, _ = data.tensors("train", REFERENCE_IMAGES)
        reference = self._reference[0]
        if reference is not None:
            reference = reference.to(self.device)
        self.objective.prepare(reference, images.to(self.device), labels)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the similarity matrix."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["similarity_matrix"] = self.objective.similarity_matrix

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the similarity matrix of the checkpoint."""
        matrix: Tensor | None = checkpoint.get("similarity_matrix")
        if matrix is not None:
            self.objective = SoftLabelEmbedding(matrix.tolist(), self.objective.temperature, self.objective.floor)


class PGDAdversarialClassifier(_OneCycle):
    """PGD adversarial training (Madry et al., 2018, arXiv:1706.06083), as the recipe pgd_adv_train has it.

    Args:
        eps: budget to withstand, pixel units; 8/255 is usual for colour photographs.
        norm: "linf" or "l2".
        steps: of the inner attack.
        warmup: share of the training steps over which eps rises from 0; from full eps at once small nets can stall.
        margin: eps is multiplied by it in training.
        net: the classifier to train; None builds a SmallCNN of twice the width.
        others: see the module; the validation attack is PGD-10 at eps where none is given.
    """

    def __init__(
        self,
        eps: float = 0.3,
        *,
        norm: str = "linf",
        steps: int = 4,
        warmup: float = 0.4,
        margin: float = 16 / 15,
        net: nn.Module | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 5e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        objective = AdversarialTraining(_inner(eps, norm, steps), warmup, margin)
        net = _wide(num_classes, in_chans, image_size) if net is None else net
        attack = PGD(eps=eps, norm=norm, steps=10) if validation_attack is None else validation_attack
        super().__init__(net, objective, num_classes=num_classes, lr=lr, validation_attack=attack, seed=seed)


class TRADESClassifier(_OneCycle):
    """TRADES (Zhang et al., 2019, arXiv:1901.08573), as the recipe trades has it.

    Args:
        eps: budget to withstand, pixel units; 8/255 is usual for colour photographs.
        beta: weight of the divergence; 6 is usual for colour photographs.
        norm, steps, warmup, margin, net: as in `PGDAdversarialClassifier`.
        others: see the module; the validation attack is PGD-10 at eps where none is given.
    """

    def __init__(
        self,
        eps: float = 0.3,
        *,
        beta: float = 2.0,
        norm: str = "linf",
        steps: int = 4,
        warmup: float = 0.4,
        margin: float = 16 / 15,
        net: nn.Module | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 5e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        objective = TRADES(_inner(eps, norm, steps), beta, warmup, margin)
        net = _wide(num_classes, in_chans, image_size) if net is None else net
        attack = PGD(eps=eps, norm=norm, steps=10) if validation_attack is None else validation_attack
        super().__init__(net, objective, num_classes=num_classes, lr=lr, validation_attack=attack, seed=seed)


def _inner(eps: float, norm: str, steps: int) -> PGD:
    return PGD(eps=eps, norm=norm, steps=steps, step_size=1.875 * eps / steps)


def _wide(num_classes: int, in_chans: int, image_size: int) -> SmallCNN:
    return SmallCNN(num_classes, in_chans, image_size, width=2.0, hidden=256)
