"""LogitMatching: gives an image the logits of a clean image of another class, so that they look natural."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustlit.attacks.active import all_positions, rivals
from robustlit.attacks.ascent import AscentState
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.attacks.worst_case import DECAY
from robustlit.checks import check_counts, check_not_negative
from robustlit.classifier import check_labels, default_batch_size, predicted, undefended
from robustlit.threat import Ball, check_images

_FIRST_STEP = 0.5  # length of the first step as a multiple of eps; the length falls linearly to 0
_GUIDE_DRAWS = 8  # of noise, for the mean logits of a guide under noise
_FAR = 1e6  # farther than any two logits
_WHAT_GUIDES = (
    "guides must be clean images of every class, robustlit.data.Examples(data, per_class=20) or a pair of tensors "
    "(images, labels), got {found}"
)


class Guides(Protocol):
    """Clean images (N, C, H, W) in [0, 1] and their classes (N,), e.g. `robustlit.data.Examples`."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


@dataclass(frozen=True)
class LogitMatching(BudgetAttack):
    """Moves the logits of an image, and their mean under noise, to those of a clean image of another class.

    Tramer, Carlini, Brendel, Madry: On adaptive attacks to adversarial example defenses, 2020, arXiv:2002.08347, the
    section on "The odds are odd"; matching what a net computes for another image goes back to Sabour, Cao, Faghri,
    Fleet: Adversarial manipulation of deep representations, 2016, arXiv:1511.05122. A detector or corrector that looks
    at logits only, with or without noise, then sees nothing unusual. The gradients are those of the undefended net, so
    the attack works against any defense of that kind, differentiable or not; the defense itself judges success.

    Each step climbs the margin until the net is fooled, and from there on approaches the guide of the nearest logits
    (at small budgets, approaching it from the start ends between two classes). The first try starts at the image, later
    ones at random points of the ball; every second one aims at one wrong class, the likeliest first. Guides that the
    defense does not accept are used only where their class has no others. Their passes do not count.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        guides: Clean images of every class, as `Examples(data, per_class=20)` or as a pair (images, labels).
        noise: Standard deviation of normal noise under which the logits are matched too, pixel units; of the order of
            the detector's.
        draws: Passes for each gradient: one at the image itself, the others under noise.
        steps: Gradient steps of a try.
        tries: Number of starts for an unbroken example.
        look: The defense judges after this number of steps, and after the last; a stochastic one takes 20 forwards.

    Raises:
        ValueError: eps, noise or a count out of range, unknown norm, guides of neither kind; at the call: guides of
            another shape than the images, or none of a class that is needed.
    """

    name: ClassVar[str] = "logit_matching"
    adaptive_only: ClassVar[bool] = True
    guides: Guides | tuple[Tensor, Tensor] = field(kw_only=True)
    noise: float = 0.1
    draws: int = 2
    steps: int = 30
    tries: int = 8
    look: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        guides = self.guides
        if isinstance(guides, (tuple, list)):
            if len(guides) != 2 or not all(isinstance(part, Tensor) for part in guides):
                kinds = [type(part).__name__ for part in guides]
                raise ValueError(_WHAT_GUIDES.format(found=f"{len(guides)} of {kinds}"))
            check_images(guides[0])
            check_labels(guides[1], len(guides[0]), name="labels of the guides")
            object.__setattr__(self, "guides", _Pair(*guides))
        # Looked up on the class, because `Examples` reads its images at the first access.
        elif not isinstance(guides, _Pair) and not (
            hasattr(type(guides), "images") and hasattr(type(guides), "labels")
        ):
            raise ValueError(_WHAT_GUIDES.format(found="None" if guides is None else type(guides).__name__))
        check_not_negative(self.noise, "noise", " pixel units; 0 matches no noise")
        check_counts(self, "draws", "steps", "tries", "look")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best, aim = Best(x), Criterion(criterion.label, criterion.target)
        images = AscentState(all_positions(x), rows, criterion, x, Ball(x, eps, self.norm), aim, draws)
        # The outer victim keeps the generators: if this one kept them too, every batch would get the same noise.
        with Victim(undefended(victim.model), x, keep_generators=False, draws=1) as source:
            guides = self._logits_of_guides(victim.model, source.view, x)
            likeliest = rivals(Criterion(criterion.label), source.logits(x))
            guides.check_classes(likeliest.shape[1] + 1)
            for number in track(range(self.tries)):
                left = best.unbroken
                if not len(left):
                    break
                state = images.select(left)
                state.draws = state.draws.fork(number)
                if number % 2 and criterion.target is None:
                    state.aim = state.aim.targeting(likeliest[left, number // 2 % likeliest.shape[1]])
                if number:
                    state.z = state.ball.random_point(state.draws)
                self._approach(victim, best, source, guides, state)
            victim.passes.add(source.passes, rows)
        return best.points

    def _approach(self, victim: Victim, best: Best, source: Victim, guides: _Guides, state: AscentState) -> None:
        """Run one try from the current points towards the guides of the class that `aim` seeks; `victim` judges."""
        state.velocity = torch.zeros_like(state.z)
        for step in track(range(self.steps)):
            losses, z = _Losses(guides, state.aim), state.z
            gradient = source.gradient(z, losses.here, state.at)[2]
            gradient *= max(self.draws - 1, 1)  # the image itself counts as much as all its noisy copies
            for _ in range(self.draws - 1):
                noisy = z + self.noise * state.draws.normal(z)
                gradient += source.gradient(noisy, losses.under_noise, state.at)[2]
            state.gradient = gradient
            state.advance(_FIRST_STEP * (1 - step / self.steps), DECAY)
            judged = (step + 1) % self.look == 0 or step + 1 == self.steps
            if judged and not state.keep(~best.judge(victim, state)):
                return

    def _logits_of_guides(self, model: nn.Module, net: nn.Module, x: Tensor) -> _Guides:
        """Return the guides as the net sees them, in the precision and on the device of `x` (b, ...)."""
        given = self.guides
        assert not isinstance(given, tuple)
        images, labels = given.images.to(x), given.labels.to(x.device)
        if images.shape[1:] != x.shape[1:]:
            wanted, got = tuple(x.shape[1:]), tuple(images.shape[1:])
            raise ValueError(f"the guides must have the shape of the images, {wanted}, got {got}")
        noise = torch.Generator().manual_seed(0)  # the same for every batch
        parts = []
        with torch.no_grad():
            for part in images.split(default_batch_size(images.shape)):
                shifts = [torch.randn(part.shape, generator=noise).to(part) for _ in range(_GUIDE_DRAWS)]
                mean = torch.stack([net(part + self.noise * shift) for shift in shifts]).mean(0)
                parts.append((net(part.clone()), mean, predicted(model(part.clone()))))
        logits, under_noise, found = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return _Guides(labels, found == labels, logits, under_noise)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Images and labels, compared by value."""

    images: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        return f"<{len(self.labels)} images>"  # tensors print over many lines

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Pair):
            return NotImplemented
        return torch.equal(self.images, other.images) and torch.equal(self.labels, other.labels)

    def __hash__(self) -> int:
        return hash((self.images.shape, *self.labels.tolist()))


@dataclass
class _Guides:
    """The N guides as the undefended net sees them."""

    labels: Tensor  # (N,)
    accepted: Tensor  # (N,) bool, whether the defense gives them their class
    logits: Tensor  # (N, K)
    under_noise: Tensor  # (N, K) mean logits under noise

    def check_classes(self, classes: int) -> None:
        """Raise a ValueError unless each of `classes` classes has a guide."""
        missing = sorted({*range(classes)} - {*self.labels.tolist()})
        if missing:
            raise ValueError(
                f"the guides hold no image of class {missing[0]}, but the model has {classes} classes; give clean "
                "images of every class, such as robustlit.data.Examples(data, per_class=20)"
            )


class _Losses:
    """The loss of one step: the margin of `aim` until the net is fooled, then the nearness of the logits to a guide's.

    From logits (b, K) to (b,). Those at the image itself decide the guide, and whether the net is fooled, so `here`
    must be called first.
    """

    def __init__(self, guides: _Guides, aim: Criterion) -> None:
        self.guides, self.aim = guides, aim

    def here(self, logits: Tensor) -> Tensor:
        self.fooled = self.aim.margin(logits.detach()) > 0
        self.chosen = self._nearest(logits.detach())
        return self._loss(logits, self.guides.logits)

    def under_noise(self, logits: Tensor) -> Tensor:
        return self._loss(logits, self.guides.under_noise)

    def _loss(self, logits: Tensor, guides: Tensor) -> Tensor:
        return torch.where(self.fooled, -(logits - guides[self.chosen]).square().sum(1), self.aim.margin(logits))

    def _nearest(self, logits: Tensor) -> Tensor:
        far = torch.cdist(logits, self.guides.logits, compute_mode="donot_use_mm_for_euclid_dist")
        # A guide that the defense does not accept comes after all others; one of a wrong class is never taken.
        far = far.nan_to_num(_FAR).clamp(max=_FAR) + _FAR * ~self.guides.accepted
        if self.aim.target is None:
            barred = self.guides.labels == self.aim.label.unsqueeze(1)
        else:
            barred = self.guides.labels != self.aim.target.unsqueeze(1)
        return far.masked_fill(barred, float("inf")).argmin(1)
