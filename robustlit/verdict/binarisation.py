"""Check 19, the binarisation test: an attack must find an adversarial example that is known to exist."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks.victim import Victim
from robustlit.classifier import attack_view, is_stochastic
from robustlit.results.verdict import Check
from robustlit.verdict.context import Context
from robustlit.verdict.probe import Probe, corner
from robustlit.verdict.spec import CheckSpec

_INNER = 60  # points of the ball that the readout must call clean, beside the image
_EXAMPLES = 64  # for each of which a readout is fitted


def binarisation(spec: CheckSpec, context: Context) -> Check:
    """19: the attack finds a planted adversarial example.

    For each example a readout of the frozen features is fitted that separates one point of the ball's surface from the
    image and from points inside the ball.
    """
    probe = context.few.first(_EXAMPLES)
    if is_stochastic(probe.model) or not ends_in_linear(probe.model, probe.x[:1]):
        return spec.undecided("the model is random, or ends in no linear layer whose input could be read")
    missed, planted = 0, 0
    for one in map(probe.part, torch.arange(len(probe), device=probe.x.device).unsqueeze(1)):
        readout = plant(one)
        if readout is None:
            continue
        planted += 1
        binary = replace(one, model=readout, y=torch.zeros_like(one.y))
        missed += int((~binary.run(probe.attack).success).sum())
    if planted < max(1, len(probe) // 2):
        return spec.undecided(f"only {planted} of {len(probe)} examples have features that could be separated")
    return spec.share(missed, planted, "planted adversarial examples that the attack missed:")


class Readout(nn.Module):
    """Binary logits (B, 2) from the input of a model's last linear layer: class 1 is adversarial."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.model, self.weight, self.bias = model, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        score = features(self.model, x) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)

    def attack_view(self) -> nn.Module:
        """Return the same readout of the model's own attack view."""
        view = attack_view(self.model)
        return self if view is self.model else Readout(view, self.weight, self.bias)


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return the input (B, D) of a model's last linear layer for images `x`."""
    with _linear_layers(model) as passed:
        model(x.clone())
    return passed[-1][1].flatten(1)


def ends_in_linear(model: nn.Module, x: Tensor) -> bool:
    """Return whether the last linear layer that `x` passes through gives the logits, and is passed once."""
    with _linear_layers(model) as passed, Victim(model, x) as victim:
        classes = victim.logits(x).shape[1]
    layers = [layer for layer, _ in passed]
    return bool(layers) and layers.count(layers[-1]) == 1 and layers[-1].out_features == classes


@contextmanager
def _linear_layers(model: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor]]]:
    """Record the linear layers that forwards pass through, each with its input."""
    passed: list[tuple[nn.Linear, Tensor]] = []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda layer, inputs: passed.append((layer, inputs[0]))) for m in linears]
    try:
        yield passed
    finally:
        for hook in hooks:
            hook.remove()


def plant(one: Probe) -> Readout | None:
    """Fit a readout for the one example of a probe; None where its features cannot be separated."""
    from sklearn.linear_model import LogisticRegression

    x, ball, draws = one.x, one.ball(), one.draws(19)
    far = corner(ball, draws.uniform(x))
    inner = torch.cat([ball.random_point(draws) for _ in range(_INNER)])
    points = torch.cat([x, inner, far])

    @torch.no_grad()
    def look(victim: Victim) -> Tensor:
        return features(victim.model, points)

    found = one.with_victim(look).double().cpu().numpy()
    one.meter["passes"] += len(points)
    scale = found.std(0) + 1e-8
    label = np.arange(len(found)) == len(found) - 1
    fitted = LogisticRegression(C=1e4, max_iter=500, class_weight="balanced").fit(found / scale, label)
    weight = fitted.coef_[0] / scale
    scores = found @ weight
    highest, planted = scores[:-1].max(), scores[-1]
    if not planted > highest:
        return None
    middle, spread = (highest + planted) / 2, planted - highest  # logits in units of the gap: float32 resolves it
    return Readout(one.model, x.new_tensor(weight / spread), x.new_tensor(-middle / spread))
