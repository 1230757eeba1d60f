"""Square: random search over square patches, without gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import check_every
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts, check_share
from robustlit.threat import Ball, expand

# The share of the pixels that a patch covers is halved after each of these queries of 10 000 (section 4.1 of the
# paper); with fewer queries the patches shrink faster in proportion.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_QUERIES_PER_DRAW = 16  # random numbers are drawn for so many queries at once, so that a GPU has less to launch


@dataclass(frozen=True)
class Square(BudgetAttack):
    """Square attack: try patches of shrinking size at random places and keep those that raise the margin.

    Andriushchenko, Croce, Flammarion, Hein: Square attack: a query-efficient black-box adversarial attack via random
    search, 2020, arXiv:1912.00049. It needs no gradients, so it also works where a defense only hides them. Places and
    signs are drawn for each example; in the L-inf version every patch changes something.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        queries: Forward passes for an unbroken example.
        patch: Share of the pixels that the first patches cover, the paper's p.
        restarts: Number of searches, each from another random start, for an unbroken example.

    Raises:
        ValueError: eps, queries, patch or restarts out of range, unknown norm; at the call: examples that are not
            images (B, C, H, W).
    """

    name: ClassVar[str] = "square"
    needs_gradients: ClassVar[bool] = False
    pace: ClassVar[int | None] = None  # queries over which the patches shrink; None: all that there are
    queries: int = 5000
    patch: float = 0.8
    restarts: int = 1

    @property
    def expected_passes(self) -> float:
        return self.queries * self.restarts

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "queries", "restarts")
        check_share(self.patch, "patch")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        if x.ndim != 4:
            raise ValueError(f"Square moves patches of images (B, C, H, W), got shape {tuple(x.shape)}")
        best, margins = x.clone(), x.new_full((len(x),), -float("inf"))
        unbroken = torch.arange(len(x), device=x.device)
        for restart in track(range(self.restarts)):
            ball, mine = Ball(x[unbroken], eps[unbroken], self.norm), draws.select(unbroken).fork(restart)
            points, found, success = self.walk(victim, ball, criterion.select(unbroken), rows[unbroken], mine)
            better = success | (found > margins[unbroken])
            best[unbroken[better]], margins[unbroken[better]] = points[better], found[better]
            unbroken = unbroken[~success]
            if not len(unbroken):
                break
        return best

    def walk(
        self, victim: Victim, ball: Ball, criterion: Criterion, rows: Tensor, draws: Draws, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one random search per example until it succeeds, from `start` (b, ...) or from the attack's own pattern.

        Returns:
            Points (b, ...) of the highest margin, their margins (b,), and whether they succeed, (b,) bool.
        """
        stripes, patches, numbers = (_stripes, _patch, 2) if self.norm == "linf" else (_bumps, _bump, 5)
        points, margins = ball.x.clone(), ball.eps.new_full((len(rows),), -float("inf"))
        success = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        inside, pace = torch.arange(len(rows), device=rows.device), self.pace or self.queries
        z, every = stripes(ball, draws) if start is None else start, check_every(ball.x)
        drawn = z  # random numbers (b, _QUERIES_PER_DRAW, numbers + C), drawn at the first query
        best, highest, done = ball.x, margins, success  # of the examples `inside`
        height, width = z.shape[-2:]
        for query in track(range(self.queries)):
            if query:
                share = self.patch / 2 ** sum((query - 1) * 10_000 > after * pace for after in _HALVINGS)
                side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
                if (turn := (query - 1) % _QUERIES_PER_DRAW) == 0:
                    drawn = draws.uniform(z.new_empty(len(rows), _QUERIES_PER_DRAW, numbers + z.shape[1]))
                z = patches(best, ball, side, drawn[:, turn])
            votes, logits = victim.judge(z, rows)
            reached, margin = criterion.reached(votes), criterion.margin(logits).to(margins.dtype)
            better = ~done & (reached | (margin > highest))
            best = torch.where(expand(better, z), z, best)
            highest, done = torch.where(better, margin, highest), done | reached
            last = query == self.queries - 1
            if last or (query % every == 0 and bool(done.any())):
                points[inside], margins[inside], success[inside] = best, highest, done
                left = torch.nonzero(~done).squeeze(1)
                if last or not len(left):
                    break
                inside, rows, criterion = inside[left], rows[left], criterion.select(left)
                ball, draws = ball.select(left), draws.select(left)
                best, highest, done, drawn = best[left], highest[left], done[left], drawn[left]
        return points, margins, success


def _stripes(ball: Ball, draws: Draws) -> Tensor:
    """Return the images with vertical stripes, one pixel wide, of plus or minus eps."""
    b, c, _, w = ball.x.shape
    signs = draws.uniform(ball.x.new_empty(b, c, 1, w)).round() * 2 - 1
    return ball.project(ball.x + signs * expand(ball.eps, ball.x))


