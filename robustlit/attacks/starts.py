"""Where searches start: at the surface of a ball, or far outside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlit.attacks.draws import Draws
from robustlit.threat import Ball, expand

FAR = ("noise", "coarse", "grey", "salt")  # patterns of `far_from`


def in_ball(pattern: str, ball: Ball, draws: Draws) -> Tensor:
    """Return a point at the surface of each ball, cut to the box.

    Args:
        pattern: "image" (its centre), "uniform", "bright", "dark", "corner", "blocks", "columns" or "rows".
        ball: Around images (B, ...).
        draws: Of the examples.
    """
    x = ball.x
    if pattern == "image":
        return x
    sign = torch.ones_like(x)
    if pattern == "uniform":
        sign = draws.uniform(x) * 2 - 1
    elif pattern == "dark":
        sign = -sign
    elif pattern != "bright":
        sides = list(x.shape[2:])
        coarse = {"corner": sides, "blocks": [max(side // 2, 1) for side in sides]}.get(pattern)
        if coarse is None:  # "columns" or "rows"
            across = pattern == "rows"
            coarse = [1 if number == across else side for number, side in enumerate(sides)]
        sign = _spread(draws.uniform(x.new_empty(*x.shape[:2], *coarse)).round() * 2 - 1, x)
    return ball.surface(sign)


def far_from(x: Tensor, pattern: str, draws: Draws) -> Tensor:
    """Return a point between each image and an image of noise, a tenth of the way or more from the image.

    Args:
        x: Images (B, ...) in [0, 1].
        pattern: Of the noise: "noise" (each value by itself), "coarse" (blocks of a quarter of the sides), "grey" (one
            level), "salt" (0 or 1). "image" returns the images.
        draws: Of the examples.
    """
    if pattern == "image":
        return x
    if pattern == "grey":
        other = expand(_one_each(x, draws), x).expand_as(x)
    elif pattern == "coarse":
        other = _spread(draws.uniform(x.new_empty(*x.shape[:2], *(max(side // 4, 1) for side in x.shape[2:]))), x)
    else:
        other = draws.uniform(x)
        if pattern == "salt":
            other = other.round()
    return x + expand(0.1 + 0.9 * _one_each(x, draws), x) * (other - x)


def _spread(coarse: Tensor, x: Tensor) -> Tensor:
    """Return values (B, C, ...) enlarged to the sides of the images."""
    sides = list(x.shape[2:])
    return F.interpolate(coarse, sides, mode="nearest") if sides else coarse


def _one_each(x: Tensor, draws: Draws) -> Tensor:
    return draws.uniform(x.new_empty(len(x), 1)).squeeze(1)
