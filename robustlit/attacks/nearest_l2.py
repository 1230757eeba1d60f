"""NearestL2: walks along the boundary from several classes' sides, for curves that do not overstate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack
from robustlit.attacks.ddn import Nearest, Walk
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import expand


@dataclass(frozen=True)
class NearestL2(Attack):
    """The nearest adversarial in L2 that several walks find: towards any class, then towards single ones.

    Built on DDN (Rony et al., 2019, arXiv:1811.09600), whose norm changes by a fixed share to the end and which follows
    one path. Here the shares fall as the walk goes on; further walks head for the classes of highest logit; the best
    few witnesses are refined and the very best once more. 520 passes by default.

    Args:
        explore: steps of each first walk.
        candidates: classes that get a walk of their own, beside the one towards any class. A target needs none.
        kept: the nearest so many witnesses of an example are refined.
        refine: steps of each refinement.
        finish: steps of the last refinement, of the nearest witness.

    Raises:
        ValueError: a count below 1, a norm other than "l2".
    """

    name: ClassVar[str] = "nearest_l2"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    norm: str = field(default="l2", kw_only=True)
    explore: int = 60
    candidates: int = 4
    kept: int = 2
    refine: int = 60
    finish: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("explore", "candidates", "kept", "refine", "finish"):
            check_count(getattr(self, name), name)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        walks = [self._explore(victim, x, criterion, rows, draws, None)]
        if criterion.target is None:
            logits = criterion.others(victim.logits(x, rows))
            order = logits.argsort(1, descending=True)[:, : min(self.candidates, criterion.classes(logits) - 1)]
            if order.shape[1] > 1:  # of two classes, the other one is any
                walks += [self._explore(victim, x, criterion, rows, draws, heading) for heading in order.unbind(1)]
        ranks = torch.stack([walk.norms for walk in walks]).argsort(dim=0, stable=True)  # (walks, B)
        kept = []
        for rank in ranks[: self.kept]:
            witness = _pick(walks, rank)
            # Refining what is no witness would be a walk from a failure: those start from the example's best.
            witness = _better(witness, _pick(walks, ranks[0]))
            _refine(victim, witness, criterion, rows, draws, self.refine, (0.3, 0.003), (0.2, 0.001))
            kept.append(witness)
        best = _pick(kept, torch.stack([witness.norms for witness in kept]).argmin(0))
        _refine(victim, best, criterion, rows, draws, self.finish, (0.1, 0.002), (0.05, 0.001))
        return best.points

    def _explore(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, heading: Tensor | None
    ) -> Nearest:
        """One walk from the image, towards the criterion or towards the classes `heading` (B,)."""

        def lead(logits: Tensor) -> Tensor:
            if heading is None:
                return criterion.log_odds(logits)
            return logits.gather(1, heading.unsqueeze(1)).squeeze(1) - criterion.own(logits)

        walk = Walk(Nearest(x), x, x.new_ones(len(x)), draws)
        for step in range(self.explore):
            length = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.explore)) / 2
            walk.step(
                victim, criterion, rows, lead, x.new_full((len(x),), length), _fall(0.2, 0.02, step / self.explore)
            )
        return walk.witness


def _refine(
    victim: Victim,
    witness: Nearest,
    criterion: Criterion,
    rows: Tensor,
    draws: Draws,
    steps: int,
    lengths: tuple[float, float],
    gammas: tuple[float, float],
) -> None:
    """Walks on from each witness (from a failure's best attempt), with steps that are shares of the norm."""
    # Without a witness the norm is no distance of one; never let it be zero, where the walk would stand still.
    start = torch.linalg.vector_norm((witness.points - witness.x).flatten(1), dim=1)
    walk = Walk(witness, witness.points, torch.where(start > 0, start, 1.0), draws)
    for step in range(steps):
        length = walk.norm * _fall(*lengths, step / steps)
        walk.step(victim, criterion, rows, criterion.margin, length, _fall(*gammas, step / steps))


def _fall(first: float, last: float, progress: float) -> float:
    return first * (last / first) ** progress


def _pick(walks: list[Nearest], which: Tensor) -> Nearest:
    """For each example what its walk number `which` (B,) has found."""
    chosen, everyone = Nearest(walks[0].x), torch.arange(len(which), device=which.device)
    chosen.points = torch.stack([walk.points for walk in walks])[which, everyone]
    chosen.norms = torch.stack([walk.norms for walk in walks])[which, everyone]
    chosen.margins = torch.stack([walk.margins for walk in walks])[which, everyone]
    return chosen


def _better(witness: Nearest, fallback: Nearest) -> Nearest:
    """`witness`, and where it is none, `fallback`."""
    found = witness.found
    witness.points = torch.where(expand(found, witness.x), witness.points, fallback.points)
    witness.norms = torch.where(found, witness.norms, fallback.norms)
    witness.margins = torch.where(found, witness.margins, fallback.margins)
    return witness
