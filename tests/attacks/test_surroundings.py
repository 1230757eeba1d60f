"""What an attack restores, also after an error: modes, gradients, precision and random generators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD, Square
from robustlit.attacks.eot import EOT

ATTACK = PGD(eps=0.02, steps=3, restarts=2)


class Tricky(nn.Module):
    """BatchNorm, dropout, a frozen layer, and a `train()` that keeps the first BatchNorm frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.norm2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 6 * 6, 10)
        self.conv.weight.requires_grad_(False)
        for norm in (self.norm, self.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def train(self, mode: bool = True) -> Tricky:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm2(self.conv2(self.norm(self.conv(x)).relu())).relu()
        return self.head(self.dropout(z).flatten(1))


class Spy(nn.Module):
    """Records PyTorch's state at each forward; raises at the call numbered `fail_at`."""

    def __init__(self, inner: nn.Module, fail_at: int | None = None) -> None:
        super().__init__()
        self.inner, self.fail_at = inner, fail_at
        self.seen: list[dict[str, object]] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(self.seen) == self.fail_at:
            raise RuntimeError("out of memory")
        logits = self.inner(x)
        self.seen.append(
            {
                "training": any(module.training for module in self.modules()),
                "inference": torch.is_inference_mode_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
                "dtype": logits.dtype,
            }
        )
        return logits


class Noisy(nn.Module):
    """Draws from the global generator at every forward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x + 0.1 * torch.randn_like(x)).clamp(0, 1))


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def _state() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:8], digits[1][:8]


@pytest.fixture
def tricky(batch: tuple[Tensor, Tensor]) -> tuple[Tricky, Tensor, Tensor]:
    """A net, and images with the classes that it gives them, so that each of them is attacked."""
    net, x = Tricky(), batch[0]
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    return net, x, y


@pytest.mark.parametrize(
    "prepare",
    [
        lambda net: net.train(),
        lambda net: net.eval(),
        lambda net: nn.Module.train(net),  # even the layer that its own train() freezes
        lambda net: net.eval().dropout.train(),  # Monte-Carlo dropout
        lambda net: net.train().conv2.eval(),
    ],
    ids=["train", "eval", "all-train", "only-dropout", "one-off"],
)
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "stochastic"])
@pytest.mark.parametrize("fail_at", [None, 0, 2])
def test_the_model_is_left_as_it_was_also_after_an_error(
    prepare: Callable[[Tricky], object], fail_at: int | None, stochastic: bool, tricky: tuple[Tricky, Tensor, Tensor]
) -> None:
    net, x, y = tricky
    spy = Spy(net, fail_at)
    model = EOT(Noisy(spy), 2) if stochastic else spy
    prepare(net)
    net.head.bias.grad = torch.full_like(net.head.bias, 3.0)
    modes, state, generator = _modes(model), copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="out of memory"):
        ATTACK(model, x, y, seed=0)
    assert fail_at is not None or len(spy.seen) > 4
    assert not any(seen["training"] for seen in spy.seen)
    assert _modes(model) == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["conv.weight"]
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.bias"]
    assert torch.equal(net.head.bias.grad, torch.full_like(net.head.bias, 3.0))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())  # BatchNorm's averages too


def test_a_frozen_net_can_be_attacked(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    expected = ATTACK(net, *batch, seed=0)
    net.requires_grad_(False)
    assert torch.equal(ATTACK(net, *batch, seed=0), expected)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    ],
    ids=["no_grad", "inference_mode", "bf16", "fp16", "bf16-uncached"],
)
def test_the_surrounding_mode_changes_nothing_and_is_restored(
    around: Callable[[], AbstractContextManager[None]], net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    expected = ATTACK(net, x, y, seed=2)
    with around():
        model, before = Spy(net), _state()
        assert torch.equal(ATTACK(model, x.clone(), y.clone(), seed=2), expected)
        assert _state() == before
        with pytest.raises(RuntimeError, match="out of memory"):
            ATTACK(Spy(net, 1), x.clone(), y.clone())
        assert _state() == before
    for state in model.seen:
        assert (state["inference"], state["autocast"], state["dtype"]) == (False, False, torch.float32)


class BuildsItsView(nn.Module):
    """A defense that builds its attack view when asked, in train mode, drawing from the global generator."""

    stochastic = False

    def __init__(self, net: nn.Module, dropout: float) -> None:
        super().__init__()
        self.net, self.dropout = net, dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 8).round() / 8)

    def attack_view(self) -> nn.Module:
        nn.Linear(4, 4)
        self.view = [nn.Sequential(nn.Dropout(self.dropout), copy.deepcopy(self.net)).train()]
        return self.view[0]

    def undefended(self) -> nn.Module:
        return self.net


def test_an_attack_view_that_is_built_when_asked_for(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model = BuildsItsView(net, dropout=0.9)
    expected = ATTACK.run(BuildsItsView(net, dropout=0.0), *batch, seed=0)
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = ATTACK.run(model, *batch, seed=0)
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.view[0].modules())  # its flags are its own again


def test_a_compiled_net_is_attacked_like_the_net_itself(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    compiled = torch.compile(net.train(), backend="eager")
    expected = FGSM(eps=0.1)(net, *batch)
    assert torch.equal(FGSM(eps=0.1)(compiled, *batch), expected)
    assert all(module.training for module in net.modules())


class _Seeding(nn.Module):
    """A net that seeds PyTorch in its forward, so that all random numbers drawn after it repeat."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return self.net(x)


def test_a_net_that_seeds_pytorch_is_searched_as_any_other(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    torch.manual_seed(1)
    plain, seeding = (Square(eps=0.1, queries=300).run(each, x, y).success for each in (net, _Seeding(net)))
    torch.manual_seed(1)
    assert torch.equal(Square(eps=0.1, queries=300).run(_Seeding(net), x, y).success, plain)
    assert abs(int(seeding.sum()) - int(plain.sum())) <= 4
    torch.manual_seed(1)
    first, other = (Square(eps=0.1, queries=20).run(net, x, y).x_adv for _ in range(2))
    assert not torch.equal(first, other)
