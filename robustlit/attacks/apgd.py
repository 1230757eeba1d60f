"""APGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import all_positions
from robustlit.attacks.ascent import AscentState
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import LOSSES, Criterion, loss_for
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_choice, check_count, check_counts, check_share
from robustlit.threat import Ball, expand

_MOMENTUM = 0.75  # alpha of the paper, section 3.1: the share of a step that is new, the rest repeats the last one


@dataclass(frozen=True)
class APGD(BudgetAttack):
    """Auto-PGD: momentum, and a step that halves, back at the best point, wherever progress stalls.

    Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020,
    arXiv:2003.01690. `APGD()` is their APGD-CE, `APGD(loss="dlr")` APGD-DLR, `APGD(loss="dlr", targets=9)` APGD-T.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        loss: "ce" (climbed as log odds, which order points as cross-entropy does), "dlr" (difference of logits ratio)
            or "margin". DLR needs 3 classes, targeted 4; with fewer the margin takes its place.
        steps: Gradient steps of a run.
        restarts: Number of runs from random points for an unbroken example and each target.
        targets: Number of the likeliest wrong classes to aim at in turn; None climbs the untargeted loss. A call
            with `target=` aims at that class alone.
        rho: Share of rising steps below which a step size is halved.

    Raises:
        ValueError: eps, steps, restarts, targets or rho out of range, unknown loss or norm.
    """

    name: ClassVar[str] = "apgd"
    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    rho: float = 0.75

    @property
    def expected_passes(self) -> float:
        return super().expected_passes * (self.targets or 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.loss, "loss", LOSSES)
        check_counts(self, "steps", "restarts")
        if self.targets is not None:
            check_count(self.targets, "targets")
        check_share(self.rho, "rho")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best, aims = Best(x), [criterion]
        if self.targets is not None and criterion.target is None:
            logits = criterion.other_logits(victim.logits(x, rows))
            count = min(self.targets, criterion.classes(logits) - 1)
            likeliest = logits.topk(count, 1).indices  # (b, count), the likeliest class first
            aims = [criterion.targeting(classes) for classes in likeliest.unbind(1)]
        unbroken = _AscentState(all_positions(x), rows, criterion, x, Ball(x, eps, self.norm), criterion, draws)
        for aim in track([aim for aim in aims for _ in range(self.restarts)]):
            start = start_at_the_surface(unbroken.ball, unbroken.draws)
            self._ascend(victim, best, replace(unbroken, z=start, aim=aim.select(unbroken.at)))
            if not unbroken.keep(~best.success[unbroken.at]):
                break
        return best.points

    def _ascend(self, victim: Victim, best: Best, state: _AscentState) -> None:
        """Run algorithm 1 of the paper, for each example until it succeeds."""
        windows = _windows(self.steps)
        check_at = next(windows)
        for step in track(range(self.steps)):
            loss = loss_for(self.loss, state.aim)
            logits, losses, gradient = victim.gradient(state.z, loss, state.rows)
            votes = logits
            if not victim.view_is_model:
                votes, logits = victim.judge(state.z, state.rows)
                losses = loss(logits)
            state.record(best, votes, logits, losses, gradient)
            if not state.drop(best.success[state.at], step):
                return
            if step == check_at:
                check_at += next(windows)
                state.halve_where_stalled(self.rho)
            state.move()
        votes, logits = victim.judge(state.z, state.rows)
        state.record(best, votes, logits, loss_for(self.loss, state.aim)(logits), state.gradient)
        best.record(state.at, state.best, torch.zeros_like(state.halved), state.best_margin)


def start_at_the_surface(ball: Ball, draws: Draws) -> Tensor:
    """Draw a random point of each ball, move it out to the surface, then cut it to the box."""
    return ball.surface(draws.uniform(ball.x) * 2 - 1 if ball.norm == "linf" else draws.normal(ball.x))


def _windows(steps: int) -> Iterator[int]:
    """Yield the steps between checks of progress: 22 % of all, then 3 % fewer each time, at least 6 % (section 3.1)."""
    window = max(int(0.22 * steps), 1)
    while True:
        yield window
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))


@dataclass
class _AscentState(AscentState):
    """The state of a run, one entry per example. The first step is twice as long as the radius of the ball."""

    def __post_init__(self) -> None:
        eps = self.ball.eps
        self.size = eps * 2
        self.z_before = self.best = self.z
        self.gradient = self.best_gradient = torch.zeros_like(self.z)
        self.loss = self.best_loss = self.best_margin = self.loss_at_check = torch.full_like(eps, -float("inf"))
        self.rises = torch.zeros_like(eps)  # steps of this window that raised the loss
        self.steps = 0  # of this window
        self.halved = torch.ones_like(eps, dtype=torch.bool)  # at the last check
        self.moved = False

    def record(self, best: Best, votes: Tensor, logits: Tensor, losses: Tensor, gradient: Tensor) -> None:
        """Record losses (b,) and gradients (b, ...) at `z`, and successes in `best`: see `Victim.judge`."""
        reached, margin = self.criterion.reached(votes), self.criterion.margin(logits).to(self.best_margin.dtype)
        best.record_success(self.at, self.z, reached, margin)
        loss = losses.to(self.best_loss.dtype)
        higher = loss > self.best_loss  # never where it is NaN
        if self.moved:
            self.rises = self.rises + (loss > self.loss)
            self.steps += 1
        else:  # the start is no progress, whatever its loss
            self.loss_at_check = loss
        self.best = torch.where(expand(higher, self.z), self.z, self.best)
        self.best_gradient = torch.where(expand(higher, self.z), gradient, self.best_gradient)
        self.best_loss = torch.where(higher, loss, self.best_loss)
        self.best_margin = torch.where(higher, margin, self.best_margin)
        self.loss, self.gradient = loss, gradient

    def halve_where_stalled(self, rho: float) -> None:
        """Halve the step, back at the best point, where too few steps rose or none helped since the last check."""
        stalled = (self.rises <= rho * self.steps) | (~self.halved & (self.loss_at_check >= self.best_loss))
        self.size = torch.where(stalled, self.size / 2, self.size)
        self.z = torch.where(expand(stalled, self.z), self.best, self.z)
        self.gradient = torch.where(expand(stalled, self.z), self.best_gradient, self.gradient)
        self.halved, self.loss_at_check = stalled, self.best_loss
        self.rises, self.steps = torch.zeros_like(self.rises), 0

    def move(self) -> None:
        """Go to the next point: a projected step, then momentum (equation 1 of the paper)."""
        ahead = self.ball.step(self.z, self.gradient.clone(), self.size)
        if self.moved:
            mixed = self.z + (ahead - self.z) * _MOMENTUM + (self.z - self.z_before) * (1 - _MOMENTUM)
            ahead = self.ball.project(mixed)
        self.z_before, self.z, self.moved = self.z, ahead, True
