"""The plan of `WorstCase`: its parts, and which examples get them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustlit.attacks.nearest_l2 import NearestL2
from robustlit.attacks.starts import FAR

RIVALS = 9  # number of wrong classes, by logit, whose boundaries are estimated; AutoAttack aims at as many


@dataclass(frozen=True)
class Climb:
    """Ascent from a start pattern, for the examples with a boundary at most `within` * eps outside the ball."""

    start: str  # pattern, see `starts.in_ball`
    steps: int
    within: float = math.inf
    rival: int | None = None  # aim at the n-th nearest wrong class instead of at any
    loss: str = "margin"  # or "ce", "dlr"

    @property
    def passes(self) -> float:
        """Passes for each of these examples, roughly, for the progress that is shown."""
        return 2 * self.steps


@dataclass(frozen=True)
class Patches:
    """Random search by square patches; `within` as for `Climb`."""

    queries: int
    patch: float  # share of the pixels that the first patches cover
    within: float = math.inf
    afresh: bool = True  # start from stripes; False goes on from the best point

    @property
    def passes(self) -> float:
        """See `Climb`."""
        return self.queries


@dataclass(frozen=True)
class BoundaryWalk:
    """Run of FAB towards the n-th nearest wrong class, which may leave the ball, and DDN from where it came nearest.

    `within` as for `Climb`.
    """

    rival: int
    within: float = math.inf
    start: str = "image"  # or a pattern far outside the ball, see `starts.far_from`
    refine: int = 30  # steps of DDN, where FAB ended near the ball
    steps: ClassVar[int] = 30

    @property
    def passes(self) -> float:
        """See `Climb`."""
        return 3 * self.steps + 2 * self.refine


@dataclass(frozen=True)
class Refine:
    """DDN from the nearest adversarial example that any part has found; `within` as for `Climb`."""

    within: float
    refine: int = 60  # steps

    @property
    def passes(self) -> float:
        """See `Climb`."""
        return 2 * self.refine


@dataclass(frozen=True)
class NearestSearch:
    """Run of `NearestL2`; `within` as for `Climb`."""

    within: float
    passes: ClassVar[float] = NearestL2().expected_passes


@dataclass(frozen=True)
class Look:
    """Estimate how far the boundaries of the wrong classes are, from the best points or from the images."""

    at_image: bool = False
    within: ClassVar[float] = math.inf
    passes: ClassVar[float] = 2.0 + RIVALS


Outside = BoundaryWalk | Refine | NearestSearch  # may leave the ball
Attempt = Climb | Patches | Outside
Part = Attempt | Look

# Most examples are broken at once, or no attack breaks them. So every example is attacked from a random point, towards
# the nearest class, from the bright end of the ball and without gradients. The rest of the effort, towards more and
# more classes, goes to the examples with a boundary near the ball.
_LINF: tuple[Part, ...] = (
    Climb("uniform", 25, loss="ce"),
    Look(at_image=True),
    Climb("image", 25, rival=0),
    Climb("bright", 25),
    Patches(100, 0.3),
    Look(),
    Climb("uniform", 25, 1.0, rival=0),
    Climb("dark", 25, 0.7),
    Climb("uniform", 25, 0.5, rival=1),
    Climb("image", 30, 0.4, rival=2),
    Climb("columns", 30, 0.4, loss="ce"),
    Look(),
    Climb("blocks", 40, 0.3, rival=0),
    Climb("rows", 40, 0.3),
    *(Climb("image", 40, 0.2, rival) for rival in range(1, 4)),
    *(Climb(start, 40, 0.25) for start in ("corner", "bright", "blocks", "columns")),
    Patches(600, 0.1, 0.25, afresh=False),
    Look(),
    *(Climb("uniform", 60, 0.1, rival) for rival in range(6)),
    *(Climb(start, 60, 0.15) for start in ("columns", "blocks", "corner", "rows", "bright", "uniform") * 2),
    Patches(1500, 0.3, 0.1),
    Patches(4000, 0.5, 0.0),  # where no gradient is left; not for the control group
)

# A net trained in L-inf ignores small changes of a pixel. Gradients inside a small L2 ball are then of no use; a run of
# FAB leaves the ball and comes back with the few pixels to change. Which ones depends on its start: from noise far
# outside, where every pixel counts, it ends nearer than from the image. Its distance also tells how near a boundary is.
_L2: tuple[Part, ...] = (
    Climb("uniform", 25, loss="ce"),
    Look(at_image=True),
    BoundaryWalk(0),
    BoundaryWalk(0, start="noise"),
    BoundaryWalk(1, start="salt"),
    Refine(1.0),
    Patches(100, 0.3),
    Look(),
    BoundaryWalk(0, 2.0, "coarse"),
    BoundaryWalk(0, 1.0, "grey"),
    BoundaryWalk(1, 1.0),
    BoundaryWalk(1, 1.0, "noise"),
    *(BoundaryWalk(rival, 0.4, start, 60) for start in FAR for rival in range(3)),
    Refine(0.4, 100),
    Climb("uniform", 25, 0.3, rival=0),
    Climb("blocks", 40, 0.2, rival=0),
    NearestSearch(0.4),
    *(BoundaryWalk(rival, 0.15, start, 60) for start in FAR for rival in range(2)),
    Refine(0.15, 100),
    Look(),
    Patches(1500, 0.3, 0.1),
    BoundaryWalk(2, 1.0, "noise", 60),  # the third class may be nearest, and the gates above cannot know
    Patches(4000, 0.5, 0.0),
)
PLANS = {"linf": _LINF, "l2": _L2}
# Used where all logits became smaller under attack. The model then scales its logits by a factor that depends on the
# image, and ascent of the margin only lowers that factor. DLR (Croce, Hein 2020) does not depend on it.
SHRUNK: tuple[Climb, ...] = (
    *(Climb(start, 40, loss="dlr") for start in ("image", "uniform", "bright", "dark")),
    *(Climb("image", 40, rival=rival, loss="dlr") for rival in range(4)),
    *(Climb(start, 60, loss="dlr") for start in ("corner", "columns", "blocks", "rows")),
)


def expected_passes(plan: Sequence[Part]) -> list[float]:
    """Return the passes of each part for an average example, before anything is known of the boundaries.

    Of a robust net, few examples have a boundary near the ball: taken is half of `within` as their share.
    """
    return [part.passes * (1.0 if part.within >= 1 else max(0.02, part.within / 2)) for part in plan]


def passes_left(plan: Sequence[Part], unbroken: Tensor, missing: Tensor, exempt: Tensor) -> list[float]:
    """Return the passes of each part for an average example, as the boundaries are known now.

    Args:
        plan: The parts that are left.
        unbroken, missing, exempt: (B,) which examples are not broken yet, how far their boundaries lie outside the
            ball, as a multiple of eps, and which get the parts whatever their distance.
    """
    within = missing.new_tensor([part.within for part in plan])
    near = (missing.unsqueeze(1) <= within) | (exempt.unsqueeze(1) & (within > 0))
    shares = (near & unbroken.unsqueeze(1)).to(missing.dtype).mean(0)
    return [part.passes * share for part, share in zip(plan, shares.tolist(), strict=True)]
