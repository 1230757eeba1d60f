"""What every attack is: frozen hyper-parameters, called on a model and a batch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.classifier import check_labels
from robustlit.threat import NORMS, check_eps, check_images, distance

_STEPS_BETWEEN_CHECKS_ON_GPU = 4  # asking who has finished waits for the GPU; on a CPU it is free
_PROBABILITIES = (
    "{name} returns probabilities (every row is positive and sums to 1), not logits: where they saturate, gradients "
    "vanish and gradient-based attacks look weaker than they are; return the logits, without the softmax"
)
_NOT_FINITE = (
    "{bad} of {count} examples got logits that are not finite during {attack}; such points count for no success"
)


def check_every(x: Tensor) -> int:
    """After how many steps a search looks who has finished: each step on a CPU, every few on a GPU."""
    return _STEPS_BETWEEN_CHECKS_ON_GPU if x.is_cuda else 1


@dataclass
class AttackResult:
    """What an attack found, one entry per example.

    Attributes:
        x_adv: (B, ...) the witness where there is one, else the best attempt.
        success: (B,) bool, judged by a fresh forward of the real model on `x_adv`.
        prediction: (B,) the class the real model gives to `x_adv`; of a stochastic one, that of the most votes, the
            wrong ones where they won.
        distance: (B,) from the clean image, in the attack's norm, pixel units. 0 for an example that needed no attack.
        forwards, backwards: (B,) passes spent on the example.
        finite: (B,) bool, False where the model gave logits that are not finite on the way: its failure says nothing.
    """

    x_adv: Tensor
    success: Tensor
    prediction: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Attack(ABC):
    """An attack in some norm. Subclasses are frozen dataclasses of hyper-parameters that implement `_search`."""

    name: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = NORMS
    """The norms that the attack is defined in."""
    targeted: ClassVar[bool] = True
    """Whether it can be asked for a class."""
    untargeted: ClassVar[bool] = True
    """Whether it can be asked for any class but the true one."""
    needs_gradients: ClassVar[bool] = True
    """Whether it differentiates the model; else it can run in a black box as it is."""
    adaptive_only: ClassVar[bool] = False
    """Whether it works on the parts of a defense, so that there is nothing to run against who does not know them."""
    norm: str = field(default="linf", kw_only=True)

    @property
    def _starts_at_image(self) -> bool:
        """Whether the search first asks for the gradient at the image itself, by `Victim.gradient_of_opening`."""
        return False

    def __post_init__(self) -> None:
        if self.norm not in self.norms:
            raise ValueError(
                f"norm must be one of {', '.join(self.norms)} for {type(self).__name__}, got {self.norm!r}"
            )

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Adversarial images (B, ...) in [0, 1]; the arguments are those of `run`."""
        return self.run(model, x, y, target=target, index=index, seed=seed).x_adv

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
    ) -> AttackResult:
        """Attacks a batch.

        Args:
            model: from images (B, C, H, W) in [0, 1] to logits (B, K).
            x: images (B, C, H, W), float32 in [0, 1].
            y: (B,) true classes.
            target: (B,) classes to reach; None means any but the true one.
            index: (B,) number of each example in its data set. With `seed`, random draws depend on (seed, index) alone.
            seed: None draws from the device's generator.

        Returns:
            The result per example. An example that reaches the criterion unchanged is returned as it is, at distance 0.

        Raises:
            ValueError: images outside [0, 1] or not finite, labels out of range, logits not (B, K), no gradient, a
                target for an attack that takes none, or none for one that needs it.
        """
        return self._run(model, x, y, None, target, index, seed)

    def _run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor | None,
        target: Tensor | None,
        index: Tensor | None,
        seed: int | None,
    ) -> AttackResult:
        check_images(x)
        check_labels(y, len(x))
        if target is None and not self.untargeted:
            raise ValueError(
                f"{type(self).__name__} needs the class to reach, one per example: target=tensor of shape (B,)"
            )
        if target is not None:
            if not self.targeted:
                raise ValueError(
                    f"{type(self).__name__} is defined for leaving the true class only: leave target out, or take an "
                    "attack that can be asked for a class"
                )
            check_labels(target, len(x), name="target")
        if index is not None:
            check_labels(index, len(x), name="index")
        with Victim(model, x, keep_generators=seed is not None) as victim:
            # Copies made here are ordinary tensors even where the caller's were made in inference mode.
            x, y = x.detach().clone(), y.detach().clone().to(torch.int64)
            target = None if target is None else target.detach().clone().to(torch.int64)
            index = torch.arange(len(x), device=x.device) if index is None else index.detach().clone().to(x.device)
            if seed is not None and victim.is_stochastic:
                victim.reseed(seed, index)
            criterion, sought = victim.criterion(y, target), victim.criterion(y, target, safely=True)
            clean = victim.open(x) if self._starts_at_image and victim.sees_itself else victim.logits(x)
            if _are_probabilities(clean):
                warnings.warn(_PROBABILITIES.format(name=type(model).__name__), stacklevel=3)
            classes = criterion.classes(clean)
            check_labels(y, len(x), classes)
            if target is not None:
                check_labels(target, len(x), classes, name="target")
            x_adv = x.clone()
            done = sought.reached(clean)
            rows = torch.nonzero(~done).squeeze(1)
            if len(rows):
                draws = Draws(seed, index[rows])
                radius = None if eps is None else eps.detach().clone()[rows]
                x_adv[rows] = self._search(victim, x[rows], sought.select(rows), rows, draws, radius).detach()
            judged = victim.logits(x_adv)
            if victim.is_stochastic:  # who was not attacked must not be called robust because a recount went his way
                judged = torch.where(done.unsqueeze(1), clean, judged)
            if bad := int((~victim.finite).sum()):
                warnings.warn(_NOT_FINITE.format(bad=bad, count=len(x), attack=self.name), stacklevel=3)
            success = criterion.reached(judged)
            return AttackResult(
                x_adv=x_adv,
                success=success,
                prediction=criterion.prediction(judged, success),
                distance=distance(x_adv, x, self.norm),
                forwards=victim.forwards,
                backwards=victim.backwards,
                finite=victim.finite,
            )

    @abstractmethod
    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        """The witnesses, or best attempts, for the examples `x` (b, ...), which are `rows` of the victim's batch."""


