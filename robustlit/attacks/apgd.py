"""APGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import BudgetAttack, check_every
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import LOSSES, Criterion, loss_for
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count, check_share
from robustlit.threat import Ball, distance, expand

_INERTIA = 0.75  # alpha of the paper: the share of a step that is new, the rest goes on as the last one did


@dataclass(frozen=True)
class APGD(BudgetAttack):
    """Auto-PGD: momentum, and a step that halves, back at the best point, wherever progress stalls.

    Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020,
    arXiv:2003.01690. `APGD()` is their APGD-CE, `APGD(loss="dlr")` APGD-DLR, `APGD(loss="dlr", targets=9)` APGD-T.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        loss: "ce" (climbed as log odds, which order points as cross-entropy does), "dlr" (difference of logits ratio)
            or "margin". DLR needs 3 classes, targeted 4; with fewer the margin takes its place.
        steps: gradient steps of a run.
        restarts: runs from random points that an unbroken example is given, for each target.
        targets: aim in turn at so many of the likeliest wrong classes; None climbs the untargeted loss. A call with
            `target=` aims at that class alone.
        rho: the share of rising steps below which a step size is halved.

    Raises:
        ValueError: eps, steps, restarts, targets or rho out of range, unknown loss or norm.
    """

    name: ClassVar[str] = "apgd"
    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        check_count(self.steps, "steps")
        check_count(self.restarts, "restarts")
        if self.targets is not None:
            check_count(self.targets, "targets")
        check_share(self.rho, "rho")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best, margins = x.clone(), x.new_full((len(x),), -float("inf"))
        unbroken, aims = torch.arange(len(x), device=x.device), None
        if self.targets is not None and criterion.target is None:
            logits = criterion.others(victim.logits(x, rows))
            aims = logits.topk(
                min(self.targets, criterion.classes(logits) - 1), 1
            ).indices  # (b, targets), likeliest first
        for run in range(self.restarts * (1 if aims is None else aims.shape[1])):
            aim = criterion if aims is None else criterion.toward(aims[:, run // self.restarts])
            points, found, won = self._ascend(
                victim,
                x[unbroken],
                criterion.select(unbroken),
                aim.select(unbroken),
                rows[unbroken],
                draws,
                eps[unbroken],
            )
            better = won | (found > margins[unbroken])
            best[unbroken[better]], margins[unbroken[better]] = points[better], found[better]
            left = torch.nonzero(~won).squeeze(1)
            unbroken, draws = unbroken[left], draws.select(left)
            if not len(unbroken):
                break
        return best

    def _ascend(
        self, victim: Victim, x: Tensor, criterion: Criterion, aim: Criterion, rows: Tensor, draws: Draws, eps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run (algorithm 1 of the paper), climbing towards `aim`; over for an example when it reaches `criterion`.

        Returns:
            points (b, ...): the first witness, else the point of highest loss; their margins (b,); won (b,) bool.
        """
        points, margins = x.clone(), eps.new_full((len(x),), -float("inf"))
        won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        inside = torch.arange(len(x), device=x.device)  # the examples still in the batch, as positions in x
        ball, best_margin, done = Ball(x, eps, self.norm), margins, won
        climb = _Climb(ball, eps, start_at_the_surface(ball, draws))
        windows = _windows(self.steps)
        check_at, every = next(windows), check_every(x)
        for step in range(self.steps + 1):
            loss = loss_for(self.loss, aim)
            if step < self.steps:
                logits, losses, gradient = victim.gradient(climb.z, loss, rows)
            if step == self.steps or not victim.sees_itself:  # the last iterate only has to be judged
                logits = victim.logits(climb.z, rows)
                losses = loss(logits)
            if step == self.steps:
                gradient = climb.gradient
            reached = criterion.reached(logits)
            higher = climb.note(losses.masked_fill(reached, float("inf")), gradient)  # nothing is above a witness
            best_margin = torch.where(higher, criterion.margin(logits).to(margins.dtype), best_margin)
            done = done | reached
            if step == self.steps:
                break
            if step % every == 0 and bool(done.any()):
                gone, left = torch.nonzero(done).squeeze(1), torch.nonzero(~done).squeeze(1)
                if not len(left):
                    break
                points[inside[gone]], margins[inside[gone]], won[inside[gone]] = (
                    climb.best[gone],
                    best_margin[gone],
                    True,
                )
                inside, rows, criterion, aim, climb = (
                    inside[left], rows[left], criterion.select(left), aim.select(left), climb.select(left),
                )  # fmt: skip
                best_margin, done = best_margin[left], done[left]
            if step == check_at:
                window = next(windows)
                climb.halve_where_stalled(self.rho)
                check_at += window
            climb.move()
        points[inside], margins[inside], won[inside] = climb.best, best_margin, done
        return points, margins, won


