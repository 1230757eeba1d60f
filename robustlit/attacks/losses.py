"""Losses that an attack increases, and the criterion by which it succeeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustlit.classifier import NO_CLASS, names_class, predicted

LOSSES = ("ce", "dlr", "margin")
HALF = (torch.bfloat16, torch.float16)  # a difference of large logits needs the precision of float32
_ROUNDINGS, _ROUNDINGS_OF_HALF = 100, 2  # by which a logit may change with the batch, relative to the largest
_GUARD = 1e-4  # share of the clean margin that a minimal attack goes beyond the boundary
# Where logits are nearly alike, the log odds follow the mean of the other logits and not the highest one. So logits
# with a standard deviation below the first are scaled to the second, that of usual nets. At .75 PGD would leave a net
# 19 of 200 images in place of 6 (docs/attacks.md).
_SMALL_SPREAD, _USUAL_SPREAD = 2.0, 5.0
_MASKED = -9e3  # a class with this logit or less, such as -1e4 or -inf, is one that the net never predicts
_NEXT_TO = 0.01  # of an end of [0, 1] or [-1, 1]: there a sigmoid or tanh saturates
_SATURATED = 0.1  # share of the examples with two such outputs
_PER_EXAMPLE = ("label", "target", "min_margin", "scale")  # fields of `Criterion` with a value for each example
_Self = TypeVar("_Self", bound="Criterion")


@dataclass
class Criterion:
    """When an example counts as adversarial, and the losses that increase towards that.

    Untargeted: any class but the true one, and logits that name no class (`names_class`): a deployed model gives no
    answer there. Targeted: the target class and no other.

    Args:
        label: (B,) true classes.
        target: (B,) classes to reach, or None.
        share: 0 asks for the prediction. A positive share asks that the wanted classes have this probability together,
            whichever of them comes first: for logits that are log shares of the votes of a stochastic model.
        rejects: The last logit is not a class but the model's refusal to name one. A refusal is not a success.
        min_margin: (B,) margins that must be exceeded, in logits (see `with_rounding_margin`); None: any.
        scale: (B,) factors of the logits in `log_odds` (see `scaled_to`); None: 1.
    """

    label: Tensor
    target: Tensor | None = None
    share: float = 0.0
    rejects: bool = False
    min_margin: Tensor | None = None
    scale: Tensor | None = None

    def select(self: _Self, keep: Tensor) -> _Self:
        """Return the criteria of the examples in `keep`."""
        kept: dict[str, Any] = {
            name: values[keep] for name in _PER_EXAMPLE if (values := getattr(self, name)) is not None
        }
        return replace(self, **kept)

    def scaled_to(self: _Self, clean: Tensor) -> _Self:
        """Return the criteria with a larger `scale` for images with a small spread of their clean logits (B, K).

        Logits of unit norm (cosine similarities) are an example.
        """
        width = spread(clean)
        small = (width > 0) & (width < _SMALL_SPREAD)
        return replace(self, scale=torch.where(small, _USUAL_SPREAD / width, 1.0)) if bool(small.any()) else self

    def with_rounding_margin(self: _Self, clean: Tensor) -> _Self:
        """Return the criteria for a search that stops next to the boundary, from the logits (B, K) of the clean images.

        A point on the boundary is judged either way, as the batch and the kernel round. The margin asked for is above
        rounding and a ten-thousandth of the margin that the search has to cross, so it costs about that share of the
        distance. Votes (a positive share) have no margin: their criterion is safe without.
        """
        if self.share:
            return self
        roundings = _ROUNDINGS_OF_HALF if clean.dtype in HALF else _ROUNDINGS
        logits = full_precision(clean)
        # Of the other logits the largest alone: a sentinel such as -1e9 says nothing.
        own, other = self.reference_logit(logits), self.other_logits(logits).amax(1)
        rounding = roundings * torch.finfo(clean.dtype).eps * torch.maximum(own.abs(), other.abs())
        return replace(self, min_margin=(rounding + _GUARD * (other - own).abs()).nan_to_num(nan=0.0, posinf=0.0))

    def targeting(self: _Self, target: Tensor) -> _Self:
        """Return the criteria of the same examples with a class (B,) to reach."""
        return replace(self, target=target)

    @property
    def reference_class(self) -> Tensor:
        """(B,) the class that the margin refers to: the true class, or the target."""
        return self.label if self.target is None else self.target

    def classes(self, logits: Tensor) -> int:
        """Return how many columns of `logits` (B, K) are classes."""
        return logits.shape[1] - self.rejects

    def reference_logit(self, logits: Tensor) -> Tensor:
        """Return (B,) the logit of the reference class; untargeted, the refusal's where that is higher."""
        own = logits.gather(1, self.reference_class.unsqueeze(1)).squeeze(1)
        return torch.maximum(own, logits[:, -1]) if self.rejects and self.target is None else own

    def other_logits(self, logits: Tensor) -> Tensor:
        """Return the logits (B, K) with -inf for the reference class and, untargeted, for a refusal."""
        others = logits.scatter(1, self.reference_class.unsqueeze(1), -float("inf"))
        if self.rejects and self.target is None:
            others = torch.cat([others[:, :-1], torch.full_like(others[:, -1:], -float("inf"))], 1)
        return others

    def reached(self, logits: Tensor) -> Tensor:
        """Return (B,) bool, whether logits (B, K) meet the criterion; untargeted, those that name no class do."""
        named = names_class(logits)
        if self.share:
            chances = logits.exp()  # they sum to less than 1 where some draws named no class
            chance = chances.gather(1, self.reference_class.unsqueeze(1)).squeeze(1)
            if self.target is None:
                chance = 1 - chance - (chances[:, -1] if self.rejects else 0)
            reached = chance >= self.share
        else:
            prediction = logits.argmax(1)
            reached = prediction != self.label if self.target is None else prediction == self.target
            if self.rejects:
                reached = reached & (prediction < logits.shape[1] - 1)
        if self.min_margin is not None:
            reached = reached & (self.margin(logits) > self.min_margin)
        return reached | ~named if self.target is None else reached & named

    def prediction(self, logits: Tensor, reached: Tensor) -> Tensor:
        """Return (B,) the class of the highest logit; of a stochastic model, among the wanted ones where `reached`.

        `NO_CLASS` where the logits name none.
        """
        if not self.share:
            return predicted(logits)
        if self.target is not None:
            return torch.where(reached, self.target, predicted(logits))
        chosen = torch.where(reached.unsqueeze(1), self.other_logits(logits), logits).argmax(1)
        return torch.where(names_class(logits), chosen, NO_CLASS)

    def margin(self, logits: Tensor) -> Tensor:
        """Return (B,) the logit margin, positive where the criterion is met: minus f6 of Carlini and Wagner (2017).

        Untargeted, the highest other logit minus the true class's (or the refusal's); targeted, the target's minus the
        highest other.
        """
        logits = full_precision(logits)
        own, others = self.reference_logit(logits), self.other_logits(logits).amax(1)
        return self._known(others - own if self.target is None else own - others)

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return (B,) the log odds against the true class, or of the target.

        Cross-entropy is softplus of it, so both order points alike and have parallel gradients. But the gradient of
        cross-entropy vanishes as confidence grows: in float32 it changes direction beyond a margin of 17 logits and is
        zero beyond 104, where a confident net (e.g. a distilled one) would look robust. The log odds do not saturate.
        """
        logits = full_precision(logits)
        if self.scale is not None:
            logits = logits * self.scale.unsqueeze(1).to(logits.dtype)
        own, others = self.reference_logit(logits), self.other_logits(logits).logsumexp(1)
        return self._known(others - own if self.target is None else own - others)

    def dlr(self, logits: Tensor) -> Tensor:
        """Return (B,) the difference of logits ratio, free of scale; of fewer than 3 classes (targeted 4), the margin.

        Classes with the logit -inf, which nothing predicts, do not count. Croce, Hein: Reliable evaluation of
        adversarial robustness, 2020, arXiv:2003.01690, equations 6 and 7.
        """
        logits = full_precision(logits)
        needed = 3 if self.target is None else 4  # of the highest logits, for the denominator
        margin = self.margin(logits)
        if self.classes(logits) < needed:
            return margin
        top = logits.topk(needed, dim=1).values
        if self.target is None:
            width, difference = top[:, 0] - top[:, 2], margin
        else:
            width = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
            pair = logits.gather(1, torch.stack([self.target, self.label], 1))
            difference = pair[:, 0] - pair[:, 1]
        possible = top[:, -1] > -math.inf
        # Both branches are differentiated: an infinite width must not reach the ratio.
        ratio = difference / (torch.where(possible, width, 1.0) + 1e-12)
        return self._known(torch.where(possible, ratio, margin))

    def _known(self, loss: Tensor) -> Tensor:
        """Return the loss (B,), with infinity for NaN, where no class is named: the best that an attack can do."""
        best = math.inf if self.target is None else -math.inf
        return loss.nan_to_num(nan=best, posinf=math.inf, neginf=-math.inf)


@dataclass
class LogOdds:
    """The log odds against the classes `label` (B,), with their gradient in closed form: training needs no value.

    Called as any loss, logits (B, K) -> (B,), it returns `Criterion(label).log_odds`.
    """

    label: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        return Criterion(self.label).log_odds(logits)

    def slope(self, logits: Tensor) -> Tensor:
        """Return the gradient (B, K) at logits (B, K): the softmax of the other classes, and -1 for the true one."""
        label, logits_32 = self.label.unsqueeze(1), full_precision(logits)
        # The lowest number and not -inf: where all other logits are -inf, the softmax would be NaN, and BatchNorm in
        # training mode would carry that to the other examples.
        others = logits_32.scatter(1, label, torch.finfo(logits_32.dtype).min)
        return others.softmax(1).scatter_(1, label, -1.0).to(logits.dtype)


def spread(logits: Tensor) -> Tensor:
    """Return (B,) the standard deviation of the logits (B, K) of each example's `possible` classes, in float64."""
    finite = possible(logits) & logits.isfinite()
    values = logits.detach().double().masked_fill(~finite, 0)
    count = finite.sum(1).clamp_min(1)
    mean = values.sum(1) / count
    return ((values - mean.unsqueeze(1)).masked_fill(~finite, 0).square().sum(1) / count).sqrt()


