"""The interface of every attack: frozen hyper-parameters, called on a model and a batch."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion, are_probabilities, are_saturated
from robustlit.attacks.victim import Victim
from robustlit.checks import is_number, meant_levels
from robustlit.classifier import check_labels, check_not_hidden
from robustlit.threat import NORMS, check_eps, check_images, distance, expand

_PROBABILITIES = (
    "{name} returns probabilities (every row is positive and sums to 1), not logits: where they saturate, gradients "
    "vanish and gradient-based attacks look weaker than they are; return the logits, without the softmax"
)
_SATURATED = (
    "{name} returns the outputs of a sigmoid or tanh (all lie in [0, 1] or [-1, 1], many at the ends), not logits: "
    "where they saturate, gradients vanish and gradient-based attacks look weaker than they are; return its input"
)
_NOT_FINITE = (
    "{bad} of {count} examples got logits that are not finite during {attack}; where they name no class, the model "
    "counts as broken"
)


@dataclass
class AttackResult:
    """What an attack found, one entry per example.

    Attributes:
        x_adv: (B, ...) the adversarial example where there is one, else the best attempt; the image itself where the
            attack's own arithmetic left pixels that are not finite.
        success: (B,) bool, from a fresh forward of the real model on `x_adv`.
        prediction: (B,) the class that the real model gives to `x_adv`, -1 where its logits name none
            (`robustlit.classifier.names_class`), which no untargeted attack misses. Of a stochastic model: the class of
            the most votes, where the attack succeeded among the classes that it sought.
        distance: (B,) from the clean image, in the attack's norm, pixel units. 0 for an example that needed no attack.
        forwards, backwards: (B,) passes spent on the example.
        finite: (B,) bool, False where some logits of the search were not finite: a failure then proves nothing.
    """

    x_adv: Tensor
    success: Tensor
    prediction: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    finite: Tensor

    @classmethod
    def joined(cls, parts: Sequence[AttackResult]) -> AttackResult:
        """Return the result of the examples of all parts, in order; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True)
class Attack(ABC):
    """An attack in some norm. Subclasses are frozen dataclasses of hyper-parameters that implement `_search`."""

    name: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = NORMS  # in which the attack is defined
    targeted: ClassVar[bool] = True  # can seek a given class
    untargeted: ClassVar[bool] = True  # can seek any class but the true one
    needs_gradients: ClassVar[bool] = True  # differentiates the model; else it can run in a black box as it is
    goes_on_blind: ClassVar[bool] = False  # where the model gives no gradient it warns and does what needs none
    adaptive_only: ClassVar[bool] = False  # works on the parts of a defense, which the attacker must know
    norm: str = field(default="linf", kw_only=True)

    @property
    def starts_at_image(self) -> bool:
        """Whether the search first takes the gradient at the image itself, by `Victim.gradient_from_graph`."""
        return False

    @property
    def expected_passes(self) -> float:
        """Passes for an image that it does not break, roughly; for the progress that is shown."""
        counts = (getattr(self, name, 1) for name in ("steps", "restarts", "searches", "tries"))
        return 2.0 * math.prod(count for count in counts if is_number(count))  # an attack of yours may have others

    def __post_init__(self) -> None:
        if self.norm not in self.norms:
            known, name = ", ".join(self.norms), type(self).__name__
            raise ValueError(f"norm must be one of {known} for {name}, got {self.norm!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None,
                 index: Tensor | None = None, seed: int | None = None) -> Tensor:  # fmt: skip
        """Return adversarial images (B, ...) in [0, 1]; the arguments are those of `run`."""
        return self.run(model, x, y, target=target, index=index, seed=seed).x_adv

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None,
            index: Tensor | None = None, seed: int | None = None) -> AttackResult:  # fmt: skip
        """Attack a batch.

        Args:
            model: From images (B, C, H, W) in [0, 1] to logits (B, K).
            x: Images (B, C, H, W), float32 in [0, 1].
            y: (B,) true classes.
            target: (B,) classes to reach; None means any but the true one.
            index: (B,) number of each example in its data set. With `seed`, random draws depend on (seed, index) alone.
            seed: None takes one number from PyTorch's generator.

        Returns:
            The result per example. An example that meets the criterion unchanged is returned as it is, at distance 0.

        Raises:
            ValueError: Images outside [0, 1] or not finite, labels out of range, logits not (B, K), no gradient, a
                target for an attack that takes none, or none for one that needs it.
        """
        return self._run(model, Batch(x, y, target, index, seed), None)

    def _run(self, model: nn.Module, given: Batch, eps: Tensor | None) -> AttackResult:
        self._check(given)
        check_not_hidden(model)
        seed = given.seed
        if seed is None:  # before the model runs, whose forward may set PyTorch's seed
            seed = int(torch.randint(2**62, ()))
        with Victim(model, given.x, keep_generators=given.seed is not None, watch=True) as victim:
            # Copies made here are ordinary tensors even where the caller's were made in inference mode.
            x, y, target, index = given.copies()
            if given.seed is not None and victim.is_stochastic:
                victim.reseed(given.seed, index)
            criterion, sought = victim.criterion(y, target), victim.criterion(y, target, safely=True)
            if self.starts_at_image and victim.view_is_model:
                clean = logits = victim.open(x)
            else:
                clean, logits = victim.judge(x)
            if are_probabilities(clean):
                warnings.warn(_PROBABILITIES.format(name=type(model).__name__), stacklevel=3)
            elif are_saturated(clean):
                warnings.warn(_SATURATED.format(name=type(model).__name__), stacklevel=3)
            classes = criterion.classes(clean)
            check_labels(y, len(x), classes)
            if target is not None:
                check_labels(target, len(x), classes, name="target")
            x_adv, done = x.clone(), sought.reached(clean)
            rows = torch.nonzero(~done).squeeze(1)
            if eps is None:  # a minimal attack ends next to the boundary
                sought = sought.with_rounding_margin(clean)
            if self.needs_gradients:
                sought = sought.scaled_to(victim.attacked_logits(x, logits))
            if len(rows):
                draws = Draws(seed, index[rows])
                radius = None if eps is None else eps.detach().clone()[rows]
                x_adv[rows] = self._search(victim, x[rows], sought.select(rows), rows, draws, radius).detach()
            lost = ~x_adv.isfinite().flatten(1).all(1)  # the attack has failed, not the model
            x_adv = torch.where(expand(lost, x), x, x_adv)
            judged = victim.logits(x_adv)
            if victim.is_stochastic:  # an example that was not attacked keeps its votes: new ones could clear it
                judged = torch.where(done.unsqueeze(1), clean, judged)
            if bad := int((~victim.passes.finite).sum()):
                warnings.warn(_NOT_FINITE.format(bad=bad, count=len(x), attack=self.name), stacklevel=3)
            success = criterion.reached(judged)
            prediction, moved = criterion.prediction(judged, success), distance(x_adv, x, self.norm)
            spent = victim.passes
            return AttackResult(x_adv, success, prediction, moved, spent.forwards, spent.backwards, spent.finite)

    def _check(self, given: Batch) -> None:
        check_images(given.x)
        count, name = len(given.x), type(self).__name__
        check_labels(given.y, count)
        if given.target is None and not self.untargeted:
            raise ValueError(f"{name} needs the class to reach, one per example: target=tensor of shape (B,)")
        if given.target is not None:
            if not self.targeted:
                raise ValueError(
                    f"{name} is defined for leaving the true class only: leave target out, or take an attack that can "
                    "seek a given class"
                )
            check_labels(given.target, count, name="target")
        if given.index is not None:
            check_labels(given.index, count, name="index")

    @abstractmethod
    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        """Return adversarial examples, or best attempts, for the images `x` (b, ...), `rows` of the victim's batch."""


