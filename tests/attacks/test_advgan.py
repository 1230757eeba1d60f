"""AdvGAN: one forward of a generator, within the budget, judged by the model, its passes counted."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from cases import Function, Linear, in_parts
from torch import Tensor, nn

from robustlit.attacks.advgan import AdvGAN
from robustlit.models import AdvGANGenerator, load_generator, save_generator
from robustlit.models.generator import perturb
from robustlit.threat import distance


class Constant(nn.Module):
    """A generator that returns one pattern for every image."""

    def __init__(self, pattern: Tensor) -> None:
        super().__init__()
        self.pattern = nn.Parameter(pattern)

    def forward(self, x: Tensor) -> Tensor:
        return self.pattern.expand(x.shape)


def untrained(seed: int = 0, **sizes: int) -> AdvGANGenerator:
    """A generator whose perturbations are large, and differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = AdvGANGenerator(**sizes)
    with torch.no_grad():
        generator.last.weight.mul_(30)
    return generator.eval()


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("shape", [(12,), (1, 3, 4), (3, 4, 4)], ids=str)
def test_a_generator_that_knows_the_slope_ends_at_the_vertex(shape: tuple[int, ...], batch: int) -> None:
    weight = torch.randn(2, math.prod(shape))
    slope = (weight[1] - weight[0]).view(shape)
    x = torch.rand(batch, *shape) * 0.2 + 0.4
    y = torch.zeros(batch, dtype=torch.int64)
    margin = -(x * slope).flatten(1).sum(1)
    needed = 0.1 * slope.abs().sum()
    generator = Constant(slope.sign() * 100)
    for factor, wins in ((0.99, True), (1.01, False)):
        for i in range(batch):  # a bias for each, so that the vertex is just beyond the boundary, or just short of it
            model = Linear(weight, torch.stack([factor * needed - margin[i], torch.zeros(())]))
            before = x.clone()
            result = AdvGAN(0.1, generator=generator).run(model, x[i : i + 1], y[i : i + 1])
            assert torch.equal(x, before)
            torch.testing.assert_close(result.x_adv[0], x[i] + 0.1 * slope.sign(), rtol=0, atol=1e-6)
            assert result.success.tolist() == [wins]
            assert (result.forwards.tolist(), result.backwards.tolist()) == ([2], [0])
    model = Linear(weight, torch.tensor([1e3, 0.0]))
    whole = AdvGAN(0.1, generator=generator).run(model, x, y)
    torch.testing.assert_close(whole.x_adv, x + 0.1 * slope.sign(), rtol=0, atol=1e-6)


def test_it_stays_in_the_ball_and_the_box_and_is_judged_afresh(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    attack = AdvGAN(0.3, generator=untrained())
    result = attack.run(net, x, y)
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
    assert (result.distance <= 0.3 + 1e-6).all()
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, "linf"))
    prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction != y)
    assert 0 < result.success.sum() < len(y)
    right = net(x).argmax(1) == y
    assert torch.equal(result.x_adv[right], perturb(attack.generator, x[right], 0.3).detach())
    assert torch.equal(result.x_adv[~right], x[~right])  # nothing to break
    assert not result.distance[~right].any()
    assert (~right).any()
    assert (result.forwards == 2).all()
    assert not result.backwards.any()


def test_an_example_does_not_depend_on_its_batch(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net, x, y = net.double(), digits[0][:20].double(), digits[1][:20].clone()
    y[4] = (y[4] + 1) % 10
    attack, eps = AdvGAN(generator=untrained().double()), torch.linspace(0, 0.9, 20, dtype=torch.float64)
    in_parts(attack, net, x, y, eps=eps)


def test_the_perturbation_scales_with_the_budget_of_the_call(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    right = net(digits[0]).argmax(1) == digits[1]
    x, y = digits[0][right][:30] * 0.2 + 0.4, digits[1][right][:30]  # far from the box
    model = Linear(torch.zeros(10, 784), torch.zeros(10))  # constant: no example is broken
    y = torch.zeros_like(y)
    attack = AdvGAN(0.3, generator=untrained())
    own = attack.run(model, x, y).x_adv - x
    assert own.abs().max() > 0.25
    eps = torch.linspace(0, 0.3, 30)
    scaled = attack.run(model, x, y, eps=eps)
    torch.testing.assert_close(scaled.x_adv - x, own * (eps / 0.3).view(-1, 1, 1, 1), rtol=0, atol=1e-6)
    assert torch.equal(scaled.x_adv[0], x[0])
    assert not scaled.success.any()


@pytest.mark.faults
def test_where_the_net_names_no_class_it_is_fooled(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    attack = AdvGAN(generator=Constant(torch.full((1, 28, 28), 100.0)))
    right = net(x).argmax(1) == y
    assert attack.run(net, x, y).success[right].any()
    bright_is_nan = Function(lambda z: net(z).where(z.flatten(1).mean(1, keepdim=True) < 0.2, float("nan")))
    with pytest.warns(UserWarning, match="not finite during advgan"):
        result = attack.run(bright_is_nan, x, y)
    assert result.success[right].all()
    assert (result.prediction[right] == -1).all()
    assert not result.finite[right].any()
    assert result.success[~right].any()  # an image that needs no attack


def test_a_generators_modes_are_put_back_and_its_dropout_is_off(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    generator = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.5))
    generator[1].eval()
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.2), net)
    modes = [m.training for root in (generator, model) for m in root.modules()]
    attack, x, y = AdvGAN(generator=generator), digits[0][:9], digits[1][:9]
    state = torch.get_rng_state()
    first, second = attack(model, x, y), attack(model, x, y)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randint(2**62, (2,))  # a seed for each call, and nothing else
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(first, second)
    assert [m.training for root in (generator, model) for m in root.modules()] == modes
    assert int(generator[0].num_batches_tracked) == int(model[0].num_batches_tracked) == 0
    assert all(p.grad is None for root in (generator, model) for p in root.parameters())


