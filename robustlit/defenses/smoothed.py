"""Smoothed: a classifier that answers for an image with Gaussian noise, so that its votes can be certified."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.checks import check_positive


class Smoothed(nn.Module):
    """Add Gaussian noise to an image before classifying it, anew at every forward.

    Cohen, Rosenfeld, Kolter: Certified adversarial robustness via randomized smoothing, 2019, arXiv:1902.02918. Attacks
    average gradients over draws (Salman et al., 2019, arXiv:1906.04584); it is judged by the votes of 20 fresh ones.
    `robustlit.certify.RandomizedSmoothing` certifies the class of the most votes. Only a net that was trained with such
    noise answers well under it.

    Args:
        net: The classifier, from images (B, C, H, W) in [0, 1] to logits (B, K); it also gets values outside.
        sigma: Standard deviation of the noise in pixel units.
        draws: Number of draws over which attacks average a gradient.

    Raises:
        ValueError: `sigma` is not positive.
    """

    stochastic = True

    def __init__(self, net: nn.Module, sigma: float = 0.25, *, draws: int = 20) -> None:
        super().__init__()
        check_positive(sigma, "sigma", "; it is in pixel units")
        self.net, self.sigma, self.draws = net, sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of the images with noise."""
        return self.net(x + self.sigma * torch.randn_like(x))

    def attack_view(self) -> nn.Module:
        """Return the model itself: its gradient is that of the expected logits."""
        return self

    def undefended(self) -> nn.Module:
        """Return the classifier without noise."""
        return self.net

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}"
