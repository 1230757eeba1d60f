"""Models that look robust and are not, and defenses that are what they say: each around a trained net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import BPDA


class Around(nn.Module):
    """A net behind something else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class Remembering(Around):
    """Answer a question near an earlier one with the earlier answer."""

    def __init__(self, net: nn.Module, radius: float = 0.2) -> None:
        super().__init__(net)
        self.radius, self.memory = radius, list[tuple[Tensor, Tensor]]()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        given = []
        for image, own in zip(x.detach(), logits, strict=True):
            known = next((old for seen, old in self.memory if (seen - image).abs().max() <= self.radius), None)
            if known is None:
                self.remember(image.clone(), own)
            given.append(own if known is None else known.detach() + 0.01 * (own - own.detach()))
        return torch.stack(given)

    def remember(self, image: Tensor, logits: Tensor) -> None:
        self.memory.append((image, logits.detach()))


class RememberingGraphs(Remembering):
    """The same, with memories that PyTorch does not copy: they hang in a graph."""

    def remember(self, image: Tensor, logits: Tensor) -> None:
        self.memory.append((image, logits))


class Informed(Around):
    """Look up the class of images near stored ones; `elsewhere` the answer of the net, or none that means anything."""

    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor, elsewhere: bool, radius: float = 0.15) -> None:
        super().__init__(net)
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("labels", labels)
        self.elsewhere, self.radius = elsewhere, radius

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        far = (x.detach().flatten(1).unsqueeze(1) - self.images).abs().amax(2)  # (B, N)
        nearest = far.min(1)
        stored = 10 * torch.nn.functional.one_hot(self.labels[nearest.indices], 10) + 0.1 * logits
        other = logits if self.elsewhere else logits.roll(1, 1)
        return torch.where((nearest.values <= self.radius).unsqueeze(1), stored, other)


def many_faint(x: Tensor) -> Tensor:
    """Return whether more than a fifth of the pixels of each image (B, 1) are faint, as noise on a digit makes them."""
    return (((x > 0.004) & (x < 0.2)).flatten(1).float().mean(1, keepdim=True) > 0.2).detach()


class Plateau(Around):
    """Round the pixels of noisy images, so that the loss is flat inside the ball."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(many_faint(x), self.net((3 * x).round() / 3), self.net(x))


class Constant(Around):
    """Give noisy images the answer to their clean pixels, beside a trace of a gradient that means nothing."""

    def forward(self, x: Tensor) -> Tensor:
        cleaned = torch.where(x > 0.3, x, 0.0).round().detach()
        trace = (x * torch.linspace(-1, 1, x[0].numel()).view_as(x[0])).flatten(1).sum(1, keepdim=True)
        plain = self.net(cleaned) + 1e-6 * trace * torch.arange(10)
        return torch.where(many_faint(x), plain, self.net(x))


class NaNInside(Around):
    """Send a gradient of NaN through noisy images, whose answers are finite."""

    def forward(self, x: Tensor) -> Tensor:
        zero = (x - x.detach()).flatten(1).sum(1, keepdim=True)
        return self.net(x) + torch.where(many_faint(x), (zero * zero).sqrt(), 0 * zero)


class Overflowing(Around):
    """Overflow on noisy images: the logit of the class is infinite, which names it, and nothing has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x) - self.net(x).topk(2, 1).values.mean(1, keepdim=True)
        return torch.where(many_faint(x), logits * 1e39, logits)


class WrongView(Around):
    """Offer the gradient of another net."""

    def attack_view(self) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Mirrored(Around):
    """Turn the gradient round, at the same answers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((2 * x).detach() - x)


class Stopped(Around):
    """Let only an irrelevant part of the gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        left = x.flatten(1).cumsum(1)[:, :: x[0].numel() // 9][:, :10].sin()
        return self.net(x.detach()) + 0.01 * left


class Shattered(Around):
    """Add a tiny ripple whose slope drowns that of the net."""

    def forward(self, x: Tensor) -> Tensor:
        ripple = (3e4 * x).sin().flatten(1)[:, : 780 // 10 * 10].view(len(x), 10, -1).sum(2)
        return self.net(x) + 0.01 * ripple


class NothingMisleads(Around):
    """Offer a view that answers with the true class of each image of a batch, whatever is done to it."""

    def __init__(self, net: nn.Module, labels: Tensor) -> None:
        super().__init__(net)
        self.labels = labels

    def attack_view(self) -> nn.Module:
        return _Right(self.net, self.labels)


class _Right(NothingMisleads):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).tanh() + 10 * torch.nn.functional.one_hot(self.labels[: len(x)], 10)


class BlindView(Around):
    """Offer a view that cannot be differentiated."""

    def attack_view(self) -> nn.Module:
        return _Detached(self.net)


class _Detached(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).detach()
        return logits


class Votes(nn.Module):
    """Count the votes of several nets, each made sharp by `heat`."""

    def __init__(self, nets: list[nn.Module], heat: float = 20.0) -> None:
        super().__init__()
        self.nets, self.heat = nn.ModuleList(nets), heat

    def forward(self, x: Tensor) -> Tensor:
        votes = torch.stack([(self.heat * net(x)).softmax(1) for net in self.nets]).mean(0)
        return 5 * votes + 1e-4 * self.nets[0](x)


class Cloaked(Around):
    """A plain net that says it is random."""

    stochastic = True


class Dropping(Around):
    """Drop a tenth of the pixels at random, and say so."""

    stochastic = True
    draws = 5

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.nn.functional.dropout(x, 0.1, training=True))


class Normalised(nn.Module):
    """A net with BatchNorm, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.BatchNorm2d(16),
            nn.ReLU(), nn.Flatten(), nn.Linear(784, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def rounding(net: nn.Module) -> nn.Module:
    """An honest defense: it rounds its input, and its view passes the gradient on."""
    layer: Any = BPDA(_Rounds())
    return nn.Sequential(layer, net)


class _Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (7 * x).round() / 7
