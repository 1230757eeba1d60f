"""Training with Gaussian noise, for randomized smoothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlit.objectives import GaussianNoise


class Seen(nn.Sequential):
    """A linear net that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.detach())
        return super().forward(x)


@pytest.mark.parametrize("sigma", [0.12, 0.5])
def test_the_loss_is_that_of_images_with_noise(sigma: float) -> None:
    torch.manual_seed(0)
    net, x, y = Seen(), torch.rand(64, 3, 16, 16), torch.randint(10, (64,))
    objective = GaussianNoise(sigma)
    found = objective(net, x, y)
    (noisy,) = net.inputs
    noise = noisy - x
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02)
    assert abs(float(noise.mean())) < 5 * sigma / noise.numel() ** 0.5
    assert noisy.min() < -sigma  # not cut to [0, 1]
    assert noisy.max() > 1 + sigma
    assert not torch.equal(noise[0], noise[1])
    expected = net(noisy)
    torch.testing.assert_close(found["logits"], expected)
    torch.testing.assert_close(found["loss"], F.cross_entropy(expected, y))
    assert found["loss"].requires_grad
    objective(net, x, y)
    assert not torch.equal(net.inputs[-1], noisy)  # drawn anew


@pytest.mark.parametrize("sigma", [0.0, -0.5, math.nan, math.inf])
def test_a_sigma_that_is_no_deviation_is_an_error(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be positive"):
        GaussianNoise(sigma)
