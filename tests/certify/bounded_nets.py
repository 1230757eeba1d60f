"""Small nets of every layer that certificates know, with fixed weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.defenses import JumpReLUDefense
from robustlit.models import Normalize


class Skip(nn.Module):
    """A residual block, whose ReLUs work in place as those of timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act(self.first(x))
        x = self.second(x)
        x += shortcut
        return self.act(x)


class Resized(nn.Module):
    """A bilinear resize in front of a net."""

    def __init__(self, net: nn.Module, side: int) -> None:
        super().__init__()
        self.net, self.side = net, side

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.side:
            x = nn.functional.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return self.net(x)


class Arithmetic(nn.Module):
    """What nets write by hand: constants on either side, differences, padding, concatenation; sides that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2))
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x - 0.4, 1 - x, 2 * x / 0.7], 1)
        x = self.first(nn.functional.pad(x, (1, 0, 0, 1), mode="replicate")).relu()
        return self.last((self.second(x) - x).relu().flatten(1))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    layer.running_mean = torch.randn(channels) * 0.1
    layer.running_var = torch.rand(channels) + 0.5
    layer.weight.data, layer.bias.data = torch.randn(channels), torch.randn(channels) * 0.1
    return layer


def nets() -> dict[str, nn.Module]:
    """Return nets for images of 8 x 8 pixels: of one channel unless the name says three; 10 classes or as it says."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    found: dict[str, nn.Module] = {
        "linear_2": nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
        "cnn": nn.Sequential(
            Normalize([0.3], [0.4]), nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 4, 2, 1), nn.LeakyReLU(0.1),
            nn.Flatten(), nn.Dropout(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10),
        ),
        "pooled": nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10),
        ),
        "skip_3_channels": nn.Sequential(
            Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]), nn.Conv2d(3, 4, 3, 2, 1), _batch_norm(4), nn.ReLU(), Skip(),
            Skip(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
        ),
        "smooth_100": nn.Sequential(
            nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 30), nn.Sigmoid(), nn.Linear(30, 100)
        ),
        "resized": Resized(nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(75, 10)), 12),
        "jump": JumpReLUDefense(body, 0.1),
        "arithmetic": Arithmetic(),
    }  # fmt: skip
    return {name: net.eval() for name, net in found.items()}


def images(net: nn.Module, count: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return random images and the classes that the net gives them."""
    x = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net(x).argmax(1)
