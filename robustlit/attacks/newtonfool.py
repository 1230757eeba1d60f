"""NewtonFool: Newton's steps that bring the probability of the predicted class down to chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack, check_every
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import expand


@dataclass(frozen=True)
class NewtonFool(Attack):
    """Minimal L2 attack: lowers the probability p of the predicted class by steps of limited length.

    Jang, Wu, Jha: Objective metrics and gradient descent algorithms for adversarial examples in machine learning,
    2017, ACSAC, doi.org/10.1145/3134600.3134635, algorithm 1:

        delta = min(eta |x_0| |grad p|, p - 1/K),    x <- x - delta grad p / |grad p|^2,

    so a step is eta |x_0| long, or shorter where the linearised p reaches chance, 1/K, before. Each is cut to the box
    [0, 1]; the first adversarial point is returned. The paper knows no box: here grad p is that of the pixels that can
    move, else a step into pixels that are black or white already would be spent on nothing.

    The softmax saturates: of a confident net p is 1 and grad p is 0 in float32, and the step 0 / 0. But
    grad p = p (1 - p) grad o with o = log(p / (1 - p)), the log odds, whose gradient does not fade. The step is
    therefore formed as min(eta |x_0|, (p - 1/K) / (p (1 - p) |grad o|)) along -grad o / |grad o|, which is the same.

    Args:
        eta: length of a step as a share of the image's own L2 norm.
        steps: at most so many.
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
        if isinstance(self.eta, bool) or not isinstance(self.eta, Real) or not 0 < float(self.eta) < math.inf:
            raise ValueError(f"eta must be positive and finite, got {self.eta!r}; the paper's is 0.01")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        best, best_odds = x.clone(), x.new_full((len(x),), -math.inf)
        won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        inside, z = torch.arange(len(x), device=x.device), x  # the examples still in the batch
        longest = self.eta * torch.linalg.vector_norm(x.flatten(1), dim=1)
        every = check_every(x)
        for step in range(self.steps + 1):
            if step < self.steps:
                view, odds, gradient = victim.gradient(z, criterion.log_odds, rows)
                logits = view
            if step == self.steps or not victim.sees_itself:  # the last iterate only has to be judged
                logits = victim.logits(z, rows)
            loss = criterion.log_odds(logits).to(x.dtype)
            reached = criterion.reached(logits)
            better = ~won[inside] & (reached | ((loss > best_odds[inside]) & (step > 0)))
            best[inside] = torch.where(expand(better, z), z, best[inside])
            best_odds[inside] = torch.where(better, loss, best_odds[inside])
            won[inside] |= reached
            if step == self.steps:
                break
            if step % every == 0 and bool(reached.any()):
                left = torch.nonzero(~won[inside]).squeeze(1)
                if not len(left):
                    break
                inside, rows, criterion, z, gradient, odds, longest = (
                    inside[left], rows[left], criterion.select(left),
                    z[left], gradient[left], odds[left], longest[left],
                )  # fmt: skip
            z = _newton_step(z, odds.to(z.dtype), gradient, longest, view.shape[1])
        return best


def _newton_step(z: Tensor, odds: Tensor, gradient: Tensor, longest: Tensor, classes: int) -> Tensor:
    """One step of the paper from `z`.

    Args:
        z: images (b, ...).
        odds: (b,) log odds *against* the class, -o.
        gradient: (b, ...) gradient of `odds`; may be overwritten.
        longest: (b,) eta |x_0|.
        classes: K.
    """
    gradient = gradient.masked_fill_(((z <= 0) & (gradient < 0)) | ((z >= 1) & (gradient > 0)), 0)
    # Scaled by the largest entry first: squares of entries below 1e-23 would add up to a norm of zero.
    largest = gradient.flatten(1).abs().amax(1)
    largest = torch.where(largest > torch.finfo(z.dtype).tiny, largest, 1.0)
    gradient = gradient.div_(expand(largest, z))
    scaled = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1)  # at least 1 unless the gradient is 0
    p, rest = torch.sigmoid(-odds), torch.sigmoid(odds)
    chance = 1 / classes
    # At chance and still to be broken (a defense, whose twin believes itself broken): on towards 0.
    drop = torch.where(p > chance, p - chance, p)
    tiny = torch.finfo(z.dtype).tiny
    newton = drop / (p * rest).clamp_min(tiny) / (scaled * largest).clamp_min(tiny)
    length = torch.minimum(longest, newton.nan_to_num(math.inf))
    return (z + gradient.mul_(expand(length / scaled, z))).clamp_(0, 1)
