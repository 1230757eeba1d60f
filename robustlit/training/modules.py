"""LightningModules by name: the classifiers that a user looks for first, each a `RobustClassifier` put together.

    pl.Trainer(max_epochs=5).fit(module := BaseCNNClassifier(), datamodule=(data := MNIST()))
    robustlit.evaluate(module.net, data, attacks=[PGD(eps=0.3)])

All train by Adam under a one-cycle schedule; for another optimizer, schedule or objective use `RobustClassifier`. Their
checkpoints hold no recipe: load them by `load_classifier(path, net=...)` with the same net. Besides their own
arguments, all take the keyword arguments of `Settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from robustlit.attacks import PGD, Attack
from robustlit.defenses.jumprelu import JumpReLUDefense, RandomJumpReLUDefense
from robustlit.models import BaseCNN, SmallCNN
from robustlit.objectives import TRADES, AdversarialTraining, Objective, SoftLabelEmbedding, Standard
from robustlit.training.classifier import RobustClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

REFERENCE_IMAGES = 10_000  # from which class similarities are computed
ADVERSARIAL_LR = 5e-3  # of recipes/trades.yaml and label_embedding.yaml
_Build = Callable[[int, int, int], nn.Module]  # num_classes, in_chans, image_size


class Settings(TypedDict, total=False):
    """Keyword arguments of every module here.

    num_classes, in_chans, image_size: Of the data; 10, 1, 28 where not given. lr: Largest rate of Adam, which the
    one-cycle schedule rises to and falls from. validation_attack: A cheap attack run on every validation batch; choose
    the checkpoint by `val/robust_accuracy`. seed: Of every training step.
    """

    num_classes: int
    in_chans: int
    image_size: int
    lr: float
    validation_attack: Attack | None
    seed: int


class _OneCycle(RobustClassifier):
    def __init__(
        self,
        build: _Build,
        objective: Objective,
        *,
        num_classes: int = 10,
        in_chans: int = 1,
        image_size: int = 28,
        lr: float = 2e-3,
        validation_attack: Attack | None = None,
        seed: int = 0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        super().__init__(
            build(num_classes, in_chans, image_size),
            objective,
            partial(torch.optim.Adam, lr=lr),
            num_classes=num_classes,
            schedule=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=lr),
            validation_attack=validation_attack,
            seed=seed,
        )


class BaseCNNClassifier(_OneCycle):
    """The base network of the 2019 report (594 922 parameters on MNIST) with standard training: the undefended control.

    Args:
        dropout: Probability of dropping a unit before the last layer, in [0, 1).
        settings: See `Settings`.
    """

    def __init__(self, *, dropout: float = 0.0, **settings: Unpack[Settings]) -> None:
        super().__init__(partial(BaseCNN, dropout=dropout), Standard(), **settings)


class JumpReLUClassifier(_OneCycle):
    """A net trained with JumpReLU in place of its activations (Erichson et al., 2019, arXiv:1904.03750).

    The paper applies the jump to a net that is already trained, which needs no training:
    `robustlit.defenses.JumpReLUDefense(net, kappa)`.

    Args:
        kappa: Threshold of the jump, at least 0, in units of the activations; 0 is the plain activation.
        net: The classifier whose activations are replaced (in a copy); None builds a BaseCNN.
        settings: See `Settings`.
    """

    def __init__(self, kappa: float = 0.0645, *, net: nn.Module | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(lambda *sizes: JumpReLUDefense(_given(net, BaseCNN)(*sizes), kappa), Standard(), **settings)


class RandomJumpReLUClassifier(_OneCycle):
    """As `JumpReLUClassifier`, with a new threshold from U(low, high) for each layer and forward.

    Randomness alone is no defense: attacks average their gradients over draws, and a validation attack takes as many
    times longer.

    Args:
        low, high: Bounds of the threshold, 0 <= low <= high, in units of the activations.
        net: The classifier whose activations are replaced (in a copy); None builds a BaseCNN.
        settings: See `Settings`.
    """

    def __init__(
        self,
        low: float = 0.6 * 0.0645,
        high: float = 0.0645,
        *,
        net: nn.Module | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(
            lambda *sizes: RandomJumpReLUDefense(_given(net, BaseCNN)(*sizes), low, high), Standard(), **settings
        )


class LabelEmbeddingClassifier(_OneCycle):
    """A classifier trained against rows of a class-similarity matrix in place of one-hot labels (the soft label loss).

    The similarity is computed when training starts, from images of the DataModule's training split, unless it is given.
    The checkpoint stores the matrix, so that a resumed run uses the same.

    Args:
        similarity, temperature, floor: See `SoftLabelEmbedding`.
        reference: A trained classifier, for "logits" and "confusion".
        net: The classifier to train; None builds a SmallCNN.
        settings: See `Settings`.

    Raises:
        ValueError: No reference where one is needed, and as `SoftLabelEmbedding`.
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
        **settings: Unpack[Settings],
    ) -> None:
        objective = SoftLabelEmbedding(similarity, temperature, floor)
        if objective.needs_reference and reference is None:
            raise ValueError(f"similarity={similarity!r} needs a trained classifier: reference=NET")
        settings.setdefault("lr", ADVERSARIAL_LR)
        super().__init__(_given(net, SmallCNN), objective, **settings)
        self._reference = [reference]  # in a list: no part of this module, neither trained nor saved with it

    def on_fit_start(self) -> None:
        """Compute the similarity matrix, unless it is there."""
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
        """Add the similarity matrix."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["similarity_matrix"] = self.objective.similarity_matrix

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the similarity matrix."""
        matrix: Tensor | None = checkpoint.get("similarity_matrix")
        if matrix is not None:
            self.objective = SoftLabelEmbedding(matrix.tolist(), self.objective.temperature, self.objective.floor)


