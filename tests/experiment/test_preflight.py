"""Nets that cannot be attacked on these data are an error before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from robustlit.data import MNIST
from robustlit.experiment.preflight import check_takes
from robustlit.experiment.recipes import ConfigError
from robustlit.models import SmallCNN, TimmNet


class Returns(nn.Module):
    """Applies a function to a net's logits."""

    def __init__(self, change: Any, *, rejects: bool = False) -> None:
        super().__init__()
        self.net, self.change, self.rejects = SmallCNN(), change, rejects

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net(x))


class Faulty(nn.Module):
    """Has a bug that does not depend on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_that_was_forgotten(x)


@pytest.fixture(scope="module")
def data() -> MNIST:
    return MNIST(test_size=20)


def test_nets_for_these_images_pass_without_a_global_random_draw(data: MNIST) -> None:
    refuses = Returns(lambda z: torch.cat([z, z[:, :1]], 1), rejects=True)  # an eleventh output for its refusal
    noisy = Returns(lambda z: z + torch.rand_like(z))
    for net in (SmallCNN(), refuses, noisy, TimmNet("resnet18")):
        state = torch.get_rng_state()
        check_takes(net.eval(), data, "net")
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            SmallCNN(in_chans=3),
            r"mine does not take images of shape \(1, 1, 28, 28\): Given groups=1.*3 channels.*; res",
        ),
        (SmallCNN(num_classes=12), r"mine returns 12 logits for the 10 classes of mnist; build it with 10 outputs, "),
        (Returns(lambda z: {"logits": z}), r"mine: the model must return logits \(B, K\), got dict; wrap it"),
        (
            Returns(lambda z: z, rejects=True),
            r"9 logits, besides .* refusal for the 10 classes of mnist; build it with 11 ",
        ),
        (Returns(lambda z: z.argmax(1)), r"mine: the model must return logits .* got shape \(1,\)"),
    ],
)
def test_the_message_names_the_problem(net: nn.Module, message: str, data: MNIST) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        check_takes(net.eval(), data, "mine")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("vit_tiny_patch16_224", {"in_chans": 1})],  # other channels, another size
)
def test_nets_of_timm_get_a_hint_to_the_adapter(name: str, options: dict[str, Any], data: MNIST) -> None:
    net = timm.create_model(name, num_classes=10, **options).eval()
    with pytest.raises(ConfigError, match=rf"robustlit\.models\.TimmNet\('{name}'\) adapts channels and size"):
        check_takes(net, data, "mine")


def test_a_bug_of_the_net_keeps_its_traceback(data: MNIST) -> None:
    with pytest.raises(AttributeError, match="layer_that_was_forgotten"):
        check_takes(Faulty(), data, "mine")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("ab", "has 10: number 0 was a, here it is 0"),
        ("0123456789x", "has 10: number 10 was x, here it is missing"),
        ("012345678", "has 10: number 9 was missing, here it is 9"),
    ],
)
def test_classes_of_other_names_are_refused(names: str, problem: str, data: MNIST) -> None:
    with pytest.raises(ConfigError, match=rf"base=x was trained on {len(names)} classes.*{problem}"):
        check_takes(SmallCNN(), data, "base=x", {"class_names": list(names)})
    for recipe in ({"class_names": list("0123456789")}, {"class_names": None}, {}):
        check_takes(SmallCNN(), data, "base=x", recipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_named_as_in_an_attack(dtype: torch.dtype, data: MNIST) -> None:
    with pytest.raises(ConfigError, match=rf"^mine: images are .*weights of SmallCNN {dtype}.*attack model.float\(\)"):
        check_takes(SmallCNN().to(dtype).eval(), data, "mine")


def test_double_precision_is_taken_as_in_an_attack(data: MNIST) -> None:
    check_takes(SmallCNN().double().eval(), data, "mine")


def test_a_net_that_chooses_its_device_is_told_so(data: MNIST) -> None:
    def to_gpu(z: Tensor) -> Tensor:
        raise RuntimeError("Found no NVIDIA driver on your system")

    with pytest.raises(
        ConfigError, match=r"NVIDIA driver on your system; leave the device to robustlit: no \.cuda\(\)"
    ):
        check_takes(Returns(to_gpu).eval(), data, "mine")


class InPlace(SmallCNN):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


def test_a_net_that_works_in_place_gets_a_copy_from_then_on(data: MNIST) -> None:
    net, x = InPlace().eval(), data.tensors("test", 3)[0]
    check_takes(net, data, "net")
    before = x.clone()
    first = net(x)
    assert torch.equal(x, before)
    assert torch.equal(net(x), first)
    with torch.inference_mode():
        assert torch.equal(net(x), first)
