from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from robustlit.models import CNN7, BaseCNN, MadryCNN, SmallCNN, count_parameters

NETWORKS = [BaseCNN, MadryCNN, SmallCNN]
RECIPES = Path(__file__).parents[2] / "recipes" / "model"


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (BaseCNN(), 594_922),
        (BaseCNN(dropout=0.5), 594_922),
        (BaseCNN(mean=[0.1], std=[0.3]), 594_922),
        (BaseCNN(width=0.5), 150_266),
        (MadryCNN(), 3_274_634),
        (CNN7(), 13_259_338),
        (SmallCNN(), 166_406),
        (SmallCNN(width=2, hidden=256), 839_018),
        (SmallCNN(hidden=256, batch_norm=True), 413_338),
    ],
    ids=["base", "base-dropout", "base-normalised", "base-half", "madry", "cnn7", "small", "small-wide", "small-bn"],
)
def test_parameters_are_those_of_the_paper(model: nn.Module, parameters: int) -> None:
    assert count_parameters(model) == parameters


@pytest.mark.parametrize("network", [*NETWORKS, CNN7, partial(SmallCNN, batch_norm=True)])
@pytest.mark.parametrize(
    ("num_classes", "in_chans", "image_size"), [(10, 1, 28), (10, 3, 32), (2, 2, 17), (7, 1, 31), (10, 3, 16)]
)
def test_logits_for_any_image(
    network: Callable[..., nn.Module], num_classes: int, in_chans: int, image_size: int
) -> None:
    model = network(num_classes=num_classes, in_chans=in_chans, image_size=image_size).eval()
    x = torch.rand(3, in_chans, image_size, image_size)
    logits = model(x)
    assert logits.shape == (3, num_classes)
    # An example's logits do not depend on its batch mates.
    torch.testing.assert_close(model(x[1:2]), logits[1:2])


@pytest.mark.parametrize("network", NETWORKS)
def test_each_activation_is_a_module_of_its_own(network: Callable[..., nn.Module]) -> None:
    model, x = network(), torch.rand(1, 1, 28, 28)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(names) == len(layers) - 1  # one after every layer but the last
    before = model(x)
    for name in names:
        relu = model.get_submodule(name)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Softplus())
        assert not torch.equal(model(x), before), f"{name} is not used"
        setattr(model.get_submodule(parent), child, relu)


def test_width_scales_the_channels() -> None:
    convolutions = [layer for layer in SmallCNN(width=0.3, hidden=7).modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [5, 10]
    assert SmallCNN(width=0.3, hidden=7)(torch.rand(1, 1, 28, 28)).shape == (1, 10)
    layers = [layer for layer in BaseCNN(width=0.3).modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [layer.weight.shape[0] for layer in layers] == [10, 10, 19, 19, 154, 10]
    assert BaseCNN(7, 3, 32, width=0.3)(torch.rand(1, 3, 32, 32)).shape == (1, 7)


def test_batch_norm_stands_before_each_activation() -> None:
    layers = list(SmallCNN(batch_norm=True).modules())
    before = [type(layers[number - 1]) for number, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    assert before == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d]


def test_dropout_acts_in_training_only() -> None:
    model, x = BaseCNN(dropout=0.5), torch.rand(2, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ({"num_classes": None}, "num_classes .* got None; the null of a recipe"),
        ({"num_classes": 10.0}, "num_classes .* got 10.0"),
        ({"in_chans": 0}, "in_chans .* at least 1, got 0"),
        ({"in_chans": True}, "in_chans .* got True"),
        ({"image_size": 3}, "image_size must be an integer of at least .*, got 3; enlarge"),
        ({"mean": [0.1]}, "go together"),
        ({"std": [0.1]}, "go together"),
        ({"mean": [0.1, 0.2], "std": [0.3, 0.3]}, "got 2 values for in_chans=1"),
    ],
)
def test_impossible_arguments_are_refused(
    network: Callable[..., nn.Module], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_smallest_image_is_the_true_limit() -> None:
    for network, side in [(BaseCNN, 16), (MadryCNN, 4), (SmallCNN, 4)]:
        assert network(image_size=side)(torch.rand(1, 1, side, side)).shape == (1, 10)
        with pytest.raises(ValueError, match=f"at least {side}, got {side - 1}"):
            network(image_size=side - 1)


def test_values_out_of_range_are_refused() -> None:
    for dropout in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout must be a probability"):
            BaseCNN(dropout=dropout)
    for width in (0.0, -1.0, 0.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="width must leave at least one"):
            SmallCNN(width=width)
        with pytest.raises(ValueError, match="width must leave at least one of 32"):
            BaseCNN(width=width)
    with pytest.raises(ValueError, match="hidden must be an integer of at least 1, got 0"):
        SmallCNN(hidden=0)


def test_recipes_build_their_networks() -> None:
    sizes = {
        "base_cnn": 594_922,
        "madry_cnn": 3_274_634,
        "small_cnn": 166_406,
        "small_cnn_wide": 839_018,
        "small_cnn_bn": 839_722,
        "cnn7": 13_259_338,
    }
    for recipe, parameters in sizes.items():
        config = OmegaConf.load(RECIPES / f"{recipe}.yaml")
        assert (config.num_classes, config.in_chans, config.image_size) == (None, None, None)
        assert config.pop("weights") is None  # for `own_net.recipes_net`
        model = hydra.utils.instantiate(config, num_classes=10, in_chans=1, image_size=28)
        assert count_parameters(model) == parameters
