"""RandomizedSmoothing against the exact radius of a linear net, and `Smoothed` under attack."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from cases import Function
from torch import nn

from robustlit import evaluate
from robustlit.attacks import PGD
from robustlit.certify import RandomizedSmoothing
from robustlit.classifier import is_stochastic
from robustlit.defenses import BitDepth, Smoothed
from robustlit.figures.sandwich import sandwich_figure
from robustlit.results.verdict import INCONCLUSIVE
from robustlit.verdict import verdict


def _linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A net of two classes, images, their classes, and the L2 distance of each to the boundary."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight[:] = torch.stack([torch.full((16,), 1.0), torch.full((16,), -1.0)])
        net[1].bias.zero_()
        net[1].bias[0] = -16.0
    x = torch.linspace(0.3, 0.8, 6).view(6, 1, 1, 1).expand(6, 1, 4, 4).contiguous()
    y = (x.mean((1, 2, 3)) < 0.5).long()
    return net, x, y, (x.flatten(1).sum(1) - 8).abs() / 4


def test_the_radius_lies_just_below_that_of_a_linear_net() -> None:
    net, x, y, exact = _linear()
    certificate = RandomizedSmoothing(sigma=0.5, n=2000)
    radius = certificate.run(Smoothed(net, 0.5), x, y).radius
    assert (radius <= exact + 1e-6).all()
    bounded = exact < 1  # far images get every vote, and the number of draws is what bounds their radius
    assert (radius[bounded] > exact[bounded] - 0.15).all()
    assert torch.equal(radius[2:4], certificate.run(nn.Sequential(Smoothed(net, 0.5)), x[2:4], y[2:4]).radius)
    assert not certificate.run(Smoothed(net, 0.5), x, 1 - y).radius.any()


def test_the_radius_of_a_net_that_never_errs_is_the_papers_by_hand() -> None:
    seen: list[torch.Tensor] = []

    def sure(z: torch.Tensor) -> torch.Tensor:
        seen.append(z - 0.5)
        return torch.tensor([[1.0, 0.0]]).expand(len(z), 2)

    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    found = RandomizedSmoothing(sigma=0.5, n0=30, n=1100).run(Smoothed(Function(sure), 0.5), x, y)
    # Clopper and Pearson's lower bound of n successes in n is alpha^(1/n).
    assert float(found.radius) == pytest.approx(0.5 * NormalDist().inv_cdf(0.001 ** (1 / 1100)))
    noise = torch.cat(seen[2:])  # the first two compare the classifier with its net
    assert len(noise) == int(found.forwards) == 1130
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)


def test_draws_of_a_large_image_are_fewer_at_once() -> None:
    seen: list[int] = []

    def sure(z: torch.Tensor) -> torch.Tensor:
        seen.append(len(z))
        return torch.tensor([[1.0, 0.0]]).expand(len(z), 2)

    x, y = torch.full((1, 3, 224, 224), 0.5), torch.zeros(1, dtype=torch.int64)
    RandomizedSmoothing(sigma=0.5, n0=40, n=50).run(Smoothed(Function(sure), 0.5), x, y)
    assert seen[2:] == [32, 8, 32, 18]
    seen.clear()
    RandomizedSmoothing(sigma=0.5, n0=40, n=50, batch_size=50).run(Smoothed(Function(sure), 0.5), x, y)
    assert seen[2:] == [40, 50]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_name_no_class_are_no_votes(value: float) -> None:
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    broken = Smoothed(Function(lambda z: torch.full((len(z), 2), value)))
    assert not RandomizedSmoothing().run(broken, x, y).radius.any()


def test_what_adds_no_noise_is_an_error_and_modes_are_kept() -> None:
    net, x, y, _ = _linear()
    for other in (net, BitDepth(net)):
        with pytest.raises(ValueError, match=rf"{type(other).__name__} adds none: evaluate .*Smoothed\(model, 0.25\)"):
            RandomizedSmoothing().run(other, x, y)
    frozen = nn.Sequential(net, nn.Dropout(0.5).eval()).train()
    frozen[1].eval()
    RandomizedSmoothing(n=10).run(Smoothed(frozen), x, y)
    assert (frozen.training, frozen[1].training) == (True, False)


def test_a_smoothed_net_is_attacked_and_certified_in_one_evaluation() -> None:
    net, x, y, _ = _linear()
    model = Smoothed(net, 0.5)
    assert is_stochastic(model)
    certificates = [RandomizedSmoothing(sigma=0.5, n=500)]
    found = evaluate(model, (x, y), [PGD(0.5, norm="l2", steps=5)], certificates=certificates)
    assert found.certificates is not None
    certified = found.certificates.accuracy(norm="l2", eps=0.5)
    assert 0 < certified.correct <= found.worst_case(norm="l2", eps=0.5).correct
    words = " ".join(text.get_text().replace("\n", " ") for text in sandwich_figure(found, "l2").texts)
    assert "Certified by randomized_smoothing (of each image with probability 1 - alpha); attacked by pgd." in words
    (check,) = (c for c in verdict(found, model, (x, y), [PGD(0.5, norm="l2", steps=5)]).checks if c.number == 28)
    assert (check.status, "votes" in check.finding) == (INCONCLUSIVE, True)


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_the_noise_is_that_of_the_classifier_unless_a_sigma_is_given(sigma: float) -> None:
    net, x, y, _ = _linear()
    found, expected = (
        RandomizedSmoothing(sigma=given, n=300).run(Smoothed(net, sigma), x, y).radius for given in (None, sigma)
    )
    assert torch.equal(found, expected)
    assert 0 < found.max() < 3 * sigma


def test_another_sigma_or_norm_is_an_error() -> None:
    net, x, y, _ = _linear()
    with pytest.raises(ValueError, match="sigma must be positive"):
        RandomizedSmoothing(sigma=0.0)
    with pytest.raises(ValueError, match=r"RandomizedSmoothing\(sigma=0.5\)"):
        RandomizedSmoothing(sigma=0.25).run(Smoothed(net, 0.5), x, y)
    with pytest.raises(ValueError, match="norm must be l2"):
        RandomizedSmoothing(norm="linf")


class _Clamped(Smoothed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x + self.sigma * torch.randn_like(x)).clamp(0, 1))


class _Uniform(Smoothed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + self.sigma * torch.rand_like(x))


@pytest.mark.parametrize("kind", [_Clamped, _Uniform])
def test_other_noise_than_gaussian_is_not_certified(kind: type[Smoothed]) -> None:
    net, x, y, _ = _linear()
    with pytest.raises(ValueError, match=rf"{kind.__name__} does not answer as its undefended\(\) does for x \+ 0.5"):
        RandomizedSmoothing(n=100).run(kind(net, 0.5), x, y)
