"""Small detectors in front of a net, for the tests of the attacks that break them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.data import load_mnist


class Watched(nn.Module):
    """A net that rejects images by a score of the image or of its logits; its decision has no gradient.

    Args:
        net: from images (B, 1, 28, 28) to logits (B, K).
        rate: share of clean digits that is rejected.
        noise: standard deviation of fresh noise on the image that is scored; 0 makes it deterministic.
        rejects: False answers flagged images with the logits upside down, a poor corrector.
    """

    draws = 4

    def __init__(self, net: nn.Module, rate: float = 0.05, noise: float = 0.0, rejects: bool = True) -> None:
        super().__init__()
        self.net, self.noise, self.rejects, self.stochastic = net, noise, rejects, noise > 0
        images, _, _, _ = load_mnist()
        clean = images[12_000:14_000].to(next(net.parameters()).dtype) / 255
        self.learn(clean)
        with torch.no_grad():
            self.threshold = float(self.score(clean, net(clean)).quantile(1 - rate))

    def learn(self, clean: Tensor) -> None:
        """What the score needs to know of clean images (N, 1, 28, 28)."""
        raise NotImplementedError

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """(B,) how odd the images `x` (B, ...) with these logits (B, K) are."""
        raise NotImplementedError

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        return logits, self.score(x + self.noise * torch.randn_like(x) if self.noise else x, logits) - self.threshold

    def forward(self, x: Tensor) -> Tensor:
        logits, excess = self.detection(x)
        flagged = (excess >= 0).unsqueeze(1)
        if not self.rejects:
            return torch.where(flagged, self.correction(logits), logits)
        # Graded, or the last bits would decide which of two refused attempts is the better.
        grade = (excess / (1 + excess.abs())).detach().unsqueeze(1)
        return torch.cat([logits, logits.amax(1, keepdim=True) + grade], 1)

    def correction(self, logits: Tensor) -> Tensor:
        return -logits

    def attack_view(self) -> nn.Module:
        return self

    def undefended(self) -> nn.Module:
        return self.net


class OffTheDigits(Watched):
    """The score is the squared distance from the space of the first 40 principal components of clean digits."""

    def learn(self, clean: Tensor) -> None:
        flat = clean.flatten(1)
        self.mean = flat.mean(0)
        self.basis = torch.linalg.svd(flat - self.mean, full_matrices=False).Vh[:40]

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        z = x.flatten(1) - self.mean.to(x)
        basis = self.basis.to(x)
        return (z - z @ basis.T @ basis).square().sum(1)


class OddLogits(Watched):
    """The score is the distance of the logits from the mean of the class that they name, in its deviations."""

    def learn(self, clean: Tensor) -> None:
        with torch.no_grad():
            logits = self.net(clean)
        groups = [logits[logits.argmax(1) == k] for k in range(logits.shape[1])]
        self.mean = torch.stack([group.mean(0) for group in groups])
        self.deviation = torch.stack([group.std(0) for group in groups])

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        named = logits.argmax(1)
        if self.noise:
            logits = self.net(x)
        return ((logits - self.mean.to(x)[named]) / self.deviation.to(x)[named]).square().mean(1)


def shares(model: nn.Module, x: Tensor, y: Tensor, draws: int = 20) -> Tensor:
    """(B,) share of fresh forwards that name a wrong class, a refusal being none."""
    with torch.no_grad():
        named = torch.stack([model(x).argmax(1) for _ in range(draws)])
    return ((named != y) & (named < 10)).double().mean(0)
