"""EvolutionStrategies: gradients estimated from logits alone."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import MIM, PGD, EvolutionStrategies
from robustlit.attacks.victim import Victim
from robustlit.classifier import DefendedClassifier, attack_view, draws_of, is_stochastic, undefended
from robustlit.defenses import BitDepth


class NoGradient(nn.Module):
    """A deployed classifier without any gradient; counts images, and the most in one batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.images, self.most = net, 0, 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.images, self.most = self.images + len(x), max(self.most, len(x))
        return self.net(x)


def gradient(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad((model(leaf) * v).sum(), leaf)
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean())


def test_the_direction_nears_the_true_one_as_samples_grow() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    x, v = torch.rand(20, 1, 8, 8, dtype=torch.float64), torch.randn(20, 10, dtype=torch.float64)
    true = gradient(net, x, v)
    for samples in (16, 64, 256, 4096):
        estimate = gradient(EvolutionStrategies(NoGradient(net), 0.01, samples), x, v)
        # Of a linear function it is (u u^T) g averaged: cosine sqrt(n / (n + d + 1)) in the mean.
        assert cosine(estimate, true) == pytest.approx((samples / (samples + 65)) ** 0.5, abs=0.03)
    ratio = estimate.flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=0.1, rtol=0)


def test_the_output_is_the_models(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:5].clone()
    model = EvolutionStrategies(net, samples=2)
    with torch.no_grad():
        value = net(x)
        assert torch.equal(model(x), value)
    assert torch.equal(model(x.requires_grad_(True)), value)
    assert torch.equal(attack_view(model)(x), value)


def test_it_breaks_rounding_without_a_view(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    blind = Function(lambda x: net((x * 7).round() / 7))
    x, y = digits[0][:30], digits[1][:30]
    attack = MIM(eps=0.2, steps=10)  # its momentum averages the noise of the estimates
    with pytest.warns(UserWarning, match="blind"):
        assert attack.run(blind, x, y).success.float().mean() < 0.2
    result = attack.run(EvolutionStrategies(blind, sigma=0.1, samples=50), x, y)
    assert result.success.float().mean() > 0.6
    with torch.no_grad():  # on the real thing
        assert torch.equal(blind(result.x_adv).argmax(1), result.prediction)


def test_the_noise_is_that_of_the_seed_and_the_image(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, v = digits[0][:6], torch.randn(6, 10)
    model = EvolutionStrategies(NoGradient(net), samples=7)
    state = torch.get_rng_state()
    whole = gradient(model, x, v)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gradient(model, x, v), whole)
    order = torch.tensor([4, 1, 5])
    torch.testing.assert_close(gradient(model, x[order], v[order]), whole[order], atol=1e-4, rtol=1e-4)
    assert cosine(gradient(EvolutionStrategies(NoGradient(net), samples=7, seed=1), x, v), whole) < 0.5
    # The same image twice has the same noise; one that moved by a hair has other noise.
    twice = gradient(model, x[:1].expand(2, -1, -1, -1), v[:1].expand(2, -1))
    torch.testing.assert_close(twice[0], twice[1])
    noise, other = (next(model.directions(z)) for z in (x, x + 1e-6))
    assert cosine(noise[0], other[0]) < 0.2


def test_memory_is_bounded_and_the_pieces_do_not_matter(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, v = digits[0][:6], torch.randn(6, 10)
    deployed = NoGradient(net)
    expected = gradient(EvolutionStrategies(deployed, samples=25), x, v)
    assert deployed.images == 6 + 2 * 25 * 6
    for limit, most in ((48, 48), (13, 12), (1, 6)):
        deployed.most = 0
        found = gradient(EvolutionStrategies(deployed, samples=25, batch_size=limit), x, v)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert deployed.most <= most


def test_large_images_are_fewer_at_once() -> None:
    deployed = NoGradient(nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)))
    gradient(EvolutionStrategies(deployed, samples=40), torch.rand(1, 3, 224, 224), torch.ones(1, 2))
    assert (deployed.images, deployed.most) == (1 + 2 * 40, 32)


def test_several_backwards_share_the_forwards(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:4]
    deployed = NoGradient(net)
    model = EvolutionStrategies(deployed, samples=25, batch_size=30)
    with Victim(model, x) as victim:
        _, _, together = victim.jacobian(x, lambda logits: logits)
    assert deployed.images == 4 + 2 * 25 * 4
    for k in range(10):
        torch.testing.assert_close(together[:, k], gradient(model, x, torch.eye(10)[k].expand(4, -1)))


def test_it_keeps_the_interface_of_the_model(net: nn.Module) -> None:
    defense = BitDepth(net, 3)
    model = EvolutionStrategies(defense)
    assert isinstance(model, DefendedClassifier)
    assert attack_view(model) is model
    assert undefended(model) is net
    assert undefended(EvolutionStrategies(net)) is not net
    assert (is_stochastic(model), draws_of(model)) == (False, 1)
    copy.deepcopy(model).double()
    assert {name.split(".", 1)[0] for name in model.state_dict()} == {"model"}


def test_a_stochastic_model_is_asked_once_for_each_gradient(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Noisy(NoGradient):
        stochastic = True
        draws = 20

        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x + 0.2 * torch.randn_like(x)).clamp(0, 1))

    x, y = digits[0][:10], digits[1][:10]
    model = EvolutionStrategies(Noisy(net), sigma=0.1, samples=60)
    assert (is_stochastic(model), draws_of(model)) == (True, 1)
    result = PGD(eps=0.3, steps=8).run(model, x, y, seed=0)
    assert result.success.float().mean() > 0.7
    assert torch.equal(result.x_adv, PGD(eps=0.3, steps=8).run(model, x, y, seed=0).x_adv)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"sigma": 0}, "sigma must be positive and finite, got 0 pixel units"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"samples": 0}, "samples must be a whole number of at least 1, got 0"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], rule: str, net: nn.Module) -> None:
    with pytest.raises(ValueError, match=rule):
        EvolutionStrategies(net, **settings)  # type: ignore[arg-type]
