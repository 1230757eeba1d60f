"""Does a model answer alike each time? One that does not, and does not say so, looks more robust than it is."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from robustlit.attacks.victim import Victim

_APART = 1e-3  # of the largest logit: more than rounding
_ASKED_AGAIN = 32  # images of a batch
_RANDOM = (
    "{name} answers the same images differently each time, and does not say that it is random: an attack stops at the "
    "first lucky draw and is judged by another, so its figures mean little; wrap it: "
    "robustlit.attacks.EOT({name}, 20), or give it stochastic = True"
)


def differing(answers: Tensor) -> Tensor:
    """Which examples got different answers.

    Args:
        answers: logits (k, B, K) of k forwards on the same images.

    Returns:
        (B,) bool: some logit differs from the first by more than a thousandth of the largest.
    """
    spread = (answers - answers[0]).abs().amax((0, 2))
    return spread > _APART * answers[0].abs().amax(1).clamp_min(1e-6)


def warn_if_random(victim: Victim, x: Tensor, logits: Tensor) -> None:
    """Warns of a random model that was not declared to be one (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        victim: of the model.
        x: images (B, C, H, W), of which a few are shown to it again.
        logits: (B, K) what it answered.
    """
    if victim.is_stochastic:
        return
    rows = torch.arange(min(_ASKED_AGAIN, len(x)), device=x.device)
    if not bool(differing(torch.stack([logits[rows], victim.logits(x[rows], rows)])).any()):
        return
    # Nor is it that an answer depends on who else is in the batch.
    if bool(differing(torch.stack([logits, victim.logits(x)])).any()):
        warnings.warn(_RANDOM.format(name=type(victim.model).__name__), stacklevel=4)
