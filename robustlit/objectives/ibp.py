"""IBP training: cross-entropy of the worst margins that interval bounds allow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import Criterion
from robustlit.certify.bounds import logits_of, margins_of
from robustlit.certify.region import Region
from robustlit.certify.tape import Tape
from robustlit.checks import check_not_negative, check_positive
from robustlit.objectives.batch_statistics import Statistics, WithStatistics, logits_and_statistics
from robustlit.objectives.inner import check_inner_attack
from robustlit.objectives.objective import ObjectiveOutput
from robustlit.threat import check_eps, check_norm

_BALANCE = 0.5  # of Shi et al.'s regularisers: the share (tau) from which on there is nothing to regularise


@dataclass
class IBPTraining:
    """kappa * CE(f(x)) + (1 - kappa) * CE(-lower bounds of the margins) + regularisers while eps rises.

    Gowal et al., 2018, arXiv:1810.12715 (kappa and eps schedules); Shi, Wang, Zhang, Yi, Hsieh: Fast certified robust
    training with short warmup, 2021, arXiv:2103.12528 (initialisation, and the regularisers of equations 7 to 10). The
    bounds are those of the net in eval mode, but for BatchNorm layers that train: these take those of the batch.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        warmup: Share of the training steps, in [0, 1), over which eps rises from 0: first slowly, then linearly.
        eps_scale: The budget trained for is eps times this.
        kappa: Weight of the clean loss at the end; it falls from `first_kappa` with rising eps.
        regularisation: Weight of the regularisers, which falls to 0 with rising eps.
        initialise: Draw the weights of linear layers and convolutions anew at the first step, so that intervals keep
            their width from layer to layer. Leave it out for a net that was trained before.
        first_kappa: Weight of the clean loss at the start.

    Raises:
        ValueError: An argument out of range.
    """

    eps: float
    norm: str = "linf"
    warmup: float = 0.4
    eps_scale: float = 1.0
    kappa: float = 0.0
    regularisation: float = 0.5
    initialise: bool = True
    first_kappa: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.eps_scale, "eps_scale", "; it is a factor of eps")
        self.largest = check_eps(self.eps * self.eps_scale, check_norm(self.norm), name="eps * eps_scale")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share of the training steps in [0, 1), got {self.warmup}")
        for name in ("kappa", "first_kappa"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be the weight of the clean loss in [0, 1], got {getattr(self, name)}")
        check_not_negative(self.regularisation, "regularisation")
        self._fresh, self.share = False, 1.0

    def set_progress(self, fraction: float) -> None:
        """Set the budget of the next step; `fraction` in [0, 1] of the training steps are done."""
        self._fresh = fraction == 0
        self.share = smooth_rise(fraction / self.warmup) if self.warmup else 1.0

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and their (B,) classes, and the logits of the clean images."""
        self.prepare(classifier)
        kappa = self.first_kappa + self.share * (self.kappa - self.first_kappa)
        logits, statistics = logits_and_statistics(classifier, x, gradient=kappa > 0)
        eps = self.largest * self.share
        proven, tape = proven_loss(classifier, x, y, eps, self.norm, statistics, linear=self.linear)
        loss = (1 - kappa) * proven
        if kappa:
            loss = loss + kappa * F.cross_entropy(logits, y)
        return {"loss": self.regularised(loss, tape), "logits": logits}

    @property
    def linear(self) -> float:
        """Weight of linear bounds beside the intervals at this step."""
        return 0.0

    def prepare(self, classifier: nn.Module) -> None:
        """Draw the weights anew, where asked for and before the first step."""
        if self.initialise and self._fresh:
            initialise_for_intervals(classifier)

    def regularised(self, loss: Tensor, tape: Tape) -> Tensor:
        """Return the loss with the regularisers, which end when eps has risen."""
        if self.regularisation and self.share < 1:
            return loss + self.regularisation * (1 - self.share) * imbalance(tape)
        return loss


@dataclass
class AttackedIBP(IBPTraining):
    """Base of the interval losses that need adversarial examples.

    Args:
        attack: The inner maximiser (FGSM, BIM, MIM or PGD) in the norm of the intervals; its own eps is not used.

    Raises:
        ValueError: As `IBPTraining`, or an attack that is no gradient ascent or has another norm.
    """

    attack: GradientAscent = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner_attack(self.attack)
        if self.attack.norm != self.norm:
            raise ValueError(f"attack and intervals must have one norm, got {self.attack.norm} and {self.norm}")

    def attacked(self, classifier: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Return adversarial versions (B, C, H, W) of the images within `eps`, found in eval mode, detached."""
        return self.attack.maximise(classifier, x, Criterion(y).log_odds, eps=eps, eval_mode=True)


def smooth_rise(share: float) -> float:
    """Return a schedule from 0 to 1 over `share` in [0, 1]: of the fourth power in the first quarter, then linear."""
    share, bend = min(1.0, max(0.0, share)), 0.25
    slope = 1 / (1 - bend + bend / 4)  # continuous, with a continuous slope
    return slope * (share**4 / (4 * bend**3)) if share < bend else slope * (share - bend + bend / 4)


def proven_loss(
    classifier: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str, statistics: Statistics | None = None, *,
    linear: float = 0.0,
) -> tuple[Tensor, Tape]:  # fmt: skip
    """Return the mean cross-entropy (a scalar) of the worst logits that intervals within `eps` allow, and the tape.

    In float32 whatever the precision of training: margins in bfloat16 cost certified accuracy. BatchNorm layers take
    `statistics` in place of their running ones. `linear` in [0, 1] is the weight of CROWN-IBP's bounds beside IBP's.
    """
    with torch.autocast(x.device.type, enabled=False):
        region = Region(x.float(), x.new_full((len(x),), eps, dtype=torch.float32), norm)
        net = WithStatistics(classifier, statistics) if statistics else classifier
        tape, node = logits_of(net, region)
        margins = margins_of(tape, node, y, through_bends=False)
        if linear:
            margins = linear * margins_of(tape, node, y, through_bends=True) + (1 - linear) * margins
        return F.cross_entropy(-margins, y), tape


def imbalance(tape: Tape) -> Tensor:
    """Return Shi et al.'s two regularisers, averaged over the activations (a scalar).

    Intervals should not widen from the input on (tightness), and units that are surely on should weigh as much as
    those surely off, by the mean and by the variance of their middles.
    """
    first = _mean_radius(tape.region.low, tape.region.high)
    terms = []
    for node in (each.inputs[0] for each in tape.nodes if each.op is not None and each.op.bends):
        terms += [F.relu(_BALANCE - first / _mean_radius(node.low, node.high).clamp_min(1e-12))]
        middle = (node.low + node.high) / 2
        mean = middle.mean()
        on, off = (_moments(middle, side, mean) for side in (node.low > 0, node.high < 0))
        for a, b in ((on[0], -off[0]), (on[1], off[1])):
            larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
            terms.append(F.relu(_BALANCE - smaller / larger.clamp_min(1e-12)))
    count = len(terms) // 3
    return torch.stack(terms).sum() / (_BALANCE * count) if count else first.new_zeros(())


def _mean_radius(low: Tensor, high: Tensor) -> Tensor:
    return (high.mean() - low.mean()) / 2


def _moments(middle: Tensor, side: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the values on one `side` (bool, as `middle`) add to the mean of all, and to their variance."""
    values = torch.where(side, middle, 0.0).flatten()
    total, squares = values.sum(), values.dot(values)  # a few passes over the values: this is a third of a step
    spread = squares - 2 * mean * total + mean.square() * side.sum()
    return total / len(values), spread.clamp_min(0) / len(values)


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
