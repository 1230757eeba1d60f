"""Landscape: the loss and its gradient at points of the ball where gradient masking may act."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlit.attacks.victim import Victim
from robustlit.verdict.probe import Probe, corner

# Half the distance over which a gradient is compared with the loss, as a multiple of eps. It is drawn from this range,
# because a loss with a ripple of one frequency could agree with its gradient at a single distance. Share of the points
# at which loss and gradient disagree, at .1, .3 and a drawn distance: of a net that rounds its input to one bit .12,
# .005 and .03; of a certified net 0, .01 and .003 (.03 at .5, where the loss is no longer linear).
_SHORTEST, _LONGEST = 0.1, 0.3
_STREAM = 23  # of the random points


@dataclass(frozen=True)
class Landscape:
    """What was measured for each of m examples, at P points with a gradient and at one more without.

    Attributes:
        rise: (P, m) by how much the model's loss rises over a short way along the gradient; NaN without a direction.
        predicted_rise: (P, m) by how much the loss would rise over eps if the gradient held for the whole ball.
        spread: (m,) the difference between the highest and the lowest loss of the points.
        answered: (m,) bool, whether all logits and losses were finite.
    """

    rise: Tensor
    predicted_rise: Tensor
    spread: Tensor
    answered: Tensor


def measure_landscape(probe: Probe) -> Landscape:
    """Measure the log odds against the true class at a random point, at the far end of one long step, and at a corner.

    The far end is where an attack would stop: on the surface of the ball, along the gradient at the random point.
    """

    def look(victim: Victim) -> Landscape:
        surface = LossSurface(probe, victim)
        z, lengths = surface.ball.random_point(probe.draws(_STREAM)), probe.draws(_STREAM + 2)
        rise, predicted = [], []
        losses = [surface.loss_at(corner(surface.ball, probe.draws(_STREAM + 1).uniform(z)))]
        for _ in range(2):
            gradient = surface.gradient(z)
            reach = _SHORTEST + (_LONGEST - _SHORTEST) * lengths.uniform(surface.ball.eps.unsqueeze(1)).squeeze(1)
            up, down = (surface.stepped(z, sign * gradient, reach) for sign in (1, -1))
            above, below = surface.loss_at(up), surface.loss_at(down)
            steepest = gradient.flatten(1)
            norm = steepest.abs().sum(1) if probe.norm == "linf" else steepest.norm(dim=1)
            predicted.append(norm * surface.ball.eps)
            rise.append((above - below).masked_fill(norm == 0, torch.nan))
            losses += [above, below]
            z = surface.stepped(z, gradient, 2)
        every = torch.stack(losses)
        return Landscape(torch.stack(rise), torch.stack(predicted), every.amax(0) - every.amin(0), surface.answered)

    found: Landscape = probe.with_victim(look)
    return found


class LossSurface:
    """A model under attack, with the same draws for every question about one image."""

    def __init__(self, probe: Probe, victim: Victim) -> None:
        self.probe, self.victim, self.ball = probe, victim, probe.ball()
        self.loss = victim.criterion(probe.y).log_odds
        self.answered = torch.ones(len(probe), dtype=torch.bool, device=probe.x.device)

    def loss_at(self, z: Tensor) -> Tensor:
        """Return the model's own loss (m,), of a stochastic model the mean over as many draws as its gradient."""
        self._same_draws()
        logits = [self.victim.forward_once(z) for _ in range(self.victim.draws)]
        losses = torch.stack([self.loss(each) for each in logits]).double().mean(0)
        for each in logits:
            self.answered &= ~each.isnan().any(1)
        self.answered &= losses.isfinite()
        return losses

    def gradient(self, z: Tensor) -> Tensor:
        """Return the gradient (m, ...) that an attack gets."""
        self._same_draws()
        return self.victim.gradient(z, self.loss)[2]

    def stepped(self, z: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """Return the points after a step of `size` eps along the gradient, within the ball."""
        return self.ball.step(z, gradient.clone(), self.ball.eps * size)

    def _same_draws(self) -> None:
        if self.victim.is_stochastic:
            self.victim.reseed(self.probe.seed, self.probe.index)