@dataclass(frozen=True)
class Batch:
    """The arguments of `Attack.run`, as the caller gave them."""

    x: Tensor
    y: Tensor
    target: Tensor | None
    index: Tensor | None
    seed: int | None

    def copies(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return copies of x, y, target and index; without an index the examples are numbered in order."""
        x, y = self.x.detach().clone(), self.y.detach().clone().to(torch.int64)
        target = None if self.target is None else self.target.detach().clone().to(torch.int64)
        if self.index is None:
            return x, y, target, torch.arange(len(x), device=x.device)
        return x, y, target, self.index.detach().clone().to(x.device)


@dataclass(frozen=True)
class BudgetAttack(Attack):
    """An attack that stays within a given distance.

    Args:
        eps: Budget in pixel units: (0, 1] for "linf", positive for "l2".
        norm: "linf" or "l2".
    """

    eps: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eps", check_eps(self.eps, self.norm))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None,
                 index: Tensor | None = None, seed: int | None = None,
                 eps: float | Tensor | None = None) -> Tensor:  # fmt: skip
        """Return adversarial images (B, ...) in [0, 1]; the arguments are those of `run`."""
        return self.run(model, x, y, target=target, index=index, seed=seed, eps=eps).x_adv

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None,
            index: Tensor | None = None, seed: int | None = None,
            eps: float | Tensor | None = None) -> AttackResult:  # fmt: skip
        """Attack a batch as `Attack.run`; `eps` replaces the own budget: one for all, or (B,), where 0 is allowed."""
        return self._run(model, Batch(x, y, target, index, seed), self.budgets(eps, x))

    def budgets(self, eps: float | Tensor | None, x: Tensor) -> Tensor:
        """Return one budget per example, (B,) in the dtype and on the device of `x`."""
        if eps is None:
            eps = self.eps
        if not isinstance(eps, Tensor):
            return x.new_full((len(x),), check_eps(eps, self.norm))
        if eps.shape != (len(x),):
            raise ValueError(f"eps per example must have shape ({len(x)},), got {tuple(eps.shape)}")
        largest = 1.0 if self.norm == "linf" else float("inf")
        wrong = eps[~((eps >= 0) & (eps <= largest) & torch.isfinite(eps))].tolist()
        if wrong:
            hint = meant_levels(wrong[0]) if wrong[0] > largest else ""
            raise ValueError(f"eps per example must be finite, in [0, {largest:g}] pixel units, got {wrong[0]:g}{hint}")
        return eps.to(x)
