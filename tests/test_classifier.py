from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from robustlit.attacks import BPDA, EOT, FGSM
from robustlit.classifier import (
    DefendedClassifier,
    attack_view,
    can_reject,
    check_labels,
    check_logits,
    check_not_hidden,
    default_batch_size,
    draws_of,
    is_stochastic,
    undefended,
    unwrapped,
)


class Defended(nn.Module):
    stochastic = True

    def __init__(self) -> None:
        super().__init__()
        self.net, self.view = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.round())

    def attack_view(self) -> nn.Module:
        return self.view

    def undefended(self) -> nn.Module:
        return self.net


class OnlyAView(nn.Module):
    """A defense without the other attributes of a defended classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.round())

    def attack_view(self) -> nn.Module:
        return self.net


class Wrapper(nn.Module):
    """Passes unknown attributes on to what it wraps, as `torch.compile` does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_plain_net_is_its_own_attack_view() -> None:
    net = nn.Linear(4, 3)
    assert attack_view(net) is net
    assert undefended(net) is net
    assert is_stochastic(net) is False
    assert not isinstance(net, DefendedClassifier)


def test_a_defended_classifier_has_its_own_attack_view() -> None:
    model = Defended()
    assert isinstance(model, DefendedClassifier)
    assert attack_view(model) is model.view
    assert undefended(model) is model.net
    assert is_stochastic(model) is True
    model.stochastic = False
    assert is_stochastic(model) is False


def test_an_attack_view_alone_is_enough_for_the_adaptive_attack() -> None:
    model = OnlyAView()
    assert attack_view(model) is model.net
    assert undefended(model) is model
    assert is_stochastic(model) is False


def test_a_wrapper_does_not_hide_the_defense() -> None:
    model = Defended()
    wrapped = Wrapper(model)
    assert attack_view(wrapped) is model.view
    assert undefended(wrapped) is model.net
    assert is_stochastic(wrapped) is True


def test_a_layer_called_stochastic_does_not_make_the_net_stochastic() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    net.stochastic = nn.Dropout(0.5)
    assert is_stochastic(net) is False


def test_draws_count_for_stochastic_models_only() -> None:
    model = Defended()
    assert draws_of(model) == 20
    model.draws = 5
    assert draws_of(model) == draws_of(Wrapper(model)) == 5
    model.stochastic = False
    assert draws_of(model) == 1
    assert draws_of(nn.Linear(4, 3)) == 1
    model.stochastic = True
    for draws in (0, -3, 2.5, True, None, torch.tensor(3)):
        model.draws = draws
        with pytest.raises(ValueError, match=r"draws of Defended must be a whole number of at least 1, got"):
            draws_of(model)


@pytest.mark.parametrize(
    ("logits", "parts"),
    [
        (torch.zeros(5), ["(B, K)", "(5,)"]),
        (torch.zeros(5, 1), ["K >= 2", "(5, 1)", "return torch.stack([0 * z, z], 1)"]),
        (torch.zeros(5, 3, 8, 8), ["(5, 3, 8, 8)", "one score for each class"]),
        (torch.zeros(4, 3), ["batch of 5", "(4, 3)"]),
        (torch.zeros(5, 3, 1), ["(B, K)", "(5, 3, 1)"]),
        ((torch.zeros(5, 3), None), ["tuple", "wrap"]),
        ({"logits": torch.zeros(5, 3)}, ["dict", "wrap"]),
        (None, ["NoneType"]),
        (torch.zeros(5, 3, dtype=torch.int64), ["torch.int64", "scores"]),
        (torch.zeros(5, 3, dtype=torch.bool), ["torch.bool", "scores"]),
    ],
)
def test_outputs_that_are_not_logits_are_refused(logits: object, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="the model must return logits") as caught:
        check_logits(logits, 5)
    for part in parts:
        assert part in str(caught.value)


def test_logits_are_returned_unchanged() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        logits = torch.zeros(5, 2, dtype=dtype)
        assert check_logits(logits, 5) is logits


