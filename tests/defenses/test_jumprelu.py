"""JumpReLU as a defense: fixed and random, on a trained net and from the start, and its attack views."""

from __future__ import annotations

import copy
from pathlib import Path

import hydra
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import DDN, PGD
from robustlit.classifier import DefendedClassifier, attack_view, draws_of, is_stochastic, undefended
from robustlit.defenses import JumpReLUDefense, RandomJumpReLUDefense
from robustlit.defenses.jumprelu import SURROGATES
from robustlit.models import BaseCNN, JumpReLU, SmallCNN
from robustlit.models.activations import Jump
from robustlit.training.checkpoint import build_net

Defense = JumpReLUDefense | RandomJumpReLUDefense
MODELS = Path(__file__).parents[2] / "recipes" / "model"
PATHS = ["features.1", "features.3", "classifier.1"]


def both(net: nn.Module, **settings: str) -> list[Defense]:
    return [JumpReLUDefense(net, 0.3, **settings).eval(), RandomJumpReLUDefense(net, 0.1, 0.3, **settings).eval()]


def by_hand(net: nn.Module, x: Tensor, kappa: float) -> Tensor:
    for layer in [*net.features, *net.classifier]:
        x = torch.where(x > kappa, x, 0.0) if isinstance(layer, nn.ReLU) else layer(x)
    return x


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    return found


def test_every_activation_gets_a_jump_and_the_callers_net_none(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:20]
    with torch.no_grad():
        before = net(x)
        defense = JumpReLUDefense(net, 0.4)
        assert defense.replaced == dict.fromkeys(PATHS, "ReLU")
        assert torch.equal(defense(x), by_hand(net, x, 0.4))
        assert not torch.allclose(defense(x), before)
        assert torch.equal(net(x), before)
        assert torch.equal(JumpReLUDefense(net, 0)(x), before)
    assert not any(isinstance(module, Jump) for module in net.modules())


def test_the_random_threshold_is_drawn_per_layer_and_forward(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:4]
    defense = RandomJumpReLUDefense(net, 0.2, 0.6, draws=7).eval()
    assert (is_stochastic(defense), draws_of(defense)) == (True, 7)
    with torch.no_grad():
        assert not torch.equal(defense(x), defense(x))
        torch.testing.assert_close(RandomJumpReLUDefense(net, 0.4, 0.4)(x), by_hand(net, x, 0.4))
    assert (is_stochastic(both(net)[0]), draws_of(both(net)[0])) == (False, 1)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_views_share_every_tensor(number: int, surrogate: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net.register_buffer("some", torch.ones(3))
    x, original = digits[0][:4].double(), copy.deepcopy(net).double()
    defense = copy.deepcopy(both(net, surrogate=surrogate)[number]).double()
    assert isinstance(defense, DefendedClassifier)
    tensors = {id(t) for t in (*defense.parameters(), *defense.buffers())}
    for view in (undefended(defense), attack_view(defense)):
        assert {id(t) for t in (*view.parameters(), *view.buffers())} == tensors
        assert view(x).dtype == torch.float64
    torch.testing.assert_close(undefended(defense)(x), original(x))
    assert [type(m) for m in undefended(defense).modules()] == [type(m) for m in original.modules()]
    assert len(list(defense.net.modules())) == len(list(net.modules())) + len(PATHS)  # the views changed nothing
    with torch.no_grad():
        next(defense.parameters()).zero_()
    assert not next(undefended(defense).parameters()).any()


def test_the_views_value_and_gradient(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:10]
    views = {s: attack_view(JumpReLUDefense(net, 0.4, surrogate=s).eval()) for s in SURROGATES}
    gradients = {s: gradient(view, x) for s, view in views.items()}
    with torch.no_grad():
        for name in ("smooth", "activation", "jump"):
            torch.testing.assert_close(views[name](x), by_hand(net, x, 0.4))
        assert torch.equal(views["undefended"](x), net(x))
    torch.testing.assert_close(gradients["undefended"], gradient(net, x))
    leaf = x.clone().requires_grad_(True)
    (own,) = torch.autograd.grad(by_hand(net, leaf, 0.4)[:, 0].sum(), leaf)
    torch.testing.assert_close(gradients["jump"], own)
    for name in ("smooth", "activation"):
        assert not torch.allclose(gradients[name], own)


def test_the_surrogates_slopes_in_one_unit() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False), nn.ReLU())
    net[1].weight.data = torch.tensor([[1.0], [0.0]])
    x = torch.tensor([0.1, 0.48, 0.52, 0.9]).view(4, 1, 1, 1)
    slopes = {s: gradient(attack_view(JumpReLUDefense(net, 0.5, surrogate=s).eval()), x).flatten() for s in SURROGATES}
    assert slopes["jump"].tolist() == [0, 0, 1, 1]
    assert slopes["activation"].tolist() == slopes["undefended"].tolist() == [1, 1, 1, 1]
    assert slopes["smooth"][0] < 0.01
    assert (slopes["smooth"][1:3] > 2).all()  # just below the threshold a unit is worth opening
    assert slopes["smooth"][3] == pytest.approx(1, abs=0.01)
    random = gradient(attack_view(RandomJumpReLUDefense(net, 0.2, 0.6)), x).flatten()
    torch.testing.assert_close(random, torch.tensor([0, (2 * 0.48 - 0.2) / 0.4, (2 * 0.52 - 0.2) / 0.4, 1]))


