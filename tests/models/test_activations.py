"""Jumps, and their insertion into any net."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.layers import activations, activations_me
from torch import Tensor, nn
from torch.nn.functional import relu

from robustlit.models import BaseCNN, JumpReLU, RandomJumpReLU, replace_activations
from robustlit.models.activations import Jump

Z = torch.linspace(-2, 8, 1001)


def gradient(layer: nn.Module, z: Tensor, training: bool = False) -> Tensor:
    leaf = z.clone().requires_grad_(True)
    layer.train(training)
    (found,) = torch.autograd.grad(layer(leaf * 1).sum(), leaf)  # times 1: layers that work in place may not on a leaf
    return found


def test_without_a_threshold_it_is_the_relu() -> None:
    z = torch.cat([Z, torch.tensor([0.0, -0.0, float("inf"), float("-inf")])])
    assert torch.equal(JumpReLU(0)(z), relu(z))
    assert torch.equal(gradient(JumpReLU(0), z), gradient(nn.ReLU(), z))
    assert torch.equal(JumpReLU(0).smooth(z[:-2]), relu(z[:-2]))


def test_the_jump_by_hand() -> None:
    z = torch.tensor([-1.0, 0.0, 0.2, 0.5, 0.5001, 3.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5001, 3.0])
    assert torch.equal(JumpReLU(0.5)(z), expected)
    assert torch.equal(gradient(JumpReLU(0.5), z), (z > 0.5).float())
    assert JumpReLU(0.5).eval()(torch.tensor(float("nan"))).isnan()  # NaN must stay visible


def test_in_training_the_gradient_goes_straight_through() -> None:
    for layer in (JumpReLU(0.5), RandomJumpReLU(0.5, 0.5), JumpReLU(0.5, nn.ReLU(inplace=True))):
        assert torch.equal(layer.train()(Z.clone()), layer.eval()(Z.clone()))
        assert torch.equal(gradient(layer, Z, training=True), (Z > 0).float())
        assert torch.equal(gradient(layer, Z), (Z > 0.5).float())


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU6(), nn.SiLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.Hardswish(), nn.PReLU(), activations.Swish()],
    ids=lambda a: type(a).__name__,
)
def test_above_the_threshold_the_value_is_the_activations_own(activation: nn.Module) -> None:
    value = JumpReLU(0.5, activation)(Z)
    assert torch.equal(value[Z > 0.5], activation(Z)[Z > 0.5])
    assert not value[Z <= 0.5].any()


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.LeakyReLU, nn.Hardswish, activations.HardSwish])
def test_an_activation_that_works_in_place(kind: type[nn.Module]) -> None:
    for kappa in (0.0, 0.5):
        rough, careful = JumpReLU(kappa, kind(inplace=True)), JumpReLU(kappa, kind())
        assert torch.equal(rough(Z.clone()), careful(Z))
        assert torch.equal(gradient(rough, Z), gradient(careful, Z))
        assert torch.equal(rough.smooth(Z.clone()), careful.smooth(Z))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_kept(dtype: torch.dtype) -> None:
    for layer in (JumpReLU(0.5), RandomJumpReLU(0.1, 0.5)):
        assert layer(Z.to(dtype)).dtype == layer.smooth(Z.to(dtype)).dtype == dtype


def test_random_thresholds() -> None:
    layer = RandomJumpReLU(0.6, 1.0).eval()
    z = torch.linspace(0, 2, 2001)
    draws = torch.tensor([float(z[layer(z) == 0].max()) for _ in range(300)])  # one threshold for all of a batch
    assert 0.6 <= draws.min() < 0.62
    assert 0.98 < draws.max() <= 1.0
    assert abs(float(draws.mean()) - 0.8) < 0.03
    torch.manual_seed(3)
    first = [layer(z) for _ in range(2)]
    torch.manual_seed(3)
    assert torch.equal(layer(z), first[0])
    assert torch.equal(layer(z), first[1])
    assert not torch.equal(*first)
    assert torch.equal(RandomJumpReLU(0.5, 0.5)(z), JumpReLU(0.5)(z))


def test_the_spread_step() -> None:
    # The random one's is its mean; the fixed one's is the jump, away from the threshold.
    random = RandomJumpReLU(0.6, 1.0)
    mean = torch.stack([random(Z) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(random.smooth(Z), mean, atol=0.03, rtol=0)
    fixed = JumpReLU(0.5)
    away = (Z - 0.5).abs() > 0.4
    torch.testing.assert_close(fixed.smooth(Z)[away], fixed(Z)[away], atol=1e-3, rtol=1e-3)
    z = torch.tensor([0.5], requires_grad=True)
    assert torch.autograd.grad(fixed.smooth(z).sum(), z)[0] > 2  # steep where the jump is
    assert torch.equal(RandomJumpReLU(0.5, 0.5).smooth(Z), fixed.smooth(Z))


@pytest.mark.parametrize("kappa", [-1, float("nan"), float("inf"), True, "0.1", None])
def test_a_threshold_out_of_range_is_refused(kappa: object) -> None:
    rule = "must be at least 0 and finite, got .*; 0 is the plain ReLU"
    with pytest.raises(ValueError, match=f"kappa {rule}"):
        JumpReLU(kappa)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"low {rule}"):
        RandomJumpReLU(kappa, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"high {rule}"):
        RandomJumpReLU(0, kappa)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="low must be at most high, got low=2 and high=1"):
        RandomJumpReLU(2, 1)


# Replacing


def test_what_was_replaced_is_returned() -> None:
    net = BaseCNN()
    x = torch.rand(3, 1, 28, 28)
    before = net(x)
    paths = ["features.1", "features.3", "features.6", "features.8", "classifier.1"]
    assert replace_activations(net, partial(JumpReLU, 0.0)) == dict.fromkeys(paths, nn.ReLU)
    assert all(isinstance(net.get_submodule(path), JumpReLU) for path in paths)
    assert torch.equal(net(x), before)


@pytest.mark.parametrize(
    ("name", "kind", "count", "gates"),
    [
        ("efficientnet_b3", nn.SiLU, 78, 26),  # 52 in fused norms, 26 in squeeze-and-excitations
        ("mobilenetv2_100", nn.ReLU6, 35, 0),
        ("densenet121", nn.ReLU, 121, 0),
        ("resnet18", nn.ReLU, 17, 0),
    ],
)
def test_networks_of_timm(name: str, kind: type[nn.Module], count: int, gates: int) -> None:
    net = timm.create_model(name, num_classes=10, in_chans=1).eval()
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        before = net(x)
        seen: list[nn.Module] = []
        replaced = replace_activations(net, lambda old: _Recording(old, seen))
        assert torch.equal(net(x), before)
    assert set(replaced.values()) == {kind}
    assert len(replaced) == len(seen) == count  # every place was replaced, and every one is called
    assert sum(isinstance(module, nn.Sigmoid) for module in net.modules()) == gates


class _Recording(nn.Module):
    def __init__(self, old: nn.Module, seen: list[nn.Module]) -> None:
        super().__init__()
        self.old, self.seen = old, seen

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(self)
        return self.old(z)


@pytest.mark.parametrize("file", [activations, activations_me])
def test_timms_own_classes(file: object) -> None:
    names = ("Swish", "SwishMe", "Mish", "MishMe", "HardSwish", "HardSwishMe", "HardMish", "GELU", "GELUTanh", "PReLU")
    kinds = [getattr(file, name) for name in names if hasattr(file, name)]
    net = nn.Sequential(*(kind() for kind in kinds), activations.Sigmoid(), activations.HardSigmoid())
    assert list(replace_activations(net, partial(JumpReLU, 0.1)).values()) == kinds
    assert net(torch.rand(2, 3)).shape == (2, 3)


def test_what_is_shared_stays_shared() -> None:
    act = nn.ReLU()
    block = nn.Sequential(nn.Linear(4, 4), act)
    net = nn.Sequential(block, act, block)
    assert list(replace_activations(net, partial(RandomJumpReLU, 0.0, 1.0))) == ["0.1", "1", "2.1"]
    assert net[0] is net[2]
    assert net[1] is net[0][1]
    assert sum(isinstance(module, Jump) for module in net.modules()) == 1


def test_your_own_classes() -> None:
    class Cube(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, z: Tensor) -> Tensor:
            return self.inner(z) ** 3

    net = nn.Sequential(nn.ReLU(), Cube())
    assert replace_activations(net, partial(JumpReLU, 0.5), types=[Cube, nn.ReLU]) == {"0": nn.ReLU, "1": Cube}
    assert net(torch.tensor([0.6, 0.4])).tolist() == pytest.approx([0.216, 0.0])
    assert not isinstance(net[1].activation.inner, JumpReLU)  # parts of an activation are not replaced


def test_nets_in_which_nothing_can_be_replaced() -> None:
    jump = partial(JumpReLU, 0.1)
    with pytest.raises(ValueError, match=r"Linear has no activation module.*F\.relu.*cannot be seen.*types="):
        replace_activations(nn.Linear(4, 4), jump)
    with pytest.raises(ValueError, match="Sequential has no activation module"):
        replace_activations(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.ReLU()), jump, types=[nn.SiLU])
    with pytest.raises(ValueError, match="ReLU is itself the activation"):
        replace_activations(nn.ReLU(), jump)
    with pytest.raises(ValueError, match=r"build must be a function .* got a JumpReLU"):
        replace_activations(BaseCNN(), JumpReLU(0.1))
    net = BaseCNN()
    replace_activations(net, jump)
    with pytest.raises(ValueError, match=r"BaseCNN has jumps already \(features.1, features.3, features.6, \.\.\.\)"):
        replace_activations(net, jump)
