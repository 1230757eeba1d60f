from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustlit.models import BaseCNN, MadryCNN, Normalize, SmallCNN
from robustlit.models.normalize import normalization


def test_each_channel_has_its_own_mean_and_std() -> None:
    x = torch.tensor([[0.5, 0.2], [1.0, 0.8]]).view(2, 2, 1, 1).expand(2, 2, 3, 3)  # two images of two channels
    out = Normalize(mean=[0.5, 0.2], std=[0.25, 0.1])(x)
    expected = torch.tensor([[0.0, 0.0], [2.0, 6.0]]).view(2, 2, 1, 1).expand(2, 2, 3, 3)
    torch.testing.assert_close(out, expected)


def test_gradient_is_with_respect_to_pixels() -> None:
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(Normalize([0.1], [0.25])(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 4.0))


def test_state_dict_carries_mean_and_std() -> None:
    source, target = Normalize([0.1, 0.2], [0.3, 0.4]), Normalize([0.0, 0.0], [1.0, 1.0])
    target.load_state_dict(source.state_dict())
    x = torch.rand(2, 2, 3, 3)
    assert torch.equal(target(x), source(x))
    assert not torch.equal(target(x), x)
    assert list(source.parameters()) == []


@pytest.mark.parametrize("network", [BaseCNN, MadryCNN, SmallCNN])
def test_inside_a_model_equals_normalised_inputs(network: Callable[..., nn.Module]) -> None:
    inside, outside = network(mean=[0.1307], std=[0.3081]), network()
    weights = {key: value for key, value in inside.state_dict().items() if not key.startswith("normalize.")}
    outside.load_state_dict(weights)
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(inside(x), outside((x - 0.1307) / 0.3081))
    assert not torch.allclose(inside(x), outside(x))


def test_no_statistics_change_nothing() -> None:
    x = torch.rand(1, 3, 2, 2)
    assert torch.equal(normalization(None, None, 3)(x), x)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.1], [0.0], "above 0"),
        ([0.1, 0.1], [0.3, -0.3], "above 0"),
        ([0.1, 0.2, 0.3], [0.3], "got 3 and 1 values"),
        ([], [], "got 0 and 0 values"),
        ([float("nan")], [0.3], "finite"),
        ([0.1], [float("inf")], "finite"),
    ],
)
def test_statistics_out_of_range_are_refused(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)


def test_other_channels_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(2, 1, 4, 4\)"):
        Normalize([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])(torch.rand(2, 1, 4, 4))
