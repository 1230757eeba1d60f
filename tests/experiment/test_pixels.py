"""A net that seems to lack its normalisation gets one warning, an honest one none."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit.experiment.pixels import warn_of_pixels
from robustlit.models import Normalize

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Rule(nn.Module):
    """Ten classes by a pixel's red, right on normalised pixels alone."""

    def __init__(self, low: float, high: float, channel: int = 0) -> None:
        super().__init__()
        self.register_buffer("marks", torch.linspace(low, high, 10))
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, self.channel, 0, 0, None] - self.marks).abs()  # type: ignore[operator]


def data(channels: int = 3, grey: bool = False) -> Any:
    y = torch.arange(120) % 10
    x = torch.full((120, channels, 2, 2), 0.5)
    x[:, slice(None) if grey else slice(1)] = (y / 9).view(-1, 1, 1, 1)
    return SimpleNamespace(num_classes=10, test_dataloader=lambda: [(part, y[:60]) for part in x.split(60)])


def warned(net: nn.Module, channels: int = 3, grey: bool = False) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_pixels(net, data(channels, grey), "my.module:build")
    return [str(w.message) for w in caught]


def test_the_normalisation_that_is_missing_is_named() -> None:
    low, high = (0 - MEAN[0]) / STD[0], (1 - MEAN[0]) / STD[0]
    (line,) = warned(Rule(low, high))
    assert line.startswith("my.module:build classifies ")
    assert (
        "and 100.00 % [96.90, 100.00] behind Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])" in line
    )
    assert "build nn.Sequential(robustlit.models.Normalize(mean=[0.485" in line
    assert warned(nn.Sequential(Normalize(MEAN, STD), Rule(low, high))) == []


def test_pixels_up_to_255_and_channels_in_reverse() -> None:
    (line,) = warned(Rule(0, 255))
    assert "behind Normalize(mean=[0.0, 0.0, 0.0], std=[1 / 255] * 3)" in line
    (line,) = warned(Rule(0, 255), channels=1)
    assert "std=[1 / 255] * 1)" in line
    (line,) = warned(Rule(0, 255), grey=True)  # right in either order too, and the order is not what it lacks
    assert "behind Normalize(mean=[0.0, 0.0, 0.0], std=[1 / 255] * 3)" in line
    (line,) = warned(Rule(0, 1, channel=2))
    assert "with the channels in the order blue, green, red: give it x.flip(1) in its forward" in line


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_about_chance_is_said(channels: int) -> None:
    (line,) = warned(Rule(7, 7), channels)
    assert "10.00 % [5.81, 16.67] of the first test images, about chance for 10 classes" in line
    assert "robustlit.models.Normalize(mean, std), net)" in line


def test_random_layers_draw_what_they_would_have_drawn() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    warned(nn.Sequential(nn.Dropout(0.5).train(), Rule(0, 1)))
    assert torch.equal(before, torch.get_rng_state())