def _are_probabilities(logits: Tensor) -> bool:
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((logits >= 0).all() and ((logits.double().sum(1) - 1).abs() < tolerance).all())


@dataclass(frozen=True)
class BudgetAttack(Attack):
    """An attack that stays within a given distance.

    Args:
        eps: budget in pixel units: (0, 1] for "linf", positive for "l2".
        norm: "linf" or "l2".
    """

    eps: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eps", check_eps(self.eps, self.norm))

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
        eps: float | Tensor | None = None,
    ) -> Tensor:
        """Adversarial images (B, ...) in [0, 1]; the arguments are those of `run`."""
        return self.run(model, x, y, target=target, index=index, seed=seed, eps=eps).x_adv

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
        eps: float | Tensor | None = None,
    ) -> AttackResult:
        """Attacks a batch within a budget; arguments as in `Attack.run`, and

        Args:
            eps: replaces the attack's own budget: one for all, or one per example (B,), where 0 leaves it unchanged.
        """
        return self._run(model, x, y, self.budgets(eps, x), target, index, seed)

    def budgets(self, eps: float | Tensor | None, x: Tensor) -> Tensor:
        """One budget per example, (B,) in the dtype and on the device of `x`."""
        if eps is None:
            eps = self.eps
        if not isinstance(eps, Tensor):
            return x.new_full((len(x),), check_eps(eps, self.norm))
        if eps.shape != (len(x),):
            raise ValueError(f"eps per example must have shape ({len(x)},), got {tuple(eps.shape)}")
        largest = 1.0 if self.norm == "linf" else float("inf")
        wrong = eps[~((eps >= 0) & (eps <= largest) & torch.isfinite(eps))].tolist()
        if wrong:
            hint = f"; did you mean {wrong[0]:g}/255?" if largest < wrong[0] <= 255 else ""
            raise ValueError(f"eps per example must be finite, in [0, {largest:g}] pixel units, got {wrong[0]:g}{hint}")
        return eps.to(x)