def possible(logits: Tensor) -> Tensor:
    """Return which logits (..., K) are of classes that can be predicted: not of those masked by -inf or -1e4."""
    return (logits > _MASKED) | (logits.amax(-1, keepdim=True) <= _MASKED)


def are_probabilities(logits: Tensor) -> bool:
    """Return whether logits (B, K) are probabilities: not negative, with a sum of 1 up to their rounding."""
    rounded = any(torch.equal(logits.to(half).to(logits.dtype), logits) for half in HALF)  # to half precision
    tolerance = 1e-2 if rounded else 1e-4
    return bool((logits >= 0).all() and ((logits.double().sum(1) - 1).abs() < tolerance).all())


def are_saturated(logits: Tensor) -> bool:
    """Return whether logits (B, K) are those of a sigmoid or tanh that saturates.

    All lie in [0, 1] or in [-1, 1], and a tenth of the examples have an output next to 1 and another next to either
    end. The gradient of a confident output vanishes beside those of others, so an attack follows the others. Two
    outputs z and -z do not count: they may be cosines, and no gradient vanishes beside the other.
    """
    if logits.shape[1] == 2 and bool((logits.sum(1).abs() < 1e-3).all()):
        return False
    low = 0.0 if bool((logits >= 0).all()) else -1.0
    top = logits >= 1 - _NEXT_TO
    pairs = top.any(1) & ((top | (logits <= low + _NEXT_TO)).sum(1) >= 2)
    within = bool(((logits >= low) & (logits <= 1)).all())
    return within and float(pairs.double().mean()) >= _SATURATED


def full_precision(logits: Tensor) -> Tensor:
    """Return the logits (B, K) in float32 where they are in half precision."""
    return logits.float() if logits.dtype in HALF else logits


def loss_for(name: str, criterion: Criterion) -> Callable[[Tensor], Tensor]:
    """Return the loss, logits (B, K) -> (B,), that increases towards the criterion; `name` is one of LOSSES."""
    return {"ce": criterion.log_odds, "dlr": criterion.dlr, "margin": criterion.margin}[name]


def __getattr__(name: str) -> Any:
    if name != "Goal":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.Goal is now called Criterion", DeprecationWarning, stacklevel=2)
    return Criterion
