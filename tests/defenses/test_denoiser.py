"""Denoiser: the contract of a defended classifier, and the gradient through the autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import DDN
from robustlit.classifier import DefendedClassifier, attack_view, is_stochastic, undefended
from robustlit.defenses import BitDepth, Denoiser
from robustlit.models import Autoencoder
from robustlit.training import load_classifier
from robustlit.training.checkpoint import pack


class Squeeze(nn.Module):
    """In place of a trained autoencoder: a steep sigmoid, which keeps digits and removes faint noise."""

    def __init__(self, steepness: float = 12.0) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(steepness))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.steepness * (x - 0.5))


def test_the_contract_of_a_defended_classifier(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    autoencoder, x = Autoencoder(), digits[0][:4]
    defense = Denoiser(net, autoencoder)
    assert isinstance(defense, DefendedClassifier)
    assert torch.equal(defense.denoise(x), autoencoder(x))
    assert torch.equal(defense(x), net(autoencoder(x)))
    assert not torch.equal(defense(x), net(x))
    assert attack_view(defense) is defense
    assert undefended(defense) is net
    assert not is_stochastic(defense)


def test_the_gradient_passes_through_the_autoencoder(net: nn.Module) -> None:
    defense = attack_view(Denoiser(net, Autoencoder()).double())
    x = torch.rand(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)  # no black pixels, where a ReLU has its kink
    (gradient,) = torch.autograd.grad(defense(x)[0, 3], x)
    assert gradient.abs().max() > 1e-6
    direction, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        slope = (defense(x + step * direction)[0, 3] - defense(x - step * direction)[0, 3]) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_the_adaptive_attack_breaks_what_denoising_stops_grey_box(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    defense, some = Denoiser(net, Squeeze()), (digits[0][:100], digits[1][:100])
    found = evaluate(defense, some, [DDN()], knowledge=["greybox", "adaptive"])
    assert found.clean_accuracy > 0.9
    # Denoising removes the nearest adversarial examples of the classifier alone, but the whole has its own.
    assert found.accuracy(norm="l2", eps=20, knowledge="greybox") > 0.8
    assert found.accuracy(norm="l2", eps=20) == 0


def test_a_defended_classifier_behind_it_keeps_its_view(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense, x = Denoiser(BitDepth(net, 2), Squeeze()), digits[0][:20].clone().requires_grad_(True)
    view = attack_view(defense)
    torch.testing.assert_close(view(x), defense(x))
    assert not torch.autograd.grad(defense(x).sum(), x)[0].any()
    assert torch.autograd.grad(view(x).sum(), x)[0].any()


def test_it_comes_back_from_a_checkpoint(tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    config = {
        "_target_": "robustlit.defenses.Denoiser",
        "net": {"_target_": "robustlit.models.SmallCNN"},
        "autoencoder": {"_target_": "robustlit.models.Autoencoder", "width": 8},
    }
    built = instantiate(config)
    built.net.load_state_dict(net.state_dict())
    weights = {f"net.{name}": value for name, value in built.state_dict().items()}
    torch.save({"state_dict": weights, "robustlit": pack({"model": config})}, tmp_path / "best.ckpt")
    loaded, _ = load_classifier(tmp_path / "best.ckpt")
    assert isinstance(loaded, Denoiser)
    assert torch.equal(loaded(digits[0][:5]), built.eval()(digits[0][:5]))


def test_bad_networks_and_images_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="built for images"):
        Denoiser(net, Autoencoder())(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"keep the shape \(2, 1, 28, 28\), got \(2, 1, 14, 14\)"):
        Denoiser(net, nn.AvgPool2d(2))(torch.rand(2, 1, 28, 28))
    with pytest.raises(ValueError, match="autoencoder must be a network"):
        Denoiser(net, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="net must be a network"):
        Denoiser(None, Autoencoder())  # type: ignore[arg-type]
