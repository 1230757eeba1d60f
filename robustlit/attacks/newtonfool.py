"""NewtonFool: Newton's steps that bring the probability of the predicted class down to chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import Active, all_positions
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count, check_positive
from robustlit.threat import expand


@dataclass(frozen=True)
class NewtonFool(Attack):
    """Minimal L2 attack: lowers the probability p of the predicted class by steps of limited length.

    Jang, Wu, Jha: Objective metrics and gradient descent algorithms for adversarial examples in machine learning,
    2017, ACSAC, doi.org/10.1145/3134600.3134635, algorithm 1:

        delta = min(eta |x_0| |grad p|, p - 1/K),    x <- x - delta grad p / |grad p|^2,

    so a step is eta |x_0| long, or shorter where the linearised p reaches chance, 1/K, earlier. The first adversarial
    point is returned. The paper has no box: here grad p is that of the pixels that can move within [0, 1].

    The softmax saturates: of a confident net p is 1 and grad p is 0 in float32, and the step 0 / 0. But
    grad p = p (1 - p) grad o with o = log(p / (1 - p)), the log odds, whose gradient does not fade. The step is
    therefore formed as min(eta |x_0|, (p - 1/K) / (p (1 - p) |grad o|)) along -grad o / |grad o|, which is the same.
    Of a confident net only eta |x_0| would limit it, which grows with the number of pixels while the distance to the
    boundary need not: a step is therefore also no longer than the linearised o needs to come down to chance.

    Args:
        eta: Length of a step as a share of the image's own L2 norm.
        steps: Largest number of steps.
        norm: "l2".

    Raises:
        ValueError: eta or steps out of range, unknown norm.
    """

    name: ClassVar[str] = "newtonfool"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    targeted: ClassVar[bool] = False
    norm: str = field(default="l2", kw_only=True)
    eta: float = 0.01
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_positive(self.eta, "eta", "; the paper's is 0.01")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        longest = self.eta * torch.linalg.vector_norm(x.flatten(1), dim=1)
        best, active = Best(x), _Images(all_positions(x), rows, criterion, x, longest)
        for step in track(range(self.steps)):
            view, active.odds, active.gradient = victim.gradient(active.z, active.criterion.log_odds, active.rows)
            logits = view if victim.view_is_model else victim.logits(active.z, active.rows)
            record = best.record if step else best.record_success
            record(active.at, active.z, active.criterion.reached(logits), active.criterion.log_odds(logits))
            if not active.drop(best.success[active.at], step):
                return best.points
            active.z = _newton_step(active, view.shape[1])
        best.judge(victim, active, Criterion.log_odds)
        return best.points


@dataclass
class _Images(Active):
    """The images still under attack, with the limit (b,) of their steps, eta |x_0|."""

    longest: Tensor

    def __post_init__(self) -> None:
        self.odds = self.longest  # (b,) log odds *against* the predicted class, -o
        self.gradient = self.z  # (b, ...) of `odds`


def _newton_step(images: _Images, classes: int) -> Tensor:
    """Return the points (b, ...) after one step of the paper; `classes` is K. Overwrites the gradient."""
    z, odds, gradient = images.z, images.odds.to(images.z.dtype), images.gradient
    gradient = gradient.masked_fill_(((z <= 0) & (gradient < 0)) | ((z >= 1) & (gradient > 0)), 0)
    # Scaled by the largest entry first: squares of entries below 1e-23 would add up to a norm of zero.
    largest = gradient.flatten(1).abs().amax(1)
    largest = torch.where(largest > torch.finfo(z.dtype).tiny, largest, 1.0)
    gradient = gradient.div_(expand(largest, z))
    scaled = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1)  # at least 1 unless the gradient is 0
    p, rest = torch.sigmoid(-odds), torch.sigmoid(odds)
    chance = 1 / classes
    # At chance and not yet broken (a defense, where only the attack view is broken): on towards 0.
    above = p > chance * 1.001  # next to chance the steps would be too short to change a pixel
    drop = torch.where(above, p - chance, p)
    tiny = torch.finfo(z.dtype).tiny
    newton = drop / (p * rest).clamp_min(tiny) / (scaled * largest).clamp_min(tiny)
    by_odds = (math.log(max(classes - 1, 1)) - odds) / (scaled * largest).clamp_min(tiny)
    newton = torch.where(above, torch.minimum(newton, by_odds), newton)
    length = torch.minimum(images.longest, newton.nan_to_num(math.inf))
    return (z + gradient.mul_(expand(length / scaled, z))).clamp_(0, 1)
