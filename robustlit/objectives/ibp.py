"""IBP training: cross-entropy of the worst margins that interval bounds allow."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import LogOdds
from robustlit.certify.bounds import logits_of, margins_of
from robustlit.certify.region import Region
from robustlit.certify.tape import Tape
from robustlit.checks import check_not_negative, check_positive
from robustlit.objectives.batch_statistics import Statistics, WithStatistics, logits_and_statistics, statistics_of
from robustlit.objectives.inner import check_inner_attack
from robustlit.objectives.objective import ObjectiveOutput
from robustlit.threat import check_eps, check_norm

_BALANCE = 0.5  # of Shi et al.'s regularisers: the share (tau) from which on there is nothing to regularise


@dataclass
class IntervalObjective:
    """Base of the losses on interval bounds: the schedule of eps, the initialisation and the regularisers.

    Gowal et al., 2018, arXiv:1810.12715 (eps schedule); Shi, Wang, Zhang, Yi, Hsieh: Fast certified robust training
    with short warmup, 2021, arXiv:2103.12528 (initialisation, and the regularisers of equations 7 to 10). The bounds
    are those of the net in eval mode, but for BatchNorm layers that train: these take those of the batch.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        warmup: Share of the training steps, in [0, 1), over which eps rises from 0: first slowly, then linearly.
        eps_scale: The budget trained for is eps times this.
        regularisation: Weight of the regularisers, which falls to 0 with rising eps.
        initialise: Draw the weights of linear layers and convolutions anew at the first step, so that intervals keep
            their width from layer to layer. Leave it out for a net that was trained before.
        seed: Seed of the weights that are drawn, alike in all processes; the recipes pass that of the run.

    Raises:
        ValueError: An argument out of range.
    """

    eps: float
    norm: str = "linf"
    _: KW_ONLY
    warmup: float = 0.4
    eps_scale: float = 1.0
    regularisation: float = 0.5
    initialise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.eps_scale, "eps_scale", "; it is a factor of eps")
        self.largest = check_eps(self.eps * self.eps_scale, check_norm(self.norm), name="eps * eps_scale")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share of the training steps in [0, 1), got {self.warmup}")
        check_not_negative(self.regularisation, "regularisation")
        self._fresh, self.share = False, 1.0

    def check_weights(self, what: str, *names: str) -> None:
        """Raise a ValueError unless these arguments, weights of `what`, lie in [0, 1]."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be the weight of {what} in [0, 1], got {getattr(self, name)}")

    def set_progress(self, fraction: float) -> None:
        """Set the budget of the next step; `fraction` in [0, 1] of the training steps are done."""
        self._fresh = fraction == 0
        self.share = smooth_rise(fraction / self.warmup) if self.warmup else 1.0

    def prepare(self, classifier: nn.Module) -> None:
        """Draw the weights anew, where asked for and before the first step."""
        if self.initialise and self._fresh:
            initialise_for_intervals(classifier, self.seed)

    def regularised(self, loss: Tensor, tape: Tape) -> Tensor:
        """Return the loss with the regularisers, which end when eps has risen."""
        if self.regularisation and self.share < 1:
            return loss + self.regularisation * (1 - self.share) * imbalance(tape)
        return loss


@dataclass(kw_only=True)
class IBPTraining(IntervalObjective):
    """kappa * CE(f(x)) + (1 - kappa) * CE(-lower bounds of the margins) + regularisers while eps rises.

    Gowal et al., 2018, arXiv:1810.12715, with the schedule, the initialisation and the regularisers of
    `IntervalObjective`.

    Args:
        kappa: Weight of the clean loss at the end; it falls from `first_kappa` with rising eps.
        first_kappa: Weight of the clean loss at the start.
        eps, norm, warmup, eps_scale, regularisation, initialise, seed: See `IntervalObjective`.

    Raises:
        ValueError: An argument out of range.
    """

    kappa: float = 0.0
    first_kappa: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("the clean loss", "kappa", "first_kappa")

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and their (B,) classes, and the worst logits that the bounds allow.

        The training accuracy is thus the share of the images that are proven at the step's budget.
        """
        self.prepare(classifier)
        kappa = self.first_kappa + self.share * (self.kappa - self.first_kappa)
        eps, of_clean = self.largest * self.share, x.new_zeros(())
        if kappa:
            clean, statistics = logits_and_statistics(classifier, x, gradient=True)
            of_clean = kappa * F.cross_entropy(clean, y)
        else:  # no pass for a loss without weight
            statistics = statistics_of(classifier, x)
        worst, tape = worst_logits(classifier, x, y, eps, self.norm, statistics, linear=self.linear)
        loss = (1 - kappa) * F.cross_entropy(worst, y) + of_clean
        return {"loss": self.regularised(loss, tape), "logits": worst.detach()}

    @property
    def linear(self) -> float:
        """Weight of linear bounds beside the intervals at this step."""
        return 0.0


@dataclass(kw_only=True)
class AttackedIBP(IntervalObjective):
    """Base of the interval losses that need adversarial examples.

    Args:
        attack: The inner maximiser (FGSM, BIM, MIM or PGD) in the norm of the intervals; its own eps is not used.

    Raises:
        ValueError: As `IntervalObjective`, or an attack that is no gradient ascent or has another norm.
    """

    attack: GradientAscent

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner_attack(self.attack)
        if self.attack.norm != self.norm:
            raise ValueError(f"attack and intervals must have one norm, got {self.attack.norm} and {self.norm}")

    def attacked(self, classifier: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Return adversarial versions (B, C, H, W) of the images within `eps`, found in eval mode, detached."""
        return self.attack.maximise(classifier, x, LogOdds(y), eps=eps, eval_mode=True)


