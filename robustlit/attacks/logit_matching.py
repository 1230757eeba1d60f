"""LogitMatching: gives an image the logits of a clean one of another class, so that nothing about them looks odd."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustlit.attacks.ascent import accelerate
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.classifier import check_labels, undefended
from robustlit.threat import Ball, check_images

_DECAY = 0.75  # of the velocity
_STEP = 0.5  # length of the first step as a share of eps; it falls linearly to 0
_CHUNK = 500  # guides in one pass
_GUIDE_DRAWS = 8  # of noise, for the mean logits of a guide under noise
_FAR = 1e6  # farther than any logits are from each other
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
    at logits only, with or without noise, has nothing left to tell the image by. The gradients are those of the
    undefended net, so the attack needs no `detection` and works against any defense of that kind, differentiable or
    not; success is judged by the defense itself.

    Each step climbs the margin until the net is fooled, and from there on approaches the guide whose logits are then
    nearest. (The papers choose a guide once and approach it from the start: at small budgets that ends between the
    two classes.) The first try starts at the image, later ones at random points of the ball; every second one aims at
    one wrong class, the likeliest first. Guides that the defense does not accept as what they are serve only where
    their class has no others.

    Passes count on the undefended net and on the defense; the few that the guides take, once for each batch, do not.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        guides: clean images of every class, as `Examples(data, per_class=20)` or as a pair (images, labels).
        noise: standard deviation of normal noise under which the logits are matched too, pixel units; of the order of
            the detector's.
        draws: passes for each gradient: one at the image itself, the others under noise.
        steps: gradient steps of a try.
        tries: how often an unbroken example is started.
        look: the defense judges after so many steps, and after the last; a stochastic one takes 20 forwards for it.

    Raises:
        ValueError: eps, noise or a count out of range, unknown norm, guides that are neither; at the call: guides of
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
                raise ValueError(
                    _WHAT_GUIDES.format(found=f"{len(guides)} of {[type(part).__name__ for part in guides]}")
                )
            check_images(guides[0])
            check_labels(guides[1], len(guides[0]), name="labels of the guides")
            object.__setattr__(self, "guides", _Pair(*guides))
        # Asked of the class: `Examples` reads its images when they are first asked for.
        elif not isinstance(guides, _Pair) and not (
            hasattr(type(guides), "images") and hasattr(type(guides), "labels")
        ):
            raise ValueError(_WHAT_GUIDES.format(found="None" if guides is None else type(guides).__name__))
        if isinstance(self.noise, bool) or not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be finite and at least 0 pixel units, got {self.noise!r}; 0 matches no noise")
        for name in ("draws", "steps", "tries", "look"):
            check_count(getattr(self, name), name)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best = Best(victim, x, criterion, rows)
        # The generators are the outer victim's to keep: kept here, every batch would get the same noise.
        with Victim(undefended(victim.model), x, keep_generators=False, draws=1) as source:
            guides = self._imitated(victim.model, source.view, x)
            rivals = Criterion(criterion.label).others(source.logits(x)).argsort(1, descending=True)[:, :-1]
            guides.check_classes(rivals.shape[1] + 1)
            for number in range(self.tries):
                left = best.standing
                if not len(left):
                    break
                aim = Criterion(criterion.label, criterion.target).select(left)
                if number % 2 and criterion.target is None:
                    aim = aim.toward(rivals[left, number // 2 % rivals.shape[1]])
                ball, mine = Ball(x[left], eps[left], self.norm), draws.select(left).fork(number)
                z = ball.x if number == 0 else ball.random_point(mine)
                self._approach(best, source, guides, aim, ball, z, left, mine)
            victim.forwards.index_add_(0, rows, source.forwards)
            victim.backwards.index_add_(0, rows, source.backwards)
        return best.points

    def _approach(
        self,
        best: Best,
        source: Victim,
        guides: _Imitated,
        aim: Criterion,
        ball: Ball,
        z: Tensor,
        inside: Tensor,
        draws: Draws,
    ) -> None:
        """One try from `z` for the examples `inside` (b,) towards the guides of the class that `aim` asks for."""
        velocity = torch.zeros_like(z)
        for step in range(self.steps):
            losses = _Losses(guides, aim)
            _, _, gradient = source.gradient(z, losses.here, inside)
            gradient *= max(self.draws - 1, 1)  # the image itself counts as much as all its noisy copies
            for _ in range(self.draws - 1):
                gradient += source.gradient(z + self.noise * draws.normal(z), losses.under_noise, inside)[2]
            velocity = accelerate(velocity, gradient, _DECAY)
            z = ball.step(z, velocity.clone(), ball.eps * (_STEP * (1 - step / self.steps)))
            if (step + 1) % self.look == 0 or step + 1 == self.steps:
                left = torch.nonzero(~best.judge(z, inside)).squeeze(1)
                if not len(left):
                    return
                if len(left) < len(z):
                    inside, aim, ball = inside[left], aim.select(left), ball.select(left)
                    z, velocity, draws = z[left], velocity[left], draws.select(left)

    def _imitated(self, model: nn.Module, net: nn.Module, x: Tensor) -> _Imitated:
        """What there is to imitate, in the precision and on the device of `x` (b, ...)."""
        given = self.guides
        assert not isinstance(given, tuple)
        images, labels = given.images.to(x), given.labels.to(x.device)
        if images.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the guides must have the shape of the images, {tuple(x.shape[1:])}, got {tuple(images.shape[1:])}"
            )
        noise = torch.Generator().manual_seed(0)  # the same for every batch
        parts = []
        with torch.no_grad():
            for part in images.split(_CHUNK):
                shifts = [torch.randn(part.shape, generator=noise).to(part) for _ in range(_GUIDE_DRAWS)]
                mean = torch.stack([net(part + self.noise * shift) for shift in shifts]).mean(0)
                parts.append((net(part.clone()), mean, model(part.clone()).argmax(1)))
        logits, under_noise, found = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return _Imitated(labels, found == labels, logits, under_noise)


@dataclass(frozen=True, eq=False)
class _Pair:
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
class _Imitated:
    """The N guides as the net sees them.

    Args:
        labels: (N,).
        accepted: (N,) bool, the defense takes them for what they are.
        logits: (N, K).
        under_noise: (N, K) mean logits under noise.
    """

    labels: Tensor
    accepted: Tensor
    logits: Tensor
    under_noise: Tensor

    def check_classes(self, classes: int) -> None:
        missing = sorted({*range(classes)} - {*self.labels.tolist()})
        if missing:
            raise ValueError(
                f"the guides hold no image of class {missing[0]}, but the model has {classes} classes; give clean "
                "images of every class, such as robustlit.data.Examples(data, per_class=20)"
            )


class _Losses:
    """What one step climbs: the margin of `aim` until the net is fooled, then how near the logits are to a guide's.

    The guide, and whether the net is fooled, are read off the logits at the image itself, so `here` comes first.
    """

    def __init__(self, guides: _Imitated, aim: Criterion) -> None:
        self.guides, self.aim = guides, aim

    def here(self, logits: Tensor) -> Tensor:
        """(b,) of the logits (b, K) at the image."""
        self.fooled = self.aim.margin(logits.detach()) > 0
        self.chosen = self._nearest(logits.detach())
        return self._loss(logits, self.guides.logits)

    def under_noise(self, logits: Tensor) -> Tensor:
        """(b,) of the logits (b, K) of a noisy copy."""
        return self._loss(logits, self.guides.under_noise)

    def _loss(self, logits: Tensor, guides: Tensor) -> Tensor:
        return torch.where(self.fooled, -(logits - guides[self.chosen]).square().sum(1), self.aim.margin(logits))

    def _nearest(self, logits: Tensor) -> Tensor:
        far = torch.cdist(logits, self.guides.logits, compute_mode="donot_use_mm_for_euclid_dist")
        # One that the defense does not accept comes after all that it does, one of another class never.
        far = far.nan_to_num(_FAR).clamp(max=_FAR) + _FAR * ~self.guides.accepted
        if self.aim.target is None:
            barred = self.guides.labels == self.aim.label.unsqueeze(1)
        else:
            barred = self.guides.labels != self.aim.target.unsqueeze(1)
        return far.masked_fill(barred, float("inf")).argmin(1)