class PGDAdversarialClassifier(_OneCycle):
    """PGD adversarial training (Madry et al., 2018, arXiv:1706.06083), as in the recipe pgd_adv_train.

    The defaults were chosen on MNIST. For colour photographs the usual values are `eps=8 / 255, steps=10, eps_scale=1`
    and a net such as `PreActResNet` (Rice et al., 2020, arXiv:2002.11569).

    Args:
        eps: Budget to be robust to, in pixel units.
        norm: "linf" or "l2".
        steps: Steps of the inner attack.
        warmup, eps_scale, margin: See `AdversarialTraining`.
        net: The classifier to train; None builds a BaseCNN of half the width.
        settings: See `Settings`; the validation attack is PGD-10 at eps where none is given.
    """

    def __init__(
        self,
        eps: float = 0.3,
        *,
        norm: str = "linf",
        steps: int = 3,
        warmup: float = 0.3,
        eps_scale: float = 1.12,
        margin: float | None = None,
        net: nn.Module | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        objective = AdversarialTraining(_inner(eps, norm, steps, reach=1.65), warmup, eps_scale, margin=margin)
        settings.setdefault("lr", 4e-3)
        super().__init__(_given(net, partial(BaseCNN, width=0.5)), objective, **_validated(settings, eps, norm))


class TRADESClassifier(_OneCycle):
    """TRADES (Zhang et al., 2019, arXiv:1901.08573), as in the recipe trades.

    The defaults were chosen on MNIST. For colour photographs the usual values are those of the paper,
    `eps=8 / 255, beta=6, steps=10, eps_scale=1`, and a net such as `PreActResNet`.

    Args:
        eps: Budget to be robust to, in pixel units.
        beta: Weight of the divergence.
        net: The classifier to train; None builds a SmallCNN of twice the width.
        norm, steps, warmup, eps_scale, margin, settings: See `PGDAdversarialClassifier`.
    """

    def __init__(
        self,
        eps: float = 0.3,
        *,
        beta: float = 2.0,
        norm: str = "linf",
        steps: int = 4,
        warmup: float = 0.4,
        eps_scale: float = 16 / 15,
        margin: float | None = None,
        net: nn.Module | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        objective = TRADES(_inner(eps, norm, steps, reach=1.875), beta, warmup, eps_scale, margin=margin)
        super().__init__(_given(net, _wide), objective, **_validated(settings, eps, norm))


def _given(net: nn.Module | None, build: _Build) -> _Build:
    return build if net is None else lambda *sizes: net


def _inner(eps: float, norm: str, steps: int, reach: float) -> PGD:
    return PGD(eps=eps, norm=norm, steps=steps, relative_step_size=reach / steps)


def _wide(num_classes: int, in_chans: int, image_size: int) -> SmallCNN:
    return SmallCNN(num_classes, in_chans, image_size, width=2.0, hidden=256)


def _validated(settings: Settings, eps: float, norm: str) -> Settings:
    attack = settings.get("validation_attack") or PGD(eps=eps, norm=norm, steps=10)
    return {"lr": ADVERSARIAL_LR, **settings, "validation_attack": attack}
