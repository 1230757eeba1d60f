"""BPDA: the output of one function with the gradient of another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import Defended, Function
from torch import Tensor, nn

from robustlit.attacks import BIM, PGD
from robustlit.attacks.bpda import BPDA
from robustlit.attacks.eot import EOT
from robustlit.attacks.victim import Victim
from robustlit.classifier import DefendedClassifier, attack_view, draws_of, is_stochastic, undefended

BREAKS = PGD(eps=0.2, steps=10, random_start=False)


def rounding(x: Tensor) -> Tensor:
    return torch.round(x * 3) / 3


def through_numpy(x: Tensor) -> Tensor:
    """A filter outside of autograd, as JPEG compression is."""
    return torch.from_numpy((x.numpy() * 7).round() / 7).to(x)


class Calls(nn.Module):
    """Counts images; works in place if asked to."""

    def __init__(self, inner: Callable[[Tensor], Tensor], in_place: bool = False) -> None:
        super().__init__()
        self.inner, self.in_place, self.images, self.graphs = inner, in_place, 0, False

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        self.graphs |= x.requires_grad or torch.is_grad_enabled()
        return self.inner(x.mul_(0.5) if self.in_place else x * 0.5)


def deployed(net: nn.Module) -> nn.Module:
    """A classifier without any gradient."""
    return Function(lambda x: net(torch.round(x * 7) / 7).detach())


def test_the_output_is_exactly_the_models_and_the_gradient_the_surrogates() -> None:
    x = (torch.rand(5, 1, 4, 4) * 1e3).requires_grad_(True)
    for dtype in (torch.float32, torch.float64):
        z = x.detach().to(dtype).requires_grad_(True)
        layer = BPDA(rounding, backward=lambda x: x**3)
        value = layer(z)
        assert torch.equal(value, rounding(z))
        weight = torch.rand_like(z)
        (gradient,) = torch.autograd.grad((value * weight).sum(), z)
        torch.testing.assert_close(gradient, weight * 3 * z.detach() ** 2)
        (identity,) = torch.autograd.grad((BPDA(rounding)(z) * weight).sum(), z)
        assert torch.equal(identity, weight)
        with torch.no_grad():
            assert torch.equal(layer(z), value)
            assert not layer(z).requires_grad
    with torch.inference_mode():
        assert torch.equal(BPDA(rounding)(x), rounding(x))


@pytest.mark.parametrize("layer", [Function(rounding), through_numpy], ids=["module", "function"])
def test_a_layer_in_its_place(layer: Callable[[Tensor], Tensor], net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    model = nn.Sequential(BPDA(layer), net)
    result = BREAKS.run(model, x, y)
    assert result.success.float().mean() > 0.9
    with torch.no_grad():  # on the real thing
        prediction = net(layer(result.x_adv)).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction != y)


def test_a_whole_classifier_without_gradients(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    with pytest.raises(ValueError, match="gives no gradient"):
        BREAKS(deployed(net), x, y)
    model = BPDA(deployed(net), backward=net)
    for target in (None, (y + 1) % 10):
        result = BREAKS.run(model, x, y, target=target, seed=0, eps=0.3)
        assert result.success.float().mean() > 0.8
        with torch.no_grad():
            assert torch.equal(result.prediction, deployed(net)(result.x_adv).argmax(1))
    assert isinstance(model, DefendedClassifier)


def test_breaking_the_surrogate_alone_is_not_a_success(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], net(digits[0][:20]).argmax(1)

    def unbroken(z: Tensor) -> Tensor:
        return 20 * nn.functional.one_hot(y[torch.cdist(z.flatten(1), x.flatten(1)).argmin(1)], 10).float() - 10

    assert BREAKS.run(net, x, y).success.float().mean() > 0.9
    result = BREAKS.run(BPDA(unbroken, backward=net), x, y)
    assert not result.success.any()
    assert torch.equal(result.prediction, y)


def test_the_passes_are_those_of_the_real_model(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    real, surrogate = Calls(net), Calls(net)
    result = PGD(eps=0.05, steps=5).run(BPDA(real, backward=surrogate), x, y, seed=0)
    assert result.forwards.sum() == real.images
    assert result.backwards.sum() == surrogate.images  # the surrogate runs where a gradient is taken, and nowhere else
    assert not real.graphs  # no memory is spent on a graph of the model that is not differentiated


@pytest.mark.parametrize("where", ["model", "surrogate", "both"])
def test_working_in_place_changes_neither_the_images_nor_the_other(
    where: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:10], digits[1][:10]
    attack = PGD(eps=0.3, steps=4)
    expected = attack.run(BPDA(Calls(net), backward=Calls(net)), x, y, seed=0)
    rough = BPDA(Calls(net, where != "surrogate"), backward=Calls(net, where != "model"))
    found = attack.run(rough, x, y, seed=0)
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.prediction, expected.prediction)


def test_shapes_that_differ_are_an_error(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], digits[1][:4]
    with pytest.raises(ValueError, match=r"\(4, 10\), got \(4, 1, 28, 28\).*backward=a differentiable classifier"):
        BREAKS(BPDA(net), x, y)
    with pytest.raises(ValueError, match="must return a tensor, got tuple"):
        BPDA(lambda z: (z, z))(x)


def test_the_wrapped_model_decides_about_noise_and_defenses(net: nn.Module) -> None:
    defense = Defended(net, net)
    defense.stochastic, defense.draws = True, 7
    model = BPDA(defense, backward=net)
    assert attack_view(model) is model
    assert undefended(model) is net
    assert (is_stochastic(model), draws_of(model)) == (True, 7)
    plain = BPDA(rounding)
    assert undefended(plain) is plain
    assert (is_stochastic(plain), draws_of(plain)) == (False, 1)


def test_weights_and_modes_are_those_of_both(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    surrogate = copy.deepcopy(net)
    model = BPDA(net, backward=nn.Sequential(nn.Dropout(0.9), surrogate))
    state = model.state_dict()
    assert {name.split(".", 1)[1] for name in state if name.startswith("model.")} == set(net.state_dict())
    other = BPDA(copy.deepcopy(net), backward=nn.Sequential(nn.Dropout(0.9), copy.deepcopy(surrogate)))
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(state)
    x, y = digits[0][:8], digits[1][:8]
    model.train()
    found = BREAKS.run(model, x, y)
    assert all(module.training for module in model.modules())
    assert torch.equal(found.x_adv, BREAKS.run(other, x, y).x_adv)
    assert torch.equal(found.x_adv, BREAKS.run(net, x, y).x_adv)  # dropout was off
    assert set(BPDA(through_numpy).state_dict()) == set()


def test_the_half_precision_of_one_does_not_stop_the_other(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:10], digits[1][:10]
    result = BREAKS.run(BPDA(lambda z: net(z).bfloat16(), backward=net), x, y)
    assert result.success.float().mean() > 0.8
    expected = BREAKS.run(BPDA(deployed(net), backward=net), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(BREAKS.run(BPDA(deployed(net), backward=net), x, y).x_adv, expected.x_adv)
        x_adv = BIM(eps=0.2, steps=3).maximise(nn.Sequential(BPDA(rounding), net), x, lambda z: -z[:, 0])
    assert (x_adv - x).abs().max() > 0.1


def test_all_gradients_at_once_go_through_it_too(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:3].double()
    net = net.double()
    with Victim(nn.Sequential(BPDA(rounding), net), x) as victim:
        _, _, ours = victim.jacobian(x, lambda logits: logits)
    with Victim(net, x) as victim:
        _, _, theirs = victim.jacobian(rounding(x), lambda logits: logits)
    torch.testing.assert_close(ours, theirs)
    model = nn.Sequential(BPDA(rounding), net)
    batched = torch.func.jacrev(lambda z: model(z).sum(0))(x)  # (K, B, ...)
    torch.testing.assert_close(batched.transpose(0, 1), theirs)
    each = torch.func.vmap(torch.func.jacrev(lambda z: model(z.unsqueeze(0))[0]))(x)
    torch.testing.assert_close(each, theirs)


def jitter(x: Tensor) -> Tensor:
    return (x + 0.3 * torch.randn_like(x)).clamp(0, 1)


@pytest.mark.parametrize("outer", ["EOT", "BPDA", "layer"])
def test_with_eot_in_either_order(outer: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    real, surrogate = Function(lambda z: net(rounding(jitter(z)))), nn.Sequential(Function(jitter), net)
    model = {
        "EOT": lambda: EOT(BPDA(real, backward=surrogate), 4),
        "BPDA": lambda: BPDA(EOT(real, 4), backward=surrogate),
        "layer": lambda: EOT(nn.Sequential(Function(jitter), BPDA(rounding), net), 4),
    }[outer]()
    assert (is_stochastic(model), draws_of(model)) == (True, 4)
    result = PGD(eps=0.3, steps=6).run(model, x, y, seed=0)
    assert result.success.float().mean() > 0.7
    assert (result.backwards % 4 == 0).all()
    again = PGD(eps=0.3, steps=6).run(model, x, y, seed=0)
    assert torch.equal(result.x_adv, again.x_adv)
    assert torch.equal(result.success, again.success)
