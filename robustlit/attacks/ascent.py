"""Projected gradient ascent: the loop that FGSM, BIM, PGD and MIM share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlit.attacks.attack import BudgetAttack, check_every
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion, loss_for
from robustlit.attacks.victim import Victim
from robustlit.threat import Ball, expand

_BLIND = (
    "the gradient of {name} is zero at every pixel of every example under attack (it rounds its input, or is dead), "
    "so a gradient-based attack is blind and its failure says nothing; give the model an attack_view() that is "
    "differentiable"
)


@dataclass(frozen=True)
class GradientAscent(BudgetAttack):
    """A budget attack that climbs the loss by projected steps of steepest ascent.

    Subclasses say how many steps, how long, from where and how often; see `FGSM`, `BIM`, `PGD`, `MIM`.
    """

    @property
    @abstractmethod
    def _steps(self) -> int: ...

    @property
    @abstractmethod
    def _step_over_eps(self) -> float:
        """Step length as a multiple of eps, so that a step scales when the call gives another budget."""

    @property
    def _random_start(self) -> bool:
        return False

    @property
    def _starts_at_image(self) -> bool:
        return not self._random_start

    @property
    def _start_in_box(self) -> bool:
        """Whether a random start in training is cut to [0, 1]; in evaluation it always is: it may be the witness."""
        return True

    @property
    def _restarts(self) -> int:
        return 1

    @property
    def _decay(self) -> float | None:
        """How much of its velocity a step keeps; None steps along the gradient itself."""
        return None

    def maximise(
        self,
        model: nn.Module,
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        eps: float | None = None,
        eval_mode: bool = True,
    ) -> Tensor:
        """The inner maximisation of adversarial training (Madry 2018, equation 2.1): climbs `loss` and nothing else.

        Every example takes every step and the last iterate is returned; nobody is judged and nobody leaves early, so
        that the trainer sees the hardest point and no host synchronisation. It runs in the precision around it
        (bf16 autocast is kept) and draws from the device's generator.

        Args:
            model: from images (B, C, H, W) in [0, 1] to logits (B, K).
            x: images (B, C, H, W) in [0, 1]; not checked here, once a step would cost too much.
            loss: logits (B, K) -> (B,).
            eps: replaces the attack's own budget (a warm-up gives smaller ones); 0 returns `x`.
            eval_mode: hold the model in eval mode while attacking; False leaves BatchNorm and dropout training.

        Returns:
            (B, C, H, W) in [0, 1], detached.
        """
        budget = self.eps if eps is None else eps
        if budget == 0:
            return x.detach()
        with Victim(model, x, eval_mode=eval_mode, ambient_autocast=True, keep_generators=False, draws=1) as victim:
            x = x.detach().clone()  # an ordinary tensor even where the caller's was made in inference mode
            radius = x.new_full((len(x),), budget)
            ball = Ball(x, radius, self.norm)
            size = radius * self._step_over_eps
            x_adv, velocity = ball.x, torch.zeros_like(x)
            if self._random_start:
                x_adv = ball.random_point(Draws(None, radius), in_box=self._start_in_box)
            for _ in range(self._steps):
                _, _, gradient = victim.gradient(x_adv, loss)
                if self._decay is not None:
                    velocity = accelerate(velocity, gradient, self._decay)
                    gradient = velocity.clone()
                x_adv = ball.step(x_adv, gradient, size)
        return x_adv

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best, best_loss = x.clone(), x.new_full((len(x),), -float("inf"))
        unbroken = torch.arange(len(x), device=x.device)
        for _ in range(self._restarts):
            points, losses, won = self._climb(
                victim, x[unbroken], criterion.select(unbroken), rows[unbroken], draws, eps[unbroken]
            )
            better = won | (losses > best_loss[unbroken]) | (self._restarts == 1)
            best[unbroken[better]], best_loss[unbroken[better]] = points[better], losses[better]
            left = torch.nonzero(~won).squeeze(1)
            unbroken, draws = unbroken[left], draws.select(left)
            if not len(unbroken):
                break
        return best

    def _climb(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ball, share = Ball(x, eps, self.norm), self._step_over_eps
        z = ball.random_point(draws) if self._random_start else x
        judge_last = self._steps > 1 or self._restarts > 1
        return climb(
            victim, ball, z, criterion, rows,
            steps=[share] * self._steps, decay=self._decay, judge_last=judge_last, opening=not self._random_start,
        )  # fmt: skip


def climb(
    victim: Victim,
    ball: Ball,
    z: Tensor,
    criterion: Criterion,
    rows: Tensor,
    *,
    steps: Sequence[float],
    decay: float | None = None,
    aim: Criterion | None = None,
    loss: str = "ce",
    judge_last: bool = True,
    opening: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One ascent of each example from `z` until it wins: the first witness, else the iterate of highest loss.

    Args:
        victim: the model under attack.
        ball: where the points may lie; b examples.
        z: (b, ...) where to start; in the ball.
        criterion: what ends the ascent.
        rows: (b,) which examples of the victim's batch these are.
        steps: length of each step as a multiple of eps.
        decay: how much of its velocity a step keeps; None steps along the gradient itself.
        aim: the criterion whose loss is climbed; None means `criterion`.
        loss: one of `LOSSES`.
        judge_last: False leaves the point after the last step unjudged, and returns it: the only candidate of a single
            step, which the caller will judge.
        opening: `z` is the image, and the victim may have been opened with it.

    Returns:
        points (b, ...), their losses for `criterion` (b,), won (b,) bool.
    """
    aim = criterion if aim is None else aim
    points, losses = z.clone(), ball.eps.new_full((len(z),), -float("inf"))
    won = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    inside = torch.arange(len(z), device=z.device)  # the examples still in the batch, as positions in `points`
    best, best_loss, done = z, losses, won  # theirs
    every, velocity = check_every(z), z if decay is None else torch.zeros_like(z)
    for step, share in enumerate([*steps, None]):
        if share is None and not judge_last:
            best = z
            break
        if share is not None:
            if step == 0 and opening and victim.is_open:
                logits, _, gradient = victim.gradient_of_opening(loss_for(loss, aim), rows)
            else:
                logits, _, gradient = victim.gradient(z, loss_for(loss, aim), rows)
            if step == 0 and not bool(gradient.any()):
                warnings.warn(_BLIND.format(name=type(victim.view).__name__), stacklevel=2)
        if share is None or not victim.sees_itself:  # the last iterate only has to be judged
            logits = victim.logits(z, rows)
        reached, height = criterion.reached(logits), loss_for(loss, criterion)(logits).to(losses.dtype)
        # The start counts when it wins, never for its loss: a failed attack returns a point it has climbed to.
        better = ~done & (reached | ((height > best_loss) & (step > 0)))
        best, best_loss = torch.where(expand(better, z), z, best), torch.where(better, height, best_loss)
        done = done | reached
        if share is None:
            break
        if step % every == 0 and bool(done.any()):
            gone, left = torch.nonzero(done).squeeze(1), torch.nonzero(~done).squeeze(1)
            if not len(left):
                break
            points[inside[gone]], losses[inside[gone]], won[inside[gone]] = best[gone], best_loss[gone], True
            inside, rows, criterion, aim, ball = (
                inside[left],
                rows[left],
                criterion.select(left),
                aim.select(left),
                ball.select(left),
            )
            z, gradient, best, best_loss, done = z[left], gradient[left], best[left], best_loss[left], done[left]
            velocity = velocity[left] if decay is not None else z
        if decay is not None:
            velocity = accelerate(velocity, gradient, decay)
            gradient = velocity.clone()
        z = ball.step(z, gradient, ball.eps * share)
    points[inside], losses[inside], won[inside] = best, best_loss, done
    return points, losses, won


def accelerate(velocity: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """decay * velocity + gradient / |gradient|_1 (Dong 2018, equation 6), the norm of each example by itself."""
    length = gradient.abs().flatten(1).sum(1)
    length = torch.where(length > 0, length, 1.0)
    return torch.addcdiv(velocity * decay, gradient, expand(length, gradient))
