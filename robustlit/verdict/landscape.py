"""Landscape: the loss and its gradient at points of the ball, where an attack walks and a mask may act."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlit.attacks.victim import Victim
from robustlit.verdict.probe import Probe, corner

# Half the distance over which a gradient is compared with the loss, as a multiple of eps, is drawn from this range: a
# ripple of one frequency could agree at a single distance. Of the points of a 1-bit rounding .12 disagree at .1, .005
# at .3; of a certified net 0 and .01 (at .5 it is .03, as the loss bends); drawn, .03 and .003.
_SHORTEST, _LONGEST = 0.1, 0.3
_STREAM = 23  # of the random points


@dataclass(frozen=True)
class Landscape:
    """What was measured for each of m examples, at P points with a gradient and at one more without.

    Attributes:
        rise: (P, m) by how much the model's loss rises over a short way along the gradient; NaN without a direction.
        promised: (P, m) by how much the loss would rise over eps if the gradient held for the whole ball.
        spread: (m,) the difference between the highest and the lowest loss of the points.
        answered: (m,) bool, whether all logits and losses were finite.
    """

    rise: Tensor
    promised: Tensor
    spread: Tensor
    answered: Tensor


def survey(probe: Probe) -> Landscape:
    """Measure the log odds against the true class at a random point, at the far end of one long step, and at a corner.

    The far end is where an attack would stop: on the surface of the ball, along the gradient at the random point.
    """

    def look(victim: Victim) -> Landscape:
        scene = Scene(probe, victim)
        z, lengths = scene.ball.random_point(probe.draws(_STREAM)), probe.draws(_STREAM + 2)
        rise, promised, heights = [], [], [scene.height(corner(scene.ball, probe.draws(_STREAM + 1).uniform(z)))]
        for _ in range(2):
            gradient = scene.gradient(z)
            reach = _SHORTEST + (_LONGEST - _SHORTEST) * lengths.uniform(scene.ball.eps.unsqueeze(1)).squeeze(1)
            up, down = (scene.stepped(z, sign * gradient, reach) for sign in (1, -1))
            above, below = scene.height(up), scene.height(down)
            steepest = gradient.flatten(1)
            norm = steepest.abs().sum(1) if probe.norm == "linf" else steepest.norm(dim=1)
            promised.append(norm * scene.ball.eps)
            rise.append((above - below).masked_fill(norm == 0, torch.nan))
            heights += [above, below]
            z = scene.stepped(z, gradient, 2)
        every = torch.stack(heights)
        return Landscape(torch.stack(rise), torch.stack(promised), every.amax(0) - every.amin(0), scene.answered)

    found: Landscape = probe.with_victim(look)
    return found


class Scene:
    """A model under attack, with the same draws for every question about one image."""

    def __init__(self, probe: Probe, victim: Victim) -> None:
        self.probe, self.victim, self.ball = probe, victim, probe.ball()
        self.loss = victim.criterion(probe.y).log_odds
        self.answered = torch.ones(len(probe), dtype=torch.bool, device=probe.x.device)

    def height(self, z: Tensor) -> Tensor:
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