def start_at_the_surface(ball: Ball, draws: Draws) -> Tensor:
    """A random point of each ball, drawn out to its surface, then cut to the box."""
    delta = draws.uniform(ball.x) * 2 - 1 if ball.norm == "linf" else draws.normal(ball.x)
    length = distance(delta, torch.zeros_like(delta), ball.norm).clamp_min(torch.finfo(delta.dtype).tiny)
    return (ball.x + delta * expand(ball.eps / length, delta)).clamp_(0, 1)


def _windows(steps: int) -> Iterator[int]:
    """Steps between the checks of progress: 22 % of all, then 3 % fewer each time, at least 6 %."""
    window = max(int(0.22 * steps), 1)
    while True:
        yield window
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))


class _Climb:
    """The state of the ascent, one entry per example.

    Args:
        ball: where the points may lie.
        eps: (b,) budgets; the first step is twice as long.
        z: (b, ...) where to start.
    """

    def __init__(self, ball: Ball, eps: Tensor, z: Tensor) -> None:
        self.ball, self.size = ball, eps * 2
        self.z = self.z_before = self.best = z
        self.gradient = self.best_gradient = torch.zeros_like(z)
        self.loss = self.best_loss = self.loss_at_check = torch.full_like(eps, -float("inf"))
        self.rises = torch.zeros_like(eps)  # steps of this window that raised the loss
        self.steps = 0  # of this window
        self.halved = torch.ones_like(eps, dtype=torch.bool)  # at the last check
        self.moved = False

    def select(self, keep: Tensor) -> _Climb:
        """The state of the examples in `keep`."""
        chosen = copy(self)
        chosen.ball = self.ball.select(keep)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(chosen, name, value[keep])
        return chosen

    def note(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Takes in the losses (b,) and gradients (b, ...) at `z`; says where the loss is the highest so far."""
        loss = loss.to(self.best_loss.dtype)
        higher = loss > self.best_loss  # never where it is NaN
        if self.moved:
            self.rises = self.rises + (loss > self.loss)
            self.steps += 1
        else:  # the start is no progress, whatever its loss
            self.loss_at_check = loss
        self.best = torch.where(expand(higher, self.z), self.z, self.best)
        self.best_gradient = torch.where(expand(higher, self.z), gradient, self.best_gradient)
        self.best_loss = torch.where(higher, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient
        return higher

    def halve_where_stalled(self, rho: float) -> None:
        """Halves the step, back at the best point, where too few steps rose or none helped since the last check."""
        stalled = (self.rises <= rho * self.steps) | (~self.halved & (self.loss_at_check >= self.best_loss))
        self.size = torch.where(stalled, self.size / 2, self.size)
        self.z = torch.where(expand(stalled, self.z), self.best, self.z)
        self.gradient = torch.where(expand(stalled, self.z), self.best_gradient, self.gradient)
        self.halved, self.loss_at_check = stalled, self.best_loss
        self.rises, self.steps = torch.zeros_like(self.rises), 0

    def move(self) -> None:
        """The next point: a projected step, then inertia (equation 1 of the paper)."""
        ahead = self.ball.step(self.z, self.gradient.clone(), self.size)
        if self.moved:
            mixed = self.z + (ahead - self.z) * _INERTIA + (self.z - self.z_before) * (1 - _INERTIA)
            ahead = self.ball.project(mixed)
        self.z_before, self.z, self.moved = self.z, ahead, True