def _window(z: Tensor, side: int, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the indices of a square of `side` pixels in each image, at `place` (b, 2) in [0, 1)."""
    b, c, height, width = z.shape
    span = torch.arange(side, device=z.device)
    # Python's numbers: a tensor made of them would wait for a GPU in every query.
    down, across = (
        (place[:, k : k + 1] * room).long().clamp_(max=room - 1) + span  # (b, side)
        for k, room in enumerate((height - side + 1, width - side + 1))
    )
    images, channels = torch.arange(b, device=z.device), torch.arange(c, device=z.device)
    return images.view(b, 1, 1, 1), channels.view(1, c, 1, 1), down.view(b, 1, side, 1), across.view(b, 1, 1, side)


def _patch(z: Tensor, ball: Ball, side: int, numbers: Tensor) -> Tensor:
    """Set each channel of a square to one end of the ball; flip the signs where that would change nothing.

    Place and signs come from the random `numbers` (b, 2 + C) in [0, 1).
    """
    b, c = z.shape[:2]
    at = _window(z, side, numbers[:, :2])
    signs = (numbers[:, 2:].round() * 2 - 1).view(b, c, 1, 1) * expand(ball.eps, z)
    x, old = ball.x[at], z[at]
    low, high = (x - signs.abs()).clamp_(min=0), (x + signs.abs()).clamp_(max=1)
    new = torch.where(signs > 0, high, low)
    unchanged = (new == old).flatten(1).all(1)
    z = z.clone()
    z[at] = torch.where(expand(unchanged, new), high + low - new, new)
    return z


def _bump_shapes(side: int, like: Tensor) -> Tensor:
    """Return the two patches of the L2 version, (2, side, side) of norm 1: a bump beside its negative, transposed."""
    half = side // 2

    def hill(height: int, width: int) -> Tensor:
        # Nested rectangles of falling weight around the centre (algorithm 3 of the paper).
        down = (torch.arange(height, device=like.device) - height // 2).abs().unsqueeze(1)
        across = (torch.arange(width, device=like.device) - width // 2).abs().unsqueeze(0)
        rings = torch.arange(max(height, width) // 2 + 1, device=like.device).view(-1, 1, 1)
        heights = ((down <= rings) & (across <= rings)).to(like.dtype) / (rings + 1) ** 2
        return heights.sum(0)

    def unit(z: Tensor) -> Tensor:
        return z / torch.linalg.vector_norm(z)

    pair = unit(torch.cat([unit(hill(half, side)), -unit(hill(side - half, side))]))
    return torch.stack([pair, pair.T])


def _bumps(ball: Ball, draws: Draws) -> Tensor:
    """Add a grid of bumps, five to a side, with random signs and orientations, of total length eps."""
    b, c, height, width = ball.x.shape
    side = max(min(height, width) // 5, 2)
    delta = torch.zeros_like(ball.x)
    shapes = _bump_shapes(side, delta)
    for top in range((height % side) // 2, height - side + 1, side):
        for left in range((width % side) // 2, width - side + 1, side):
            numbers = draws.uniform(ball.x.new_empty(b, 1 + c))
            signs = (numbers[:, 1:].round() * 2 - 1).view(b, c, 1, 1)
            turned = shapes[numbers[:, 0].round().long()].unsqueeze(1)  # (b, 1, side, side)
            delta[:, :, top : top + side, left : left + side] = turned * signs
    return ball.surface(delta)


def _bump(z: Tensor, ball: Ball, side: int, numbers: Tensor) -> Tensor:
    """Move the length of one window into another and add a bump of random sign there, by `numbers` (b, 5 + C)."""
    b, c = z.shape[:2]
    side = min(max(side, 3) // 2 * 2 + 1, *z.shape[-2:])
    here, there = _window(z, side, numbers[:, :2]), _window(z, side, numbers[:, 2:4])
    delta = z - ball.x
    old, tiny = delta[here], torch.finfo(z.dtype).tiny

    def length(part: Tensor) -> Tensor:
        return torch.linalg.vector_norm(part, dim=(-2, -1), keepdim=True)

    unused = (expand(ball.eps, z) ** 2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0)
    rest = delta.clone()
    rest[here], rest[there] = 0, 0
    windows = (length(delta).square() - length(rest).square()).clamp_min(0)  # (b, c, 1, 1) of both together
    signs = (numbers[:, 5:].round() * 2 - 1).view(b, c, 1, 1)
    new = _bump_shapes(side, z)[numbers[:, 4].round().long()].unsqueeze(1) * signs + old / length(old).clamp_min(tiny)
    rest[here] = new / length(new).clamp_min(tiny) * (unused / c + windows).sqrt()
    return ball.surface(rest)
