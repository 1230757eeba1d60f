"""Checks on images that the evaluation did not ask about: a model may know those that it did."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.attacks.victim import Victim
from robustlit.classifier import attack_view, can_reject, draws_of, is_stochastic
from robustlit.results.verdict import Check
from robustlit.verdict.context import Context
from robustlit.verdict.probe import Probe
from robustlit.verdict.spec import SHORT, CheckSpec

MOVED_STEPS = 10  # of the attack on moved images: enough to break what has no defense
_SMALLEST = 16  # pixels of a side, below which a shift by one pixel makes another image
_LOST = 0.05  # of a random model: answers that fresh draws may change, as in check 15


def first_questions(spec: CheckSpec, context: Context) -> Check:
    """21: what misleads a copy that was asked nothing before also misleads the model after the clean image.

    The images are those of the evaluation turned by half, so that nothing near them was asked before, and their class
    is what the model answers. Each question of the attack is put to a copy of its own.
    """
    turned, fresh = _turned(context.short), Forgetful(context.model)
    found = turned.run(PGD(eps=turned.eps, norm=turned.norm, steps=MOVED_STEPS), fresh)
    if not bool(found.success.any()):
        return spec.undecided("the attack on a copy that remembers nothing found no adversarial example to compare")

    def look(victim: Victim) -> Tensor:
        victim.logits(turned.x)  # what an attack asks first
        return victim.criterion(turned.y).reached(victim.logits(found.x_adv))

    lost = found.success & ~turned.with_victim(look)
    if is_stochastic(context.model):
        spec = replace(spec, limit=_LOST)
    text = "adversarial for a copy that was asked nothing before, but not for the model:"
    return spec.share(int(lost.sum()), int(found.success.sum()), text)


def shifted(spec: CheckSpec, context: Context) -> Check:
    """22: hardly fewer examples are right and robust after a shift by one pixel than before."""
    left = context.right.drawn(context.sizes[SHORT])
    if left.x.ndim != 4 or min(left.x.shape[2:]) < _SMALLEST:
        return spec.undecided(f"the inputs are no images of {_SMALLEST} pixels or more, which could be shifted by one")
    moved = replace(left, x=F.pad(left.x, (1, 0, 0, 0), mode="replicate")[..., :-1].contiguous())
    robust = ~moved.run(PGD(eps=left.eps, norm=left.norm, steps=MOVED_STEPS)).success
    before, after = float(left.robust.float().mean()), float(robust.float().mean())
    lost, n = before - after, len(left)
    changed = float((left.robust != robust).float().mean())
    low = lost - 1.96 * (max(changed - lost**2, 0) / n) ** 0.5  # of a difference of paired shares
    text = f"robust are {before:.1%} of {n} images and {after:.1%} of these moved by one pixel, a drop of"
    return spec.value(lost, text, low=low)


def _turned(probe: Probe) -> Probe:
    """Return the images turned by half, with the class that a fresh copy of the model gives them."""
    x = probe.x.flip(tuple(range(max(1, probe.x.ndim - 2), probe.x.ndim)))
    turned = replace(probe, x=x, model=Forgetful(probe.model))

    def look(victim: Victim) -> Tensor:
        logits = victim.logits(x)
        return logits[:, : logits.shape[1] - can_reject(probe.model)].argmax(1)

    return replace(turned, y=turned.with_victim(look), model=probe.model)


class Forgetful(nn.Module):
    """A model that answers each question by a copy of itself as it was, so that each is its first one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.stochastic, self.rejects = is_stochastic(model), can_reject(model)
        if self.stochastic:
            self.draws = draws_of(model)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = fresh_copy(self.model)(x)
        return logits

    def attack_view(self) -> nn.Module:
        """Return the same of the model's attack view."""
        view = attack_view(self.model)
        return self if view is self.model else Forgetful(view)


def fresh_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, of tensors that hang in a graph their values (PyTorch refuses to copy these)."""
    inside = getattr(model, "_orig_mod", model)  # of a compiled model: each copy would be compiled anew
    held = (value for module in inside.modules() for value in vars(module).values())
    return copy.deepcopy(inside, {id(t): t.detach().clone() for each in held for t in _in_graph(each)})


def _in_graph(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors in a value, or in the containers that it nests, that autograd computed."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif (depth and isinstance(value, (list, tuple, set, dict))) or type(value).__name__ == "deque":
        for each in value.values() if isinstance(value, dict) else value:
            yield from _in_graph(each, depth - 1)
