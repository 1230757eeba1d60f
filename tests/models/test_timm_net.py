import inspect
import math
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import timm
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from torch import nn

from robustlit.models import Normalize, TimmNet

RECIPES = Path(__file__).parents[2] / "recipes" / "model"


def input_gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    return gradient


@pytest.mark.parametrize("recipe", ["efficientnet_b3", "mobilenetv2", "densenet121", "resnet18"])
def test_recipe_classifies_digits(recipe: str) -> None:
    config = OmegaConf.load(RECIPES / f"{recipe}.yaml")
    assert config.pop("weights") is None  # for `own_net.recipes_net`
    assert config.name == {"mobilenetv2": "mobilenetv2_100"}.get(recipe, recipe)
    torch.manual_seed(0)
    model = hydra.utils.instantiate(config, num_classes=10, in_chans=1, image_size=28)
    assert model.training
    model.eval()
    x = torch.rand(2, 1, 28, 28)
    logits = model(x)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    gradient = input_gradient(model, x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_recipe_for_any_network_needs_a_name() -> None:
    config = OmegaConf.load(RECIPES / "timm.yaml")
    with pytest.raises(MissingMandatoryValue, match="name"):
        _ = config.name
    config.pop("weights")
    config.merge_with({"name": "test_resnet", "model_kwargs": {"drop_rate": 0.1}})
    model = hydra.utils.instantiate(config, num_classes=3, in_chans=3, image_size=32)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("recipe", ["efficientnet_b3", "mobilenetv2", "densenet121", "resnet18", "timm"])
def test_recipe_spells_out_every_parameter(recipe: str) -> None:
    written = set(OmegaConf.load(RECIPES / f"{recipe}.yaml")) - {"_target_", "weights"}
    assert written == set(inspect.signature(TimmNet).parameters)


@pytest.mark.parametrize(
    ("image_size", "resize_to", "seen"), [(28, None, 32), (32, None, 32), (40, None, 40), (28, 48, 48)]
)
def test_network_sees_the_chosen_size(image_size: int, resize_to: int | None, seen: int) -> None:
    model = TimmNet("test_resnet", image_size=image_size, resize_to=resize_to)
    sizes: list[torch.Size] = []
    model.net.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    model(torch.rand(2, 1, image_size, image_size))
    assert sizes == [(2, 1, seen, seen)]


def test_gradient_of_the_resize_reaches_every_pixel() -> None:
    model = TimmNet("test_resnet", image_size=28)
    model.net = nn.Flatten()  # every pixel of the resized image counts the same
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert (gradient > 0).all()
    # Bilinear weights of an output pixel add up to 1: 32 x 32 outputs share 28 x 28 pixels.
    torch.testing.assert_close(gradient.sum((1, 2, 3)), torch.full((2,), 32.0 * 32.0))


def test_resize_keeps_the_image_in_place() -> None:
    model = TimmNet("test_resnet", image_size=28)
    model.net = nn.Identity()
    ramp = torch.linspace(0, 1, 28).expand(1, 1, 28, 28)
    resized = model(ramp)
    assert resized.shape == (1, 1, 32, 32)
    torch.testing.assert_close(resized, resized.flip(-1).neg().add(1))  # a ramp is its own mirror image
    # The image keeps its whole width: a step of the 32 is 28 / 32 of a step of the 28.
    torch.testing.assert_close(resized[0, 0, 0, 16] - resized[0, 0, 0, 15], torch.tensor(28 / 32 / 27))
    assert 0 <= resized.min() <= resized.max() <= 1


def test_trying_an_image_leaves_no_trace() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = TimmNet("test_resnet")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    for key, value in plain.state_dict().items():  # running statistics of batch norm included
        assert torch.equal(model.net.state_dict()[key], value), key


def test_given_statistics_normalise() -> None:
    torch.manual_seed(0)
    model = TimmNet("test_resnet", in_chans=3, image_size=32, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(model(x), model.net((x - mean) / std))
    assert "normalize.mean" in model.state_dict()
    assert isinstance(TimmNet("test_resnet").normalize, nn.Identity)


def last_layer(net: nn.Module) -> torch.Tensor:
    weight = net.get_classifier().weight  # type: ignore[operator]
    assert isinstance(weight, torch.Tensor)
    return weight


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv2_050", "dla34"])  # the last ends in a convolution
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_first_logits_are_small_for_any_number_of_classes(name: str, num_classes: int) -> None:
    torch.manual_seed(0)
    model = TimmNet(name, num_classes=num_classes)
    logits = model(torch.rand(64, 1, 28, 28))
    loss = nn.functional.cross_entropy(logits, torch.randint(num_classes, (64,)))
    assert loss < math.log(num_classes) + 0.5


def test_classifier_that_starts_small_is_timms_own() -> None:
    for name in ("test_resnet", "test_vit"):
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=10, in_chans=1)
        torch.manual_seed(0)
        assert torch.equal(last_layer(TimmNet(name, image_size=160).net), last_layer(plain))


def test_pretrained_classifier_is_kept_and_a_new_one_starts_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = timm.create_model("test_efficientnet", num_classes=10)  # its last layer is wide
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 10}
    kept, new = (
        TimmNet("test_efficientnet", classes, 3, 32, pretrained=True, model_kwargs={"pretrained_cfg_overlay": overlay})
        for classes in (10, 2)
    )
    assert torch.equal(last_layer(kept.net), last_layer(trained))
    assert torch.equal(new.net.get_parameter("conv_stem.weight"), trained.get_parameter("conv_stem.weight"))
    assert last_layer(new.net).abs().max() <= 256**-0.5


