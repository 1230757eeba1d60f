"""DetectAndCorrect: who answers for which image, and that the whole can be attacked."""

import copy
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import BIM, PGD
from robustlit.classifier import attack_view, is_stochastic, undefended
from robustlit.data import load_mnist
from robustlit.defenses import DetectAndCorrect, LogitSVC, OddsTest
from robustlit.models import SmallCNN

YAML = """
_target_: robustlit.defenses.DetectAndCorrect
detector:
  _target_: robustlit.defenses.OddsTest
  false_positive_rate: 0.2
  noises: [normal]
  scales: [0.01]
  samples: 2
  fresh_noise: false
corrector:
  _target_: robustlit.defenses.LogitSVC
  penalty: 10.0
eps: [0.1, 0.2]
examples: 500
"""


def _images(first: int, last: int) -> tuple[Tensor, Tensor]:
    images, labels, _, _ = load_mnist()
    return images[first:last].float() / 255, labels[first:last].clone()


def _build(net: nn.Module, **changes: object) -> DetectAndCorrect:
    return instantiate(OmegaConf.merge(OmegaConf.create(YAML), OmegaConf.create(changes)), net)


@pytest.fixture(scope="module")
def fitted(trained_state: dict[str, Tensor]) -> DetectAndCorrect:
    net = SmallCNN()
    net.load_state_dict(trained_state)
    defense = _build(net.eval())
    defense.fit(clean=_images(0, 1500), held_out=_images(20_000, 20_500), seed=0)
    return defense.eval()


def test_flagged_images_are_the_correctors_and_the_others_the_nets(fitted: DetectAndCorrect) -> None:
    x, _ = _images(30_000, 30_300)
    logits, excess = fitted.detection(x)
    flagged = excess >= 0
    assert 20 < flagged.sum() < 150
    output = fitted(x)
    assert torch.equal(output[~flagged], fitted.net(x)[~flagged])
    assert torch.equal(output[flagged].argmax(1), fitted.svc(logits[flagged]).argmax(1))
    assert (output.argmax(1) != logits.argmax(1))[flagged].any()


def test_to_reject_adds_a_column(fitted: DetectAndCorrect) -> None:
    x, _ = _images(30_000, 30_100)
    rejecting = _build(SmallCNN(), reject=True)
    rejecting.load_state_dict(fitted.state_dict())
    rejecting.eval()
    assert rejecting.rejects
    assert not fitted.rejects
    assert torch.equal(rejecting(x).argmax(1) == 10, fitted.detection(x)[1] >= 0)
    assert attack_view(rejecting) is rejecting


def test_its_state_holds_the_net_once_and_restores_it_completely(
    fitted: DetectAndCorrect, tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    state = fitted.state_dict()
    held = [name for name in state if name.startswith("net.")]
    assert len(held) == len(fitted.net.state_dict())
    assert sum(v.shape == fitted.net.state_dict()["classifier.0.weight"].shape for v in state.values()) == 1
    torch.save(state, tmp_path / "state.pt")
    other = _build(SmallCNN())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.eval()(digits[0]), fitted(digits[0]))
    assert torch.equal(copy.deepcopy(fitted)(digits[0][:1]), fitted(digits[0][:1]))
    double = copy.deepcopy(fitted).to(torch.float64)
    assert torch.equal(double(digits[0].double()).argmax(1), fitted(digits[0]).argmax(1))


def test_the_view_decides_as_the_defense_does_and_has_gradients_on_both_sides(fitted: DetectAndCorrect) -> None:
    x, _ = _images(30_000, 30_300)
    view = attack_view(fitted)
    sure = fitted.detection(x)[1].abs() > 1
    agree = view(x).argmax(1) == fitted(x).argmax(1)
    assert agree[sure].double().mean() > 0.9
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(view(leaf).amax(1).sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().sum(1).min() > 0
    assert undefended(fitted) is fitted.net


def test_the_view_sees_the_detector(fitted: DetectAndCorrect) -> None:
    class Blind(DetectAndCorrect):  # a twin with this one's decision, but no gradient through the detector's score
        def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, excess = super().detection(x)
            return logits, excess.detach()

    x, _ = _images(30_000, 30_050)
    blind = copy.deepcopy(fitted)
    blind.__class__ = Blind
    outputs, gradients = [], []
    for defense in (fitted, blind):
        leaf = x.clone().requires_grad_(True)
        outputs.append(attack_view(defense)(leaf))
        gradients.append(torch.autograd.grad(outputs[-1].amax(1).sum(), leaf)[0].flatten(1))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert ((gradients[0] - gradients[1]).norm(dim=1) > 0.1 * gradients[1].norm(dim=1)).sum() > 5


def test_grey_box_figures_flatter_and_the_adaptive_attack_shows_it(fitted: DetectAndCorrect) -> None:
    data = _images(30_000, 30_100)
    bim = BIM(eps=0.3, steps=10)
    grey = evaluate(fitted, data, [bim], knowledge=["greybox"])
    adaptive = evaluate(fitted, data, [PGD(eps=0.3, steps=20)], knowledge=["adaptive"])
    plain = evaluate(fitted.net, data, [bim])
    assert plain.accuracy(eps=0.3) < 0.05
    assert grey.accuracy(attack="bim", eps=0.3, knowledge="greybox") > plain.accuracy(eps=0.3)
    assert adaptive.accuracy(eps=0.3) < 0.1


def test_with_fresh_noise_it_is_stochastic(net: nn.Module) -> None:
    defense = DetectAndCorrect(net, OddsTest(0.1, scales=(0.01,), samples=4), LogitSVC(), examples=200)
    defense.fit(clean=_images(0, 800), held_out=_images(20_000, 20_200))
    x, _ = _images(30_000, 30_020)
    assert is_stochastic(defense)
    assert defense.draws * 4 >= 20
    assert not torch.equal(defense.detection(x)[1], defense.detection(x)[1])


def test_adversarial_images_given_as_clean_are_refused(net: nn.Module) -> None:
    x, y = _images(0, 300)
    adversarial = BIM(eps=0.3, steps=5)(net, x, y, seed=0)
    with pytest.raises(ValueError, match="they look adversarial"):
        _build(net).fit(clean=(adversarial, y), held_out=_images(20_000, 20_100))
    with pytest.raises(TypeError):
        _build(net).fit((x, y), (x, y))  # type: ignore[misc]


def test_bad_hyper_parameters_are_refused(net: nn.Module) -> None:
    for changes, message in (
        ({"eps": []}, "at least one budget"),
        ({"examples": -1}, "examples must be a whole number"),
        ({"temperature": -1.0}, "temperature must be positive"),
    ):
        with pytest.raises(Exception, match=message):
            _build(net, **changes)  # type: ignore[arg-type]