# Targets


def test_a_generator_reaches_the_class_that_it_was_trained_for_and_refuses_another() -> None:
    x, y = torch.rand(6, 1, 3, 4), torch.tensor([0, 0, 0, 1, 2, 2])
    weight = torch.zeros(3, 12)
    weight[2] = 1.0
    model = Linear(weight, torch.zeros(3))  # always class 2, unless it is dark
    generator = Constant(torch.full((1, 3, 4), 100.0))
    attack = AdvGAN(eps=0.3, generator=generator)
    twos = torch.full_like(y, 2)
    with pytest.raises(ValueError, match=r"trained to leave the true class.*target=CLASS"):
        attack.run(model, x, y, target=twos)
    generator.target = 2  # type: ignore[assignment]
    assert attack.run(model, x, y, target=twos).success.all()
    for targets in (torch.ones_like(y), torch.tensor([2, 2, 2, 2, 2, 0])):
        with pytest.raises(ValueError, match=rf"reach class 2 only, got target {targets[-1]}.*recipe=advgan target"):
            attack.run(model, x, y, target=targets)
    with pytest.raises(ValueError, match=r"target must have shape"):
        attack.run(model, x, y, target=twos[:3])
    untargeted = attack.run(model, x, y)  # any wrong class counts then
    assert torch.equal(untargeted.success, y != 2)


# The file


def test_a_generator_comes_back_from_its_file(tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    generator = untrained(width=4, blocks=2)
    generator.eps, generator.target = 0.25, 7
    path = tmp_path / "generator.pt"
    save_generator(generator, path)
    again = load_generator(path)
    assert (again.width, again.blocks, again.in_chans, again.image_size) == (4, 2, 1, 28)
    assert (again.eps, again.target, again.training) == (0.25, 7, False)
    x, y = digits[0][:12], digits[1][:12]
    assert torch.equal(again(x), generator(x))
    from_file, from_net = AdvGAN(generator=path), AdvGAN(generator=generator)
    assert torch.equal(from_file(net, x, y), from_net(net, x, y))
    with pytest.raises(ValueError, match="reach class 7 only"):
        from_file(net, x, y, target=torch.zeros_like(y))
    # In the precision of the images, so that one alone is as in a batch.
    exact = from_file(net.double(), x.double(), y)
    torch.testing.assert_close(from_file(net, x[:1].double(), y[:1]), exact[:1], rtol=0, atol=1e-12)


def test_a_file_is_read_when_it_is_needed_and_again_when_it_was_written_anew(
    tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    path = tmp_path / "generator.pt"
    attack = AdvGAN(generator=path)
    x, y = digits[0][:6], digits[1][:6]
    with pytest.raises(ValueError, match=r"no generator at .*generator\.pt.*recipe=advgan"):
        attack(net, x, y)
    save_generator(untrained(0), path)
    with torch.inference_mode():
        first = attack(net, x.clone(), y)
    assert torch.equal(attack(net, x, y), first)
    save_generator(untrained(1), path)
    os.utime(path, ns=(1, 1))
    assert not torch.equal(attack(net, x, y), first)


def test_images_that_the_generator_was_not_made_for(tmp_path: Path) -> None:
    path = tmp_path / "generator.pt"
    save_generator(AdvGANGenerator(), path)
    x, y = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    model = Linear(torch.zeros(3, 3072), torch.tensor([5.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"made for images \(1, 28, 28\), got \(3, 32, 32\)"):
        AdvGAN(generator=path)(model, x, y)
    with pytest.raises(ValueError, match="return the shape of its images"):
        AdvGAN(generator=nn.Conv2d(3, 3, 3))(model, x, y)


# A value


def test_it_is_a_value() -> None:
    attack = AdvGAN(0.1, generator="a.pt")
    assert eval(repr(attack), {"AdvGAN": AdvGAN}) == attack
    assert hash(AdvGAN(0.1, generator=Path("a.pt"))) == hash(attack)
    assert attack != AdvGAN(0.1, generator="b.pt")
    net = AdvGANGenerator()
    assert AdvGAN(generator=net) == AdvGAN(generator=net) != AdvGAN(generator=AdvGANGenerator())
    assert "<AdvGANGenerator>" in repr(AdvGAN(generator=net))
    assert len(repr(AdvGAN(generator=net))) < 80
    assert (AdvGAN(generator="a").eps, AdvGAN.name) == (0.3, "advgan")
    from hydra.utils import instantiate

    built = instantiate({"_target_": "robustlit.attacks.advgan.AdvGAN", "eps": 0.1, "generator": "a.pt"})
    assert built == attack
    for arguments, message in (
        ({"generator": None}, "generator must be the path"),
        ({"generator": "a.pt", "norm": "l2"}, "norm must be one of linf"),
        ({"generator": "a.pt", "eps": 8}, "8/255"),
    ):
        with pytest.raises(ValueError, match=message):
            AdvGAN(**arguments)
    with pytest.raises(TypeError, match="generator"):
        AdvGAN()
