"""Projected gradient ascent: the loop that FGSM, BIM, PGD and MIM share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.active import Active, all_positions
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best, Loss
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts, check_step_size
from robustlit.threat import Ball, expand

_LONGEST_STEP = 2.0  # multiples of eps: from any point of the ball, such a step reaches any other
_LONG_STEP = (
    "{name} steps {step:.4g} pixel units, {ratio:.3g} times eps={eps:g}: a step longer than 2 eps leaves the ball from "
    "every point; give the step as a multiple of eps, relative_step_size={rule:.4g} is the attack's own rule"
)
_ZERO_GRADIENT = (
    "the gradient of {name} is zero at every pixel of every example under attack (it rounds its input, or is dead), "
    "so a gradient-based attack is blind and its failure says nothing; give the model an attack_view() that is "
    "differentiable"
)


class GradientAscent(BudgetAttack):
    """A budget attack that climbs the loss by projected steps of steepest ascent: `FGSM`, `BIM`, `PGD`, `MIM`.

    Not a dataclass itself: its attributes are defaults, and a subclass makes those that a user may set its fields.
    """

    path: ClassVar[float] = 1.0  # length of all steps together as a multiple of eps, where no step is given
    steps: int = 1
    step_size: float | None = None  # in pixel units, at the attack's own eps
    relative_step_size: float | None = None  # as a multiple of eps
    random_start: bool = False  # start at a point of the ball instead of the image
    start_in_box: bool = True  # cut a random start in training to [0, 1]; in evaluation it always is cut
    restarts: int = 1
    decay: float | None = None  # share of the velocity that a step keeps; None steps along the gradient itself

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "steps", "restarts")
        check_step_size(self.step_size, self.relative_step_size, self.norm)
        given, ratio = (self.step_size, self.relative_step_size) != (None, None), self.step_over_eps
        if given and ratio > _LONGEST_STEP * (1 + 1e-9):
            sizes = {"step": ratio * self.eps, "ratio": ratio, "eps": self.eps, "rule": self.path / self.steps}
            warnings.warn(_LONG_STEP.format(name=type(self).__name__, **sizes), stacklevel=3)

    def __repr__(self) -> str:
        # Without an unset relative_step_size: the text of an attack in saved tables stays what it was before that.
        shown = [f for f in fields(self) if f.name != "relative_step_size" or self.relative_step_size is not None]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def step_over_eps(self) -> float:
        """Step length as a multiple of eps: a step scales with the eps of a call."""
        if self.relative_step_size is not None:
            return self.relative_step_size
        return self.path / self.steps if self.step_size is None else self.step_size / self.eps

    @property
    def starts_at_image(self) -> bool:
        """Whether the first gradient is taken at the image itself."""
        return not self.random_start

    def maximise(self, model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], *, eps: float | None = None,
                 eval_mode: bool = True) -> Tensor:  # fmt: skip
        """Climb `loss` for adversarial training: the inner maximisation of Madry et al. (2018, equation 2.1).

        Every example takes every step, and the last points are returned: training sees the hardest points and does not
        wait for the device. A bf16 autocast region is kept, and random numbers come from the device's generator.

        Args:
            model: From images (B, C, H, W) in [0, 1] to logits (B, K).
            x: Images (B, C, H, W) in [0, 1]; not checked, because a check in every step would cost too much.
            loss: Logits (B, K) -> (B,); `losses.LogOdds(y)` takes the fewest operations.
            eps: Replaces the attack's own budget (a warm-up gives smaller ones); 0 returns `x`.
            eval_mode: Hold the model in eval mode while attacking; False leaves BatchNorm and dropout training.

        Returns:
            (B, C, H, W) in [0, 1], detached.
        """
        budget = self.eps if eps is None else eps
        if budget == 0:
            return x.detach()
        with Victim(model, x, eval_mode=eval_mode, training=True, draws=1) as victim:
            x = x.detach().clone()  # an ordinary tensor even where the caller's was made in inference mode
            radius = x.new_full((len(x),), budget)
            ball = Ball(x, radius, self.norm)
            size = radius * self.step_over_eps
            x_adv, velocity = ball.x, torch.zeros_like(x)
            if self.random_start:
                x_adv = ball.random_point(Draws(None, radius), in_box=self.start_in_box)
            for _ in range(self.steps):
                gradient = victim.direction(x_adv, loss)
                if self.decay is not None:
                    velocity = accelerate(velocity, gradient, self.decay)
                    gradient = velocity.clone()
                x_adv = ball.step(x_adv, gradient, size)
        return x_adv

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best, only_run = Best(x), self.restarts == 1
        ascent = Ascent([self.step_over_eps] * self.steps, self.decay, Criterion.log_odds)
        unbroken = AscentState(all_positions(x), rows, criterion, x, Ball(x, eps, self.norm), criterion, draws)
        for _ in track(range(self.restarts)):
            state = replace(unbroken)
            if self.random_start:
                state.z = state.ball.random_point(unbroken.draws)
            if only_run:
                best.points.copy_(state.z)
            run_ascent(victim, best, state, ascent)
            if only_run and self.steps == 1:  # the only candidate: `run` judges it
                best.points[state.at] = state.z
            else:
                best.judge(victim, state, ascent.loss)
            if not unbroken.keep(~best.success[unbroken.at]):
                break
        return best.points


@dataclass(frozen=True)
class Ascent:
    """The step lengths, momentum and loss of a climb."""

    lengths: Sequence[float]  # of the steps, as multiples of eps
    decay: float | None  # share of its velocity that a step keeps; None steps along the gradient itself
    loss: Loss
    score: Loss | None = None  # by which failed attempts are ranked; None means by the loss


@dataclass
class AscentState(Active):
    """The examples that climb, with their balls, the criterion of the loss and their random numbers."""

    ball: Ball  # where the points may lie
    aim: Criterion  # of the loss; `criterion` decides success
    draws: Draws

    def __post_init__(self) -> None:
        self.gradient = self.velocity = torch.zeros_like(self.z)

    def advance(self, length: float, decay: float | None) -> None:
        """Step by `length`, a multiple of eps, along the velocity (the gradient if `decay` is None), then project."""
        direction = self.gradient
        if decay is not None:
            self.velocity = accelerate(self.velocity, direction, decay)
            direction = self.velocity.clone()
        self.z = self.ball.step(self.z, direction, self.ball.eps * length)


def run_ascent(victim: Victim, best: Best, state: AscentState, ascent: Ascent) -> None:
    """Ascend from the current points of `state`, each example until it succeeds.

    `best` records every point but the last ones, which stay in `state` and are not judged yet.
    """
    # Whether the values of the loss that is climbed are the scores as well, and need not be computed again.
    loss_is_score = victim.view_is_model and ascent.score is None and state.aim is state.criterion
    for step, length in enumerate(track(ascent.lengths)):
        aim = state.aim

        def loss(logits: Tensor, aim: Criterion = aim) -> Tensor:
            return ascent.loss(aim, logits)

        if victim.is_open:  # the image, classified already
            logits, scores, state.gradient = victim.gradient_from_graph(loss, state.rows)
        else:
            logits, scores, state.gradient = victim.gradient(state.z, loss, state.rows)
        if step == 0 and not bool(state.gradient.any()):
            warnings.warn(_ZERO_GRADIENT.format(name=type(victim.view).__name__), stacklevel=2)
        votes = logits
        if not victim.view_is_model:
            votes, logits = victim.judge(state.z, state.rows)
        if not loss_is_score:
            scores = (ascent.score or ascent.loss)(state.criterion, logits)
        record = best.record if step else best.record_success
        record(state.at, state.z, state.criterion.reached(votes), scores)
        if not state.drop(best.success[state.at], step):
            return
        state.advance(length, ascent.decay)


def accelerate(velocity: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """Return decay * velocity + gradient / |gradient|_1 (Dong 2018, equation 6), with each example's own norm."""
    length = gradient.abs().flatten(1).sum(1)
    length = torch.where(length > 0, length, 1.0)
    return torch.addcdiv(velocity * decay, gradient, expand(length, gradient))