@pytest.mark.parametrize(
    ("y", "parts"),
    [
        (torch.tensor([0, 1, 3]), ["[0, 2]", "3 outputs", "[0, 3]", "number the classes from 0"]),
        (torch.tensor([0, -1, 2]), ["[0, 2]", "[-1, 2]"]),
        (torch.tensor([0.0, 1.0, 2.0]), ["integers", "torch.float32"]),
        (torch.tensor([0, 1]), ["(3,)", "(2,)"]),
        (torch.tensor([[0], [1], [2]]), ["(3,)", "(3, 1)"]),
        (torch.tensor(1), ["(3,)", "()"]),
    ],
)
def test_bad_labels_are_refused_by_name(y: Tensor, parts: list[str]) -> None:
    for name in ("labels", "target"):
        with pytest.raises(ValueError, match=f"{name} must") as caught:
            check_labels(y, 3, 3, name=name)
        for part in parts:
            assert part in str(caught.value)


def test_good_labels_pass() -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8):
        check_labels(torch.tensor([0, 2, 1], dtype=dtype), 3, 3)
    check_labels(torch.tensor([0, 99, 1]), 3)  # the number of classes is not known yet


class Calls(nn.Module):
    """Calls what it is given, which it does not register."""

    def __init__(self, held: Any, call: Callable[[Any, Tensor], Tensor] = lambda held, x: held(x)) -> None:
        super().__init__()
        self.held, self.call = [held], call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.held[0], x)


def test_a_module_around_a_defense_must_not_hide_it() -> None:
    defense = OnlyAView()
    hiding = [
        nn.Sequential(nn.Identity(), OnlyAView()),
        nn.Sequential(nn.Identity(), nn.Sequential(Defended(), nn.Identity())),
        nn.DataParallel(nn.Sequential(nn.Identity(), Defended())),
        torch.compile(nn.Sequential(nn.Identity(), Defended())),
        Calls(Defended()),
        Calls({"net": (defense,)}, lambda held, x: held["net"][0](x)),
        Calls(defense.forward),
        Calls(partial(lambda net, x: net(x), defense)),
        Calls(lambda x: defense(x)),
        torch.compile(Calls(defense)),
    ]
    for model in hiding:
        with pytest.raises(ValueError, match=f"{type(model).__name__} hides the (Defended|OnlyAView)"):
            check_not_hidden(model)
        with pytest.raises(ValueError, match="hides the"):
            FGSM(eps=0.1).run(model, torch.rand(2, 4), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(ValueError, match="hides the"):
            EOT(model)
    rounding = BPDA(torch.round)  # its gradient works inside any module
    for model in (Defended(), OnlyAView(), nn.Sequential(rounding, nn.Linear(4, 3)), torch.compile(Defended())):
        check_not_hidden(model)


_FAR = {"defense": OnlyAView()}  # of which no object in the model knows


class Global(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _FAR["defense"](x)


class DefendedByAPart(Defended):
    """Its attack view hides another defense."""

    def attack_view(self) -> nn.Module:
        return Global()


@pytest.mark.parametrize("model", [Global(), DefendedByAPart()])
def test_a_defense_that_only_a_forward_reaches_is_found(model: nn.Module) -> None:
    check_not_hidden(model)
    x = torch.rand(2, 4)
    y = model(x).argmax(1)  # of images that are wrong already no gradient is taken
    with pytest.raises(ValueError, match="Global hides the OnlyAView"):
        FGSM(eps=0.1).run(model, x, y)
    handle = register_module_forward_pre_hook(lambda module, inputs: None)
    assert len(handle.hooks_dict_ref()) == 1  # this one: no hook of the attack is left
    handle.remove()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        nn.Sequential,
        torch.compile,
        lambda model: nn.DataParallel(torch.compile(nn.Sequential(model))),
    ],
)
def test_a_wrapper_that_changes_nothing_is_seen_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Defended()
    model.draws, model.rejects = 3, True
    wrapped = wrap(model)
    inner = unwrapped(wrapped)
    assert type(inner) is Defended
    assert attack_view(wrapped) is inner.view
    assert undefended(wrapped) is inner.net
    assert is_stochastic(wrapped)
    assert can_reject(wrapped)
    assert draws_of(wrapped) == 3
    check_not_hidden(wrapped)
    plain = wrap(nn.Linear(4, 3))
    assert attack_view(plain) is undefended(plain) is plain


@pytest.mark.parametrize(
    ("shape", "images"),
    [
        ((1, 28, 28), 500),
        ((3, 32, 32), 500),
        ((9, 3, 64, 64), 125),
        ((3, 32, 64), 250),
        ((3, 224, 224), 32),
        ((7,), 500),
    ],
)
def test_large_images_are_fewer_at_once(shape: tuple[int, ...], images: int) -> None:
    assert default_batch_size(shape) == images
