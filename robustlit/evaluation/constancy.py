"""A check that a model answers an image alike each time; one that does not looks more robust than it is."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from robustlit.attacks.losses import possible
from robustlit.attacks.victim import Victim

_DIFFERENT = 1e-3  # of the largest logit: more than rounding
_BESIDE_OTHERS = 0.03  # the same, where batches of two sizes are rounded in two ways, in half precision too
_IMAGES = 32  # of a batch that are shown to the model twice, at most
_FEW, _TIMES = 2, 8  # images that are shown several times: one of two nets at random answers alike in 1 of 128 cases
_RANDOM = (
    "{name} answers the same images differently each time and does not declare it: an attack stops at the first lucky "
    "draw and is judged by another, so its results mean little; wrap it: robustlit.attacks.EOT({name}, 20), or give it "
    "stochastic = True"
)
_OF_THE_BATCH = (
    "{name} answers an image differently beside other images: its results depend on the batch size and on what else is "
    "in a batch, and an attack that has broken some goes on without these. If it takes statistics of the batch (as "
    "BatchNorm with track_running_stats=False, or a layer left in training mode), let it keep running ones; if it is "
    "deployed image by image, batch_size=1 shows what holds"
)


def differing(answers: Tensor, share: float = _DIFFERENT) -> Tensor:
    """Return which examples (B,) got logits (k, B, K) that differ by more than that share of the largest.

    Classes that are masked in all answers do not count, one that is masked in some is a difference.
    """
    counted = possible(answers)
    values = answers.masked_fill(~counted, 0)
    apart = (values - values[0]).abs().amax((0, 2)) > share * values[0].abs().amax(1)
    return apart | (counted != counted[0]).any(2).any(0)


def warn_if_inconsistent(victim: Victim, x: Tensor, logits: Tensor) -> None:
    """Warn of a random model that is not declared `stochastic` (Athalye et al. 2018, arXiv:1802.00420).

    Also warn if the logits of an image depend on the other images of its batch.

    Some of the images x (B, C, H, W) are shown again to `victim`, whose first answer is `logits` (B, K).
    """
    if victim.is_stochastic:
        return
    rows = torch.arange(min(_IMAGES, -(-len(x) // 2)), device=x.device)
    few, again = rows[:_FEW], torch.stack([logits[rows], victim.logits(x[rows], rows)])
    # A model may draw once for each forward, as a random choice among nets does: two answers can agree by chance.
    changes = bool(differing(torch.stack([victim.logits(x[few], few) for _ in range(_TIMES)])).any())
    if not changes and not bool(differing(again).any()):
        return
    # An answer that depends on the other images of the batch is not random: show the whole batch again.
    if changes or bool(differing(torch.stack([logits, victim.logits(x)])).any()):
        warnings.warn(_RANDOM.format(name=type(victim.model).__name__), stacklevel=4)
    elif bool(differing(again, _BESIDE_OTHERS).any()):
        warnings.warn(_OF_THE_BATCH.format(name=type(victim.model).__name__), stacklevel=4)
