"""Transformed: what defenses that change the image before it is classified share."""

from __future__ import annotations

from torch import nn

from robustlit.classifier import can_reject, is_stochastic


class Transformed(nn.Module):
    """A trained classifier `net` behind a deterministic change of its images, which a subclass makes in `forward`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def stochastic(self) -> bool:
        """Whether the classifier is stochastic."""
        return is_stochastic(self.net)

    @property
    def rejects(self) -> bool:
        """Whether the last logit is the classifier's refusal to name a class."""
        return can_reject(self.net)

    def undefended(self) -> nn.Module:
        """Return the classifier alone."""
        return self.net
