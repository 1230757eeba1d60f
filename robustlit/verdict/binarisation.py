"""The binarisation test: an attack must find an adversarial that is known to be there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks.victim import Victim
from robustlit.classifier import attack_view, is_stochastic
from robustlit.results.verdict import Check, judged_share, undecided
from robustlit.threat import expand
from robustlit.verdict.probe import Probe

_SOURCE = "Zimmermann et al. 2022, arXiv:2206.13991"
_NAME = "a planted adversarial is found"
_INNER = 60  # points of the ball that the readout must call clean, beside the image


def binarisation(probe: Probe) -> Check:
    """19: with its last layer replaced by a readout that calls one far point of the ball adversarial, the model falls.

    For each example a linear readout of the frozen features is fitted that tells one point at the ball's surface from
    the image and points drawn from the ball. An adversarial is then known to exist; an attack that misses it would
    miss others.
    """
    last = last_linear(probe.model, probe.x[:1])
    if is_stochastic(probe.model) or last is None:
        return undecided(
            19, _NAME, "the model is random, or ends in no linear layer whose input could be read", _SOURCE
        )
    missed, planted = 0, 0
    for number in range(len(probe)):
        one = probe.part(torch.tensor([number], device=probe.x.device))
        readout = plant(one, last)
        if readout is None:
            continue
        planted += 1
        binary = replace(one, model=readout, y=torch.zeros_like(one.y))
        missed += int((~binary.run(probe.attack).success).sum())
    if planted < max(1, len(probe) // 2):
        return undecided(19, _NAME, f"only {planted} of {len(probe)} features could be told apart", _SOURCE)
    return judged_share(
        19, _NAME, missed, planted, 0.05, _SOURCE, found="adversarials that were planted and missed:",
        advice="the attack is too weak for this model: more steps and restarts, another loss, a surrogate",
    )  # fmt: skip


class Readout(nn.Module):
    """Binary logits (B, 2) from what reaches the last linear layer of a model: 1 is adversarial."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.model, self.weight, self.bias = model, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        score = features(self.model, x) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)

    def attack_view(self) -> nn.Module:
        """The same readout of the model's own attack view."""
        view = attack_view(self.model)
        return self if view is self.model else Readout(view, self.weight, self.bias)


def last_linear(model: nn.Module, x: Tensor) -> nn.Linear | None:
    """The last linear layer that a forward of `x` goes through, if it goes through it once and it gives the logits."""
    order: list[nn.Linear] = []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_hook(lambda module, inputs, output: order.append(module)) for m in linears]
    try:
        with Victim(model, x) as victim:
            logits = victim.logits(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not order or order.count(order[-1]) > 1 or order[-1].out_features != logits.shape[1]:
        return None
    return order[-1]


def features(model: nn.Module, x: Tensor) -> Tensor:
    """(B, D) what reaches the last linear layer of a model for images `x`."""
    caught: list[Tensor] = []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0])) for m in linears]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return caught[-1].flatten(1)


def plant(one: Probe, last: nn.Linear) -> Readout | None:
    """A readout for the one example of a probe, or None where its features cannot be told apart."""
    from sklearn.linear_model import LogisticRegression

    x, draws = one.x, one.draws(19)
    many = x.expand(_INNER, *x.shape[1:])
    ball = one.ball()
    direction = (draws.uniform(x) - 0.5).sign()
    if one.norm == "l2":
        direction = direction / x[0].numel() ** 0.5
    far = ball.project(x + direction * expand(ball.eps, x))
    # Drawn for one example after the other, hence not by Ball.random_point, which draws one point for each.
    inner = torch.cat([ball.random_point(draws) for _ in range(len(many))])
    points = torch.cat([x, inner, far])

    def look(victim: Victim) -> Tensor:
        with torch.no_grad():
            return features(victim.model, points)

    found = one.with_victim(look).double().cpu().numpy()
    one.meter.passes += len(points)
    scale = found.std(0) + 1e-8
    label = np.arange(len(found)) == len(found) - 1
    fitted = LogisticRegression(C=1e4, max_iter=500, class_weight="balanced").fit(found / scale, label)
    weight = fitted.coef_[0] / scale
    scores = found @ weight
    highest, planted = scores[:-1].max(), scores[-1]
    if not planted > highest:
        return None
    middle = (highest + planted) / 2
    spread = planted - highest  # in units of the gap, so that float32 resolves it
    return Readout(one.model, x.new_tensor(weight / spread), x.new_tensor(-middle / spread))
