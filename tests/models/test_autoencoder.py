"""Autoencoder: a real bottleneck, for the images that it was built for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlit.models import Autoencoder, count_parameters


@pytest.mark.parametrize(
    ("in_chans", "image_size", "depth", "side"),
    [(1, 28, 2, 7), (3, 32, 3, 4), (1, 8, 2, 2), (3, 11, 2, 3), (1, 29, 1, 15)],
)
def test_images_come_back_through_a_smaller_code(in_chans: int, image_size: int, depth: int, side: int) -> None:
    net = Autoencoder(in_chans, image_size, width=4, depth=depth, bottleneck=2)
    x = torch.rand(3, in_chans, image_size, image_size)
    out, code = net(x).detach(), net.encoder(x)
    assert out.shape == x.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert code.shape[1:] == net.code_shape == (2, side, side)
    assert code[0].numel() < x[0].numel()


def test_the_output_depends_on_the_code_alone() -> None:
    net = Autoencoder(1, 8, width=8, depth=1, bottleneck=1).double()
    jacobian = torch.autograd.functional.jacobian(net, torch.rand(1, 1, 8, 8, dtype=torch.float64)).view(64, 64)
    assert 0 < torch.linalg.matrix_rank(jacobian, rtol=1e-10) <= 16 < 64  # a path around the code would raise it


def test_width_depth_and_bottleneck_decide_its_size() -> None:
    assert count_parameters(Autoencoder()) == 14_217
    changes: list[dict[str, int]] = [{"width": 8}, {"depth": 1, "bottleneck": 3}, {"bottleneck": 4}]
    sizes = [count_parameters(Autoencoder(**change)) for change in changes]
    assert len({14_217, *sizes}) == 4
    assert max(sizes) < 14_217


def test_an_image_gives_the_same_alone_and_in_a_batch(digits: tuple[Tensor, Tensor]) -> None:
    net, x = Autoencoder().double(), digits[0][:7].double()
    together = net(x)
    torch.testing.assert_close(torch.cat([net(one) for one in x.split(1)]), together)
    assert torch.equal(copy.deepcopy(net).eval()(x), together)  # training and evaluation compute the same


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 28, 28), (2, 1, 28, 27), (2, 784)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"built for images \(1, 28, 28\).*in_chans=.*image_size="):
        Autoencoder()(torch.rand(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 7}, "image_size must be an integer of at least 8, got 7"),
        ({"image_size": None}, "filled in from the data"),
        ({"in_chans": 0}, "in_chans must be an integer of at least 1"),
        ({"width": 0}, "width must be an integer of at least 1"),
        ({"depth": 0}, "without halving there is no bottleneck"),
        ({"bottleneck": 1.5}, "bottleneck must be an integer"),
        ({"bottleneck": 16}, "784 numbers for images of 784, which is no bottleneck; lower it below 16"),
        ({"depth": 5}, "single pixel of images of side 28; at most 4"),
        ({"depth": 3, "image_size": 8}, "at most 2"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(**changes)