def smooth_rise(share: float) -> float:
    """Return a schedule from 0 to 1 over `share` in [0, 1]: of the fourth power in the first quarter, then linear."""
    share, bend = min(1.0, max(0.0, share)), 0.25
    slope = 1 / (1 - bend + bend / 4)  # continuous, with a continuous slope
    return slope * (share**4 / (4 * bend**3)) if share < bend else slope * (share - bend + bend / 4)


def worst_logits(
    classifier: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str, statistics: Statistics | None = None, *,
    linear: float = 0.0,
) -> tuple[Tensor, Tape]:  # fmt: skip
    """Return the worst logits (B, K) that intervals within `eps` allow, 0 for the true class, and the tape.

    In float32 whatever the precision of training: margins in bfloat16 cost certified accuracy. BatchNorm layers take
    `statistics` in place of their running ones. `linear` in [0, 1] is the weight of CROWN-IBP's bounds beside IBP's.
    """
    with torch.autocast(x.device.type, enabled=False):
        region = Region(x.float(), x.new_full((len(x),), eps, dtype=torch.float32), norm)
        net = WithStatistics(classifier, statistics) if statistics else classifier
        tape, node = logits_of(net, region)
        margins = margins_of(tape, node, y, through_activations=False)
        if linear:
            margins = linear * margins_of(tape, node, y, through_activations=True) + (1 - linear) * margins
        return -margins, tape


def imbalance(tape: Tape) -> Tensor:
    """Return Shi et al.'s two regularisers, averaged over the activations (a scalar).

    Intervals should not widen from the input on (tightness), and units that are surely on should weigh as much as
    those surely off, by the mean and by the variance of their middles.
    """
    first = (tape.region.high.mean() - tape.region.low.mean()) / 2
    terms = []
    for node in (each.inputs[0] for each in tape.nodes if each.op is not None and each.op.is_nonlinear):
        mean, radius, totals, squares, counts = _Moments.apply(node.low, node.high)
        terms += [F.relu(_BALANCE - first / radius.clamp_min(1e-12))]
        spread = (squares - 2 * mean * totals + mean.square() * counts).clamp_min(0)
        for on, off in ((totals[0], -totals[1]), (spread[0], spread[1])):
            larger, smaller = torch.maximum(on, off), torch.minimum(on, off)
            terms.append(F.relu(_BALANCE - smaller / larger.clamp_min(1e-12)))
    count = len(terms) // 3
    return torch.stack(terms).sum() / (_BALANCE * count) if count else first.new_zeros(())


class _Moments(torch.autograd.Function):
    """What the regularisers need of the intervals before an activation, in few passes over these.

    From low and high, alike in shape: the mean middle, the mean radius, and, of the middles that are surely on and of
    those surely off, (2,) each: their sum, the sum of their squares, their number.
    """

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        middle = (low + high) / 2
        mean, radius = middle.mean(), middle.mean() - low.mean()
        off = middle.masked_fill(high >= 0, 0)
        on = middle.masked_fill_(low <= 0, 0)
        ctx.save_for_backward(on, off)
        counts = torch.stack([torch.count_nonzero(on), torch.count_nonzero(off)])
        ctx.mark_non_differentiable(counts)
        sums = torch.stack([on.sum(), off.sum()])
        squares = torch.stack([torch.linalg.vector_norm(on), torch.linalg.vector_norm(off)]).square()
        return mean, radius, sums, squares, counts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        on, off = ctx.saved_tensors
        mean, radius, totals, squares, _ = gradients
        found = torch.addcmul(on.sign().mul_(totals[0]), on, 2 * squares[0])
        found.sub_(off.sign().mul_(totals[1])).addcmul_(off, 2 * squares[1])
        size = on.numel()
        found = found.add_(mean / size).mul_(0.5)
        return found - radius / (2 * size), found + radius / (2 * size)


@torch.no_grad()
def initialise_for_intervals(net: nn.Module, seed: int = 0) -> None:
    """Draw weights from N(0, 2 pi / n^2), n inputs a unit: intervals then keep their width (Shi et al., section 3.2).

    Every process draws the same.
    """
    draws = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weight = module.weight
            deviation = math.sqrt(2 * math.pi) / weight[0].numel()
            weight.copy_(torch.empty(weight.shape).normal_(0, deviation, generator=draws))
            if module.bias is not None:
                module.bias.zero_()