@pytest.mark.slow
def test_the_adaptive_attack_is_stronger_than_the_grey_box_one(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    data, attack = (digits[0][:60], digits[1][:60]), [DDN(steps=40)]
    defense = JumpReLUDefense(net, 0.3)
    found = evaluate(defense, data, attack, knowledge=["greybox", "adaptive"])
    plain = evaluate(net, data, attack)
    assert found.clean_accuracy > 0.85
    assert found.median_distance(knowledge="greybox") > 1.5 * found.median_distance()
    assert found.median_distance() < 1.5 * plain.median_distance()  # 1.1 to 1.3 for nets of other seeds


@pytest.mark.slow
def test_the_smooth_surrogate_is_the_strongest(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    data = digits[0][:60], digits[1][:60]
    medians = {
        s: evaluate(JumpReLUDefense(net, 0.3, surrogate=s), data, [DDN(steps=40)]).median_distance() for s in SURROGATES
    }
    assert min(medians, key=lambda s: medians[s]) == "smooth" == JumpReLUDefense(net).surrogate


def test_averaged_gradients_see_through_randomness(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    defense = RandomJumpReLUDefense(net, 0.12, 0.2, draws=4)
    attack = PGD(eps=0.15, steps=15)
    result = attack.run(defense, x, y, seed=0)
    assert result.success.float().mean() > attack.run(net, x, y, seed=0).success.float().mean() - 0.1
    assert torch.equal(result.x_adv, attack.run(defense, x, y, seed=0).x_adv)


@pytest.mark.parametrize("number", [0, 1])
def test_weights_go_out_and_in(number: int, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense, fresh = both(net)[number], both(SmallCNN())[number]
    assert list(defense.state_dict()) == [f"net.{name}" for name in net.state_dict()]
    fresh.load_state_dict(defense.state_dict())
    torch.manual_seed(5)
    expected = defense(digits[0][:1])
    torch.manual_seed(5)
    assert torch.equal(fresh(digits[0][:1]), expected)


def test_activations_with_weights_of_their_own() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 1, 2, 2)
    defense = JumpReLUDefense(net, 0.1)
    assert len(list(defense.parameters())) == len(list(net.parameters()))
    for view in (undefended(defense), attack_view(defense)):
        assert {id(p) for p in view.parameters()} == {id(p) for p in defense.parameters()}
    torch.testing.assert_close(undefended(defense)(x), net(x))
    fresh = JumpReLUDefense(copy.deepcopy(net), 0.1)
    fresh.load_state_dict(defense.state_dict())
    assert torch.equal(fresh(x), defense(x))


@pytest.mark.parametrize(
    "name", ["base_cnn_jumprelu", pytest.param("base_cnn_jumprelu_random", marks=pytest.mark.slow)]
)
def test_training_with_jumps_from_the_start(name: str, digits: tuple[Tensor, Tensor]) -> None:
    config = OmegaConf.to_container(OmegaConf.load(MODELS / f"{name}.yaml"))
    config.pop("weights")
    config["net"] |= {"num_classes": 10, "in_chans": 1, "image_size": 28}
    model = hydra.utils.instantiate(config)
    assert isinstance(undefended(model), BaseCNN)
    x, y = digits[0][:64], digits[1][:64]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]  # with the jump's own gradient nothing would move yet
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    back = build_net(config, {})  # as a checkpoint rebuilds it
    back.load_state_dict(model.state_dict())
    assert type(back) is type(model)


def test_what_cannot_be_defended_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="surrogate must be one of smooth, activation, jump, undefended, got 'relu'"):
        JumpReLUDefense(net, surrogate="relu")
    with pytest.raises(ValueError, match="has jumps already"):
        RandomJumpReLUDefense(nn.Sequential(nn.Flatten(), JumpReLU(0.1), nn.Linear(784, 10)))
