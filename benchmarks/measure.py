"""Measure one run of an attack: success, distances, passes, and seconds compared with the bare passes."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matches import Match
from peers import Peer
from torch import Tensor, nn

from robustlit.threat import distance

SLACK = 1e-5  # rounding of x + eps that a peer is granted
Run = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


class Passes(nn.Module):
    """A net that records its passes, so that every library is counted alike.

    Attributes:
        calls: one [examples, whether gradients were on, backward passes] for each forward.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's logits, with a hook that counts backward passes."""
        call = [len(x), int(torch.is_grad_enabled() and x.requires_grad), 0]
        self.calls.append(call)
        logits: Tensor = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda _: call.__setitem__(2, call[2] + 1))
        return logits

    def per_example(self, count: int) -> tuple[float, float]:
        """Return the forward and backward passes per example, of `count` examples."""
        return sum(c[0] for c in self.calls) / count, sum(c[0] * c[2] for c in self.calls) / count


def replay(net: nn.Module, x: Tensor, calls: list[list[int]]) -> float:
    """Return the seconds that the same passes take by themselves: the least for any code with these passes."""
    x = x.repeat(-(-max((c[0] for c in calls), default=1) // len(x)), *[1] * (x.ndim - 1))
    start = _now(x)
    for examples, wants_gradient, backwards in calls:
        part = x[:examples]
        if not backwards and not wants_gradient:
            with torch.no_grad():
                net(part)
            continue
        leaf = part.detach().requires_grad_(True)
        total = net(leaf).sum()
        for left in range(backwards - 1, -1, -1):
            torch.autograd.grad(total, leaf, retain_graph=left > 0)
    return _now(x) - start


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    elif torch.get_num_threads() == 1:  # the process's own seconds, whatever else runs on the machine
        return time.process_time()
    return time.perf_counter()


def ours(match: Match) -> Run:
    """Return our attack of a match, called as the peers are."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        target = (y + 1) % 10 if match.targeted else None
        return match.ours(eps).run(net, x, y, target=target, seed=0).x_adv

    return craft


def timed(run: Run, net: nn.Module, x: Tensor, y: Tensor, eps: float, verdict: bool = False) -> tuple[Tensor, float]:
    """Return what an attack returns, and its seconds; with `verdict`, those of one forward on the result too.

    Our attacks return which examples are broken, peers do not: their users wait for one forward more.
    """
    net.eval()
    gc.collect()
    torch.manual_seed(0)
    x, y = x.clone(), y.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = _now(x)
        x_adv = run(net, x, y, eps)
        if verdict:
            with torch.no_grad():
                net(x_adv)
        return x_adv.detach(), _now(x) - start


@dataclass
class Outcome:
    """The images of an attack, judged afresh: one entry per image.

    Attributes:
        error: (n,) bool, misclassified (or, targeted, classified as the target), inside the box, and within eps.
        norm, l2: (n,) distances; 0 where no attack was needed, infinite where it failed, so that a median over all
            images cannot be lowered by failing on the hard ones.
    """

    error: Tensor
    norm: Tensor
    l2: Tensor

    @property
    def rate(self) -> float:
        """Share in error."""
        return float(self.error.double().mean())

    @property
    def median(self) -> float:
        """Median distance in the match's norm over the images that needed an attack; infinite if most failed."""
        return _median(self.norm)

    @property
    def median_l2(self) -> float:
        """The same in L2."""
        return _median(self.l2)


def _median(distances: Tensor) -> float:
    attacked = distances[distances > 0]
    return float(attacked.quantile(0.5, interpolation="higher")) if len(attacked) else 0.0


@torch.no_grad()
def judge(net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, match: Match, eps: float) -> Outcome:
    """Judge images by the net's own forward; one that is not finite, or outside the box or budget, does not count."""
    net.eval()
    bad = ~x_adv.isfinite().flatten(1).all(1)
    x_adv = torch.where(bad.view(-1, *[1] * (x.ndim - 1)), x, x_adv)
    bad |= (x_adv < -SLACK).flatten(1).any(1) | (x_adv > 1 + SLACK).flatten(1).any(1)
    far, l2 = distance(x_adv, x, match.norm), distance(x_adv, x, "l2")
    if not match.minimal:
        bad |= far > eps + SLACK
    wanted = (y + 1) % 10
    before, after = net(x).argmax(1), net(x_adv).argmax(1)
    needless, broken = (before == wanted, after == wanted) if match.targeted else (before != y, after != y)
    error = needless | (broken & ~bad)
    norm, l2 = (torch.where(error, d, torch.inf).masked_fill(needless, 0.0) for d in (far, l2))
    return Outcome(error, norm, l2)


@dataclass
class Line:
    """One library's row in a match."""

    label: str
    outcome: Outcome
    seconds: list[float]
    forwards: float
    backwards: float
    bare: float


def contest(
    match: Match, rivals: list[Peer], net: nn.Module, x: Tensor, y: Tensor, eps: float, rounds: int
) -> list[Line]:
    """Run our attack and the rivals in turn, rotating the order each round; ours is the first line."""
    eps = eps * match.scale
    x, y = x[: match.few], y[: match.few]
    runs: list[tuple[str, Run]] = [("robustlit", ours(match)), *((p.label, p.craft) for p in rivals)]
    lines: list[Line] = []
    for label, run in list(runs):  # warms up, counts passes
        passes = Passes(net)
        try:
            x_adv, _ = timed(run, passes, x, y, eps)
        except Exception as error:
            if label == "robustlit":
                raise
            print(f"{match.name}: {label} fails here, left out ({type(error).__name__}: {error})", file=sys.stderr)
            runs.remove((label, run))
            continue
        forwards, backwards = passes.per_example(len(x))
        lines.append(Line(label, judge(net, x, y, x_adv, match, eps), [], forwards, backwards, 0.0))
        lines[-1].bare = min(replay(net, x, passes.calls) for _ in range(2))
    for turn in range(rounds):
        for k in range(len(runs)):
            place = (k + turn) % len(runs)
            label, run = runs[place]
            lines[place].seconds.append(timed(run, net, x, y, eps, verdict=label != "robustlit")[1])
    return lines
