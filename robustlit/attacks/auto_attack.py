"""AutoAttack: the ensemble that robust accuracies are quoted under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustlit.attacks.active import Active, all_positions, rivals
from robustlit.attacks.apgd import APGD
from robustlit.attacks.attack import Attack, BudgetAttack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.fab import FAB
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.square import Square
from robustlit.attacks.victim import Victim
from robustlit.checks import check_choice

VERSIONS = ("standard", "rand")
# The settings of the authors' code for L-inf and L2 (github.com/fra31/auto-attack, `set_version`).
_STEPS = 100  # of each run of APGD and FAB
_TARGETS = 9  # likeliest wrong classes that APGD-T and FAB-T aim at in turn
_QUERIES = 5000  # of Square
_DRAWS = 20  # that a gradient is averaged over in "rand"
_NOT_RANDOM = (
    'AutoAttack(version="rand") is for random models, and {name} is deterministic: version="standard", or wrap a model '
    "that draws numbers in EOT(model, 20)"
)
_NO_IMAGES = "AutoAttack has Square in it, which moves patches of images (B, C, H, W), got shape {shape}"


@dataclass(frozen=True)
class AutoAttack(BudgetAttack):
    """The authors' ensemble, part by part on the examples that are left: APGD-CE, APGD-T, FAB-T, Square.

    Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020,
    arXiv:2003.01690, in the version "standard" of their code, under which RobustBench and most papers quote: one run
    of 100 steps of APGD-CE, then of APGD on the targeted DLR loss at each of the 9 likeliest wrong classes, then of FAB
    at each of them, then 5 000 queries of Square. "rand" is for random models: APGD-CE and APGD-DLR with gradients
    averaged over 20 draws.

    With K < 10 classes, K - 1 are aimed at; the DLR loss needs 4 classes (in "rand" 3), with fewer the margin takes its
    place (the authors' code stops with an IndexError). Success is judged by `Victim`: a random model by 20 fresh votes,
    where the authors take the first draw that is wrong. `WorstCase` is as strong at a fraction of the passes.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        version: "standard" or "rand".

    Raises:
        ValueError: eps out of range, unknown norm or version; at the call: examples that are not images (B, C, H, W),
            "rand" of a deterministic model.
    """

    name: ClassVar[str] = "auto_attack"
    targeted: ClassVar[bool] = False
    version: str = "standard"

    @property
    def expected_passes(self) -> float:
        return sum(part.expected_passes for part in self._parts())

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.version, "version", VERSIONS)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        if x.ndim != 4:
            raise ValueError(_NO_IMAGES.format(shape=tuple(x.shape)))
        if self.version == "rand":
            if not victim.is_stochastic:
                raise ValueError(_NOT_RANDOM.format(name=type(victim.model).__name__))
            victim.draws = _DRAWS
        best = Best(x)
        parts = list(self._parts())
        for number, part in enumerate(track(parts, [part.expected_passes for part in parts])):
            left = best.unbroken
            if not len(left):
                break
            near = Active(left, rows[left], criterion.select(left), x[left])
            own = draws.select(left).fork(number)
            near.z = part._search(victim, near.z, near.criterion, near.rows, own, eps[left])
            best.judge(victim, near)
        return best.points

    def _parts(self) -> Iterator[Attack]:
        """Yield the parts, in order."""
        yield APGD(eps=self.eps, norm=self.norm, steps=_STEPS)
        if self.version == "rand":
            yield APGD(eps=self.eps, norm=self.norm, steps=_STEPS, loss="dlr")
            return
        yield APGD(eps=self.eps, norm=self.norm, steps=_STEPS, loss="dlr", targets=_TARGETS)
        yield _TargetedFAB(norm=self.norm, steps=_STEPS)
        yield _PacedSquare(eps=self.eps, norm=self.norm, queries=_QUERIES)


class _TargetedFAB(FAB):
    """FAB-T within a budget: towards the likeliest wrong classes in turn, on the examples that are left."""

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        classes, best = rivals(criterion, victim.judge(x, rows)[1])[:, :_TARGETS], x.clone()
        left = all_positions(x)
        for aim in track(classes.unbind(1)):
            found = self.toward(victim, x[left], criterion.select(left), rows[left], eps[left], aim[left])
            broken = found.distances <= eps[left]
            best[left[broken]] = found.points[broken]
            left = left[~broken]
            if not len(left):
                break
        return best


class _PacedSquare(Square):
    """Square whose patches shrink as if it had 10 000 queries: the authors leave the schedule as it is for half."""

    pace = 10_000
