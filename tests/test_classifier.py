import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BPDA, FGSM
from robustlit.classifier import (
    DefendedClassifier,
    attack_view,
    check_labels,
    check_logits,
    check_not_hidden,
    draws_of,
    is_stochastic,
    undefended,
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
        (torch.zeros(5, 1), ["K >= 2", "(5, 1)"]),
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
        (torch.tensor([0, 1, 3]), ["[0, 2]", "3 outputs", "[0, 3]"]),
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


def test_a_module_around_a_defense_must_not_hide_it() -> None:
    hiding = [
        nn.Sequential(OnlyAView()),
        nn.Sequential(nn.Identity(), nn.Sequential(Defended(), nn.Identity())),
        nn.DataParallel(Defended()),
        torch.optim.swa_utils.AveragedModel(Defended()),
    ]
    for model in hiding:
        with pytest.raises(ValueError, match=f"{type(model).__name__} hides the (Defended|OnlyAView)"):
            check_not_hidden(model)
        with pytest.raises(ValueError, match="hides the"):
            FGSM(eps=0.1).run(model, torch.rand(2, 4), torch.zeros(2, dtype=torch.int64))
    rounding = BPDA(torch.round)  # its gradient works inside any module
    for model in (Defended(), OnlyAView(), nn.Sequential(rounding, nn.Linear(4, 3)), torch.compile(Defended())):
        check_not_hidden(model)
