"""The ResNets for small images: sizes as published, any image, shortcuts and stem where they belong."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from robustlit.models import PreActResNet, ResNet, WideResNet, count_parameters

RECIPES = Path(__file__).parents[2] / "recipes" / "model"
PUBLISHED = {
    "preact_resnet18": 11_172_170,  # 11 171 146 without the last BatchNorm, which He 2016 has
    "resnet18_cifar": 11_173_962,
    "wrn_28_10": 36_479_194,
    "wrn_34_10": 46_160_474,
}
Build = Callable[..., nn.Module]
SMALL: list[Any] = [
    partial(PreActResNet, width=4, blocks=(1, 1, 1, 1)),
    partial(ResNet, width=4, blocks=(1, 1, 1, 1)),
    partial(WideResNet, depth=10, width=1),
]
IDS = ["preact", "resnet", "wide"]


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_parameters_are_those_published(recipe: str) -> None:
    config = OmegaConf.load(RECIPES / f"{recipe}.yaml")
    assert config.pop("weights") is None
    with torch.device("meta"):
        net = hydra.utils.instantiate(config, num_classes=10, in_chans=3, image_size=32)
    assert count_parameters(net) == PUBLISHED[recipe]
    for name, stem in net.named_modules():
        if name == "conv1":
            assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))


@pytest.mark.parametrize("build", SMALL, ids=IDS)
@pytest.mark.parametrize(("in_chans", "side"), [(1, 28), (3, 32), (3, 64), (1, 8)])
def test_logits_and_gradient_for_any_image(build: Build, in_chans: int, side: int) -> None:
    torch.manual_seed(0)
    mean = [0.4] * in_chans
    net = build(7, in_chans, side, mean=mean, std=mean).train()
    x = torch.rand(3, in_chans, side, side, requires_grad=True)
    logits = net(x)
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert x.grad is not None
    assert all(bool(part.any()) for part in x.grad)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    net.eval()
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2])  # an example does not depend on its batch mates


@pytest.mark.parametrize("build", SMALL, ids=IDS)
def test_the_map_is_reduced_no_further_than_for_32_pixels(build: Build) -> None:
    sides: list[int] = []
    net = build(image_size=32)
    last = net.get_submodule("bn1" if isinstance(net, WideResNet) else "layer4")
    last.register_forward_hook(lambda *io: sides.append(io[2].shape[-1]))
    net(torch.rand(2, 3, 32, 32))
    assert sides == [8 if isinstance(net, WideResNet) else 4]  # ImageNet's stem leaves 1


@pytest.mark.parametrize("build", SMALL, ids=IDS)
def test_each_activation_is_a_module_of_its_own(build: Build) -> None:
    torch.manual_seed(0)
    net, x = build().eval(), torch.rand(2, 3, 32, 32)
    before = net(x)
    for name in [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]:
        relu, (parent, _, child) = net.get_submodule(name), name.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Softplus())
        assert not torch.equal(net(x), before), f"{name} is not used"
        setattr(net.get_submodule(parent), child, relu)


def test_a_block_of_the_wide_net_projects_what_it_has_normalised() -> None:
    torch.manual_seed(0)
    wide = WideResNet(depth=10, width=2).eval()
    narrow = PreActResNet(width=4).eval()
    for net, block, changes in ((wide, "block1.layer.0", False), (narrow, "layer2.0", True)):
        first = net.get_submodule(block)
        x = torch.randn(2, 16 if net is wide else 4, 8, 8)
        nn.init.zeros_(first.conv2.weight)  # leaves the shortcut alone
        positive = first(x.relu())
        assert torch.equal(first(x), positive) is not changes


def test_layers_have_the_names_of_published_weights() -> None:
    names = [{*build().state_dict()} for build in SMALL]
    assert {"conv1.weight", "layer1.0.bn1.weight", "layer2.0.shortcut.0.weight", "bn.bias", "linear.bias"} <= names[0]
    assert {"bn1.weight", "layer4.0.conv2.weight", "layer2.0.shortcut.1.running_mean", "linear.weight"} <= names[1]
    wide = {"conv1.weight", "block1.layer.0.bn2.bias", "block2.layer.0.convShortcut.weight", "bn1.weight", "fc.bias"}
    assert wide <= names[2]


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (WideResNet, {"depth": 30}, "depth must be 6 n \\+ 4"),
        (WideResNet, {"width": 0}, "width must be a whole number"),
        (WideResNet, {"dropout": 1.0}, "dropout must be a probability"),
        (WideResNet, {"image_size": 3}, "at least 4"),
        (PreActResNet, {"blocks": [2, 2]}, "blocks must have 4 numbers"),
        (ResNet, {"blocks": [2, 2, 0, 2]}, "blocks must be a whole number"),
        (PreActResNet, {"image_size": 7}, "at least 8"),
        (ResNet, {"mean": [0.1], "std": [0.1]}, "in_chans=3"),
    ],
)
def test_impossible_arguments_are_refused(build: Build, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)
