"""NearestL2: walks of two kinds towards several classes, for curves that do not overstate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import rivals
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Nearest
from robustlit.attacks.ddn import Walk, half_cosine
from robustlit.attacks.draws import Draws
from robustlit.attacks.fab import FAB
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.starts import far_from
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts
from robustlit.threat import expand

# First and last value, falling geometrically between them: of a step as a share of the perturbation's norm, and of
# gamma, the share by which that norm changes. What they reach beside other attacks:
#     python benchmarks/attacks.py --attacks nearest-l2 --n 200
_EXPLORE_GAMMAS = (0.2, 0.02)
_REFINE_STEPS, _REFINE_GAMMAS = (0.3, 0.003), (0.2, 0.001)
_FINISH_STEPS, _FINISH_GAMMAS = (0.1, 0.002), (0.05, 0.001)
# Of the walks of FAB: the class, by logit, and the start.
_FAB_WALKS = (
    (0, "image"), (0, "noise"), (1, "salt"), (0, "coarse"), (0, "grey"), (1, "noise"), (1, "image"), (0, "salt")
)  # fmt: skip


def short_fab(steps: int) -> FAB:
    """Return FAB with a longer overshoot and way back than its own: runs of 30 steps end nearer."""
    return FAB(norm="l2", steps=steps, beta=0.8, eta=1.2)


@dataclass(frozen=True)
class NearestL2(Attack):
    """The nearest adversarial example in L2 of several walks: towards any class, then towards single ones.

    Built on DDN (Rony et al., 2019, arXiv:1811.09600), whose norm changes by a fixed share to the end and which follows
    one path. Here the shares fall as the walk goes on; further walks head for the classes of highest logit, as do walks
    of FAB (Croce, Hein 2020, arXiv:1907.02044), which project on the boundary within the box [0, 1] and find what few
    pixels a net reacts to, most of all from noise far outside, where every pixel counts; the nearest few adversarial
    examples are refined, and the nearest of all once more. About 880 forwards and 640 backwards by default.

    Args:
        explore: Steps of each first walk.
        candidates: Number of classes with a walk of DDN of their own, beside the walk towards any class; unused with a
            target.
        kept: Number of the nearest adversarial examples of an image that are refined.
        refine: Steps of each refinement.
        finish: Steps of the last refinement, of the nearest adversarial example.
        boundary: Number of walks of FAB, of half as many steps as `explore`, at most 8: the first starts at the image,
            most others far outside; they head for the two classes of highest logit.

    Raises:
        ValueError: A count below 1, `boundary` above 8, a norm other than "l2".
    """

    name: ClassVar[str] = "nearest_l2"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    norm: str = field(default="l2", kw_only=True)
    explore: int = 60
    candidates: int = 2
    kept: int = 2
    refine: int = 60
    finish: int = 100
    boundary: int = 8

    @property
    def expected_passes(self) -> float:
        return sum(self._passes_of_stages)

    @property
    def _passes_of_stages(self) -> tuple[float, ...]:
        """Passes of each stage, roughly."""
        walks, boundary = 2 * self.explore * (1 + self.candidates), 1.5 * self.explore * self.boundary
        return walks, boundary, 2 * self.kept * self.refine, 2 * self.finish

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "explore", "candidates", "kept", "refine", "finish", "boundary")
        if self.boundary > len(_FAB_WALKS):
            raise ValueError(
                f"boundary must be at most {len(_FAB_WALKS)}, the number of walks that differ, got {self.boundary}"
            )

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        return self.nearest(victim, x, criterion, rows, draws).points

    def nearest(self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws) -> Nearest:
        """Return the nearest adversarial examples of the images `x` (b, ...), `rows` (b,) of the victim's batch."""
        stages = track(range(4), self._passes_of_stages)
        next(stages)
        classes = None if criterion.target is not None else rivals(criterion, victim.logits(x, rows))
        headings: list[Tensor | None] = [None]
        if classes is not None and classes.shape[1] > 1:  # with two classes, any class is the other one
            headings += [*classes[:, : self.candidates].unbind(1)]
        walks = [self._explore(victim, x, criterion, rows, draws, heading) for heading in track(headings)]
        next(stages)
        aims: list[Tensor | None] = [None] if classes is None else [*classes[:, :2].unbind(1)]
        fab, unlimited = short_fab(-(-self.explore // 2)), x.new_zeros(len(x))
        for number, (likely, start) in enumerate(track(_FAB_WALKS[: self.boundary])):
            z, aim = far_from(x, start, draws.fork(number)), aims[min(likely, len(aims) - 1)]
            walks.append(fab.toward(victim, x, criterion, rows, unlimited, aim, z))
        ranks = _ranked(walks)
        kept = []
        next(stages)
        for rank in track(ranks[: self.kept].unbind()):
            # A walk that found nothing is not refined: in its place, the image's nearest is.
            nearest = _or_else(_pick(walks, rank), _pick(walks, ranks[0]))
            refine(victim, nearest, criterion, rows, draws, self.refine)
            kept.append(nearest)
        next(stages)
        best = _pick(kept, _ranked(kept)[0])
        refine(victim, best, criterion, rows, draws, self.finish, _FINISH_STEPS, _FINISH_GAMMAS)
        return best

    def _explore(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, heading: Tensor | None
    ) -> Nearest:
        """Walk from the image, towards the criterion or towards the classes `heading` (B,)."""

        def lead(logits: Tensor) -> Tensor:
            if heading is None:
                return criterion.log_odds(logits)
            return logits.gather(1, heading.unsqueeze(1)).squeeze(1) - criterion.reference_logit(logits)

        walk = Walk(Nearest(x, self.norm), x, x.new_ones(len(x)), draws)
        for step in track(range(self.explore)):
            length, gamma = half_cosine(step, self.explore), _fall(*_EXPLORE_GAMMAS, step / self.explore)
            walk.step(victim, criterion, rows, lead, x.new_full((len(x),), length), gamma)
        return walk.nearest


def refine(
    victim: Victim, nearest: Nearest, criterion: Criterion, rows: Tensor, draws: Draws, steps: int,
    lengths: tuple[float, float] = _REFINE_STEPS, gammas: tuple[float, float] = _REFINE_GAMMAS,
) -> None:  # fmt: skip
    """Take DDN steps from each adversarial example in `nearest`; where there is none, from the best attempt.

    Args:
        victim: The model.
        nearest: The nearest adversarial examples so far of images (b, ...); nearer ones are recorded here.
        criterion: What counts as success.
        rows: (b,), positions of the images in the victim's batch.
        draws: Of the examples.
        steps: Number of steps.
        lengths: First and last step, as shares of the perturbation's norm.
        gammas: First and last share by which that norm changes.
    """
    # An attempt may be the image itself: a walk of norm zero would stand still.
    start = torch.linalg.vector_norm((nearest.points - nearest.x).flatten(1), dim=1)
    walk = Walk(nearest, nearest.points, torch.where(start > 0, start, 1.0), draws)
    for step in track(range(steps)):
        length = walk.norm * _fall(*lengths, step / steps)
        walk.step(victim, criterion, rows, criterion.margin, length, _fall(*gammas, step / steps))


def _fall(first: float, last: float, progress: float) -> float:
    return first * (last / first) ** progress


def _ranked(walks: list[Nearest]) -> Tensor:
    """Return the numbers of the walks (walks, B), the nearest first; of those that found nothing, by their margins."""
    distances, margins = (torch.stack([getattr(walk, name) for walk in walks]) for name in ("distances", "margins"))
    order = margins.argsort(dim=0, descending=True, stable=True)
    return order.gather(0, distances.gather(0, order).argsort(dim=0, stable=True))


def _pick(walks: list[Nearest], which: Tensor) -> Nearest:
    """Return for each image what walk number `which` (B,) has found."""
    chosen, row = Nearest(walks[0].x, walks[0].norm), torch.arange(len(which), device=which.device)
    for name in ("points", "distances", "margins"):
        setattr(chosen, name, torch.stack([getattr(walk, name) for walk in walks])[which, row])
    return chosen


def _or_else(first: Nearest, second: Nearest) -> Nearest:
    """Return `first`, and for images where it has no adversarial example `second`."""
    chosen, found = Nearest(first.x, first.norm), first.found
    chosen.points = torch.where(expand(found, first.x), first.points, second.points)
    chosen.distances = torch.where(found, first.distances, second.distances)
    chosen.margins = torch.where(found, first.margins, second.margins)
    return chosen