def pretrained_weights(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """Write random weights where timm takes them for the pretrained ones; the model_kwargs that say so."""
    torch.manual_seed(0)
    path = folder / "weights.pth"
    torch.save(timm.create_model(name).state_dict(), path)
    return {"pretrained_cfg_overlay": {"file": str(path)}}


@pytest.mark.parametrize(
    ("in_chans", "mean"),
    [(1, [0.449]), (2, [0.485, 0.456]), (3, [0.485, 0.456, 0.406]), (4, [0.485, 0.456, 0.406, 0.485])],
)
def test_pretrained_brings_its_normalisation(tmp_path: Path, in_chans: int, mean: list[float]) -> None:
    model = TimmNet(
        "resnet18", pretrained=True, in_chans=in_chans, model_kwargs=pretrained_weights(tmp_path, "resnet18")
    )
    assert isinstance(model.normalize, Normalize)
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor(mean))
    given = TimmNet("test_resnet", mean=[0.2], std=[0.4])
    assert isinstance(given.normalize, Normalize)
    torch.testing.assert_close(given.normalize.mean.flatten(), torch.tensor([0.2]))


def test_pretrained_grey_network_is_the_colour_network_on_grey_images(tmp_path: Path) -> None:
    # test_resnet was trained with (0.5, 0.5, 0.5): colours normalised alike, so the two are exactly the same.
    weights = pretrained_weights(tmp_path, "test_resnet")
    grey, colour = (
        TimmNet("test_resnet", pretrained=True, in_chans=chans, image_size=32, model_kwargs=weights).eval()
        for chans in (1, 3)
    )
    grey.net.reset_classifier(0)  # the heads are drawn anew: compare what they are given
    colour.net.reset_classifier(0)
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-4)


def test_pretrained_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"pretrained weights of resnet18 .* use pretrained=false, or fill the cache"):
        TimmNet("resnet18", pretrained=True, model_kwargs={"cache_dir": str(tmp_path)})


def test_transformer_is_given_its_own_size() -> None:
    model = TimmNet("test_vit", image_size=28)
    assert model.resize_to == 160
    assert (input_gradient(model.eval(), torch.rand(1, 1, 28, 28)) != 0).any()


@pytest.mark.parametrize(
    ("arguments", "resize_to"),
    [
        ({"model_kwargs": {"img_size": 48}}, 48),
        ({"model_kwargs": {"img_size": 28, "patch_size": 4}}, None),
        ({"model_kwargs": {"dynamic_img_size": True}}, 32),
        ({"resize_to": 32, "model_kwargs": {"img_size": 32}}, 32),
    ],
)
def test_transformer_takes_another_size(arguments: dict[str, object], resize_to: int | None) -> None:
    model = TimmNet("test_vit", image_size=28, **arguments)  # type: ignore[arg-type]
    assert model.resize_to == resize_to
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnt18"}, "got 'resnt18'; did you mean resnet18"),
        ({"name": "?"}, "list_models"),
        ({"name": "resnet18.nonsense"}, "Invalid pretrained tag .nonsense"),
        ({"name": "test_resnet", "num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ({"name": "test_resnet", "image_size": None}, "image_size .* got None"),
        ({"name": "test_resnet", "resize_to": 0}, "resize_to must be an integer of at least 1, got 0"),
        ({"name": "test_resnet", "mean": [0.1]}, "go together"),
        ({"name": "test_resnet", "model_kwargs": {"drop_rat": 0.1}}, "does not take model_kwargs=.*drop_rat"),
        ({"name": "test_resnet", "model_kwargs": {"in_chans": 3}}, r"must not repeat .* got \['in_chans'\]"),
        ({"name": "test_resnet", "model_kwargs": {"features_only": True}}, r"logits of shape \(B, 10\), got list"),
        ({"name": "densenet121", "resize_to": 28}, "densenet121 cannot classify images of 28x28 .* set resize_to"),
        ({"name": "vit_tiny_patch16_224", "resize_to": 32}, "images of 32x32 .*model_kwargs={'img_size': 32}"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmNet(**arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_importing_the_models_does_not_import_timm() -> None:
    code = "import sys, robustlit.models; assert 'timm' not in sys.modules, 'timm was imported'"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
