"""Wrapper: what EOT, BPDA and EvolutionStrategies pass on of the model inside."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustlit.classifier import can_reject, is_stochastic, undefended


class Wrapper(nn.Module):
    """A module around `model`, whose attack it makes possible: it is random, and refuses images, where the model does.

    Args:
        model: A module, or a function.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def stochastic(self) -> bool:
        """Whether the wrapped model is stochastic."""
        return is_stochastic(self.model)

    @property
    def rejects(self) -> bool:
        """Whether the last logit is the wrapped model's refusal to name a class."""
        return can_reject(self.model)

    def attack_view(self) -> nn.Module:
        """Return itself: its output is the model's own, so the attack view may also judge."""
        return self

    def undefended(self) -> nn.Module:
        """Return the wrapped model without its defense, or itself if the wrapped model has none."""
        inner = undefended(self.model)
        return self if inner is self.model else inner
