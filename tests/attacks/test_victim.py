"""The traps of PyTorch: what an attack must leave as it found it, and where it must work all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD
from robustlit.attacks.eot import EOT
from robustlit.attacks.victim import Victim

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
    """Notes the state of the world at each forward; raises at the call numbered `fail_at`."""

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


def _world() -> tuple[object, ...]:
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
@pytest.mark.parametrize("fail_at", [None, 0, 2])
def test_every_flag_comes_back(
    prepare: Callable[[Tricky], object], fail_at: int | None, tricky: tuple[Tricky, Tensor, Tensor]
) -> None:
    net, x, y = tricky
    model = Spy(net, fail_at)
    prepare(net)
    before = _modes(model)
    if fail_at is None:
        ATTACK(model, x, y, seed=0)
        assert not any(seen["training"] for seen in model.seen)
        assert len(model.seen) > 4
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            ATTACK(model, x, y, seed=0)
    assert _modes(model) == before


def test_an_attack_on_a_net_in_training_is_the_attack_on_it_in_eval(tricky: tuple[Tricky, Tensor, Tensor]) -> None:
    net, x, y = tricky
    net.train()
    trained = ATTACK.run(net, x, y, seed=0)
    evaluated = ATTACK.run(net.eval(), x, y, seed=0)
    assert torch.equal(trained.x_adv, evaluated.x_adv)
    assert torch.equal(trained.success, evaluated.success)


@pytest.mark.parametrize("fail_at", [None, 2])
def test_nothing_of_the_net_is_touched(fail_at: int | None, tricky: tuple[Tricky, Tensor, Tensor]) -> None:
    net, x, y = tricky
    net.train()
    net.head.bias.grad = torch.full_like(net.head.bias, 3.0)
    state = copy.deepcopy(net.state_dict())
    wanted = {name: p.requires_grad for name, p in net.named_parameters()}
    with nullcontext() if fail_at is None else pytest.raises(RuntimeError):
        ATTACK(Spy(net, fail_at), x, y, seed=0)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == wanted
    assert wanted["conv.weight"] is False
    for name, p in net.named_parameters():
        if name == "head.bias":
            assert torch.equal(p.grad, torch.full_like(p, 3.0))
        else:
            assert p.grad is None, name
    for name, value in net.state_dict().items():  # BatchNorm's averages and count among them
        assert torch.equal(value, state[name]), name


def test_a_frozen_net_can_be_attacked(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    expected = ATTACK(net, *batch, seed=0)
    net.requires_grad_(False)
    assert torch.equal(ATTACK(net, *batch, seed=0), expected)
    assert not any(p.requires_grad for p in net.parameters())


def test_the_global_generator_rests_when_there_is_a_seed(tricky: tuple[Tricky, Tensor, Tensor]) -> None:
    net, x, y = tricky
    for model in (net, Noisy(net)):
        state = torch.get_rng_state()
        ATTACK(model, x, y, seed=0)
        assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="out of memory"):
        ATTACK(Noisy(Spy(net, 1)), x, y, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_the_generator_is_used(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(3)
    first, second = ATTACK(net, *batch), ATTACK(net, *batch)
    torch.manual_seed(3)
    assert torch.equal(ATTACK(net, *batch), first)
    assert not torch.equal(first, second)


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
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_evaluation_is_bit_for_bit_the_same_anywhere(
    around: Callable[[], AbstractContextManager[None]], norm: str, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    attack = PGD(eps=0.1 if norm == "linf" else 1.5, norm=norm, steps=4, restarts=2)
    x, y = batch
    eps, index, target = torch.linspace(0.01, 0.3, 8), torch.arange(8) + 5, (y + 1) % 10
    expected = attack.run(net, x, y, eps=eps, index=index, seed=2)
    aimed = attack.run(net, x, y, target=target, eps=eps, index=index, seed=2)
    with around():
        inside = [value.clone() for value in (x, y, eps, index, target)]  # inference tensors in inference mode
        model, before = Spy(net), _world()
        found = attack.run(model, inside[0], inside[1], eps=inside[2], index=inside[3], seed=2)
        assert _world() == before
        found_aimed = attack.run(net, inside[0], inside[1], target=inside[4], eps=inside[2], index=inside[3], seed=2)
        with pytest.raises(RuntimeError, match="out of memory"):
            attack.run(Spy(net, 1), inside[0], inside[1])
        assert _world() == before
    for state in model.seen:
        assert (state["inference"], state["autocast"], state["dtype"]) == (False, False, torch.float32)
    for a, b in ((found, expected), (found_aimed, aimed)):
        for name in ("x_adv", "success", "prediction", "distance", "forwards", "backwards"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not found.x_adv.is_inference()  # usable in training afterwards
    assert not found.x_adv.requires_grad


class FreshTwin(nn.Module):
    """A defense that builds its twin when asked, in train mode, with weights drawn from the global generator."""

    stochastic = False

    def __init__(self, net: nn.Module, dropout: float) -> None:
        super().__init__()
        self.net, self.dropout = net, dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 8).round() / 8)

    def attack_view(self) -> nn.Module:
        nn.Linear(4, 4)
        self.twin = [nn.Sequential(nn.Dropout(self.dropout), copy.deepcopy(self.net)).train()]
        return self.twin[0]

    def undefended(self) -> nn.Module:
        return self.net


def test_a_twin_built_on_the_fly(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model = FreshTwin(net, dropout=0.9)
    expected = ATTACK.run(FreshTwin(net, dropout=0.0), *batch, seed=0)
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = ATTACK.run(model, *batch, seed=0)
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.twin[0].modules())  # its flags are its own again


class Functional(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        total = self.function(x).flatten(1).sum(1) * self.scale
        return torch.stack([total, total.detach() * 0 + x.shape[1:].numel() / 2], 1)


def test_a_net_that_works_in_place_does_not_corrupt_the_images() -> None:
    x = torch.rand(4, 1, 3, 3) * 0.2 + 0.51  # class 0 by a mean above one half
    y = torch.zeros(4, dtype=torch.int64)
    gentle, rough = Functional(lambda x: x - 0.01), Functional(lambda x: x.sub_(0.01))
    for norm, eps in (("linf", 0.3), ("l2", 0.9)):
        attack = PGD(eps=eps, norm=norm, steps=5, random_start=False)
        expected, found = attack.run(gentle, x, y), attack.run(rough, x, y)
        assert torch.equal(found.x_adv, expected.x_adv)
        assert found.success.all()


def test_a_gradient_without_memory_of_its_own() -> None:
    # The gradient of a bare sum is one number expanded over the image; it cannot be written into.
    x, y = torch.full((3, 1, 4, 4), 0.6), torch.zeros(3, dtype=torch.int64)
    for norm in ("linf", "l2"):
        assert PGD(eps=0.8, norm=norm, steps=2, random_start=False).run(Functional(lambda x: x), x, y).success.all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.6)])
def test_a_gradient_that_is_not_finite_at_one_pixel_does_not_stop_the_attack(norm: str, eps: float) -> None:
    def root(x: Tensor) -> Tensor:
        x = x.clone()
        z = x.clone()
        z[:, :, 0, 0] = torch.sqrt(x[:, :, 0, 0])  # infinite slope at 0
        z[:, :, 1, 1] = torch.where(x[:, :, 1, 1] > 0, torch.sqrt(x[:, :, 1, 1]), torch.zeros(()))  # 0 * inf = NaN
        return z

    x, y = torch.full((2, 1, 4, 4), 0.62), torch.zeros(2, dtype=torch.int64)
    x[0, 0, 0, 0] = x[1, 0, 1, 1] = 0
    result = PGD(eps=eps, norm=norm, steps=10, random_start=False).run(Functional(root), x, y)
    assert result.x_adv.isfinite().all()
    assert result.success.all()
    assert (result.distance <= eps + 1e-6).all()


def test_a_compiled_net_is_attacked_like_the_net_itself(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    compiled = torch.compile(net.train(), backend="eager")
    expected = FGSM(eps=0.1)(net, *batch)
    assert torch.equal(FGSM(eps=0.1)(compiled, *batch), expected)
    assert all(module.training for module in net.modules())


def test_a_victim_counts_what_each_row_cost(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    with Victim(net, x) as victim:
        assert not victim.logits(x).requires_grad
        victim.logits(x[[2, 5]], torch.tensor([2, 5]))
        victim.gradient(x[[5]], lambda logits: logits[:, 0], torch.tensor([5]))
        victim.gradient(x, lambda logits: logits[:, 0])
        assert victim.forwards.tolist() == [2, 2, 3, 2, 2, 4, 2, 2]
        assert victim.backwards.tolist() == [1, 1, 1, 1, 1, 2, 1, 1]


def test_the_gradient_of_an_example_does_not_know_its_batch(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    net, x = net.double(), batch[0].double()
    with Victim(net, x) as victim:
        _, losses, together = victim.gradient(x, lambda logits: logits.logsumexp(1))
        for i in range(len(x)):
            _, loss, alone = victim.gradient(x[i : i + 1], lambda logits: logits.logsumexp(1), torch.tensor([i]))
            torch.testing.assert_close(alone[0], together[i])
            torch.testing.assert_close(loss[0], losses[i])
    assert together.abs().amax() > 0


def _smooth() -> nn.Module:
    """A small net without kinks, in float64, for finite differences."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def _losses(logits: Tensor) -> Tensor:
    """Three quantities that mix the classes and do not rise evenly: (b, 4) -> (b, 3)."""
    return torch.stack([logits[:, 0] ** 2, logits[:, 1] - logits[:, 3], logits.logsumexp(1)], 1)


def test_the_jacobian_is_that_of_finite_differences() -> None:
    net, x = _smooth(), torch.rand(5, 1, 3, 4, dtype=torch.float64)
    rows = torch.tensor([4, 0, 3])
    with Victim(net, x) as victim:
        logits, values, gradients = victim.jacobian(x[rows], _losses, rows)
        assert victim.forwards.tolist() == [1, 0, 0, 1, 1]
        assert victim.backwards.tolist() == [3, 0, 0, 3, 3]
    assert gradients.shape == (3, 3, 1, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(logits, net(x[rows]))
        torch.testing.assert_close(values, _losses(net(x[rows])))
        for pixel in range(12):
            step = torch.zeros(12, dtype=torch.float64)
            step[pixel] = 1e-6
            step = step.view(1, 1, 3, 4)
            slope = (_losses(net(x[rows] + step)) - _losses(net(x[rows] - step))) / 2e-6
            torch.testing.assert_close(gradients.flatten(2)[:, :, pixel], slope, rtol=0, atol=1e-7)
    assert not any(value.requires_grad for value in (logits, values, gradients))


def test_the_jacobian_is_that_of_autograd_and_of_one_gradient_at_a_time(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    net, x = net.double(), batch[0].double()[:3]
    expected = torch.func.vmap(torch.func.jacrev(lambda z: net(z.unsqueeze(0))[0]))(x)  # (b, K, ...)
    with Victim(net, x) as victim:
        logits, values, gradients = victim.jacobian(x, lambda logits: logits)
        torch.testing.assert_close(gradients, expected)
        assert torch.equal(logits, values)
        for k in range(10):
            again, value, gradient = victim.gradient(x, lambda logits, k=k: logits[:, k])
            torch.testing.assert_close(gradient, gradients[:, k])
            torch.testing.assert_close(value, values[:, k])
            torch.testing.assert_close(again, logits)
        one = victim.jacobian(x, lambda logits: logits[:, 3:4])
        torch.testing.assert_close(one[2], gradients[:, 3:4])


def test_a_jacobian_where_there_is_no_gradient(batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0]
    with Victim(nn.Sequential(nn.Flatten(), Rounds()), x) as victim:
        assert not victim.jacobian(x, lambda logits: logits)[2].any()  # zero, not unknown
        with pytest.raises(ValueError, match="Sequential gives no gradient"):
            victim.jacobian(x, lambda logits: logits.detach())
        assert (victim.backwards == 2).all()
    # A slope that is not finite at one pixel does not spoil the other pixels, classes or examples.
    with Victim(Roots(), z := torch.tensor([[0.0, 0.25], [0.25, 0.0]])) as victim:
        gradients = victim.jacobian(z, lambda logits: logits)[2]
    assert gradients.tolist() == [[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]]


class Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()[:, :2]


class Roots(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Rough(nn.Module):
    """Halves its input in place: as autograd sees it, behind its back, or from the third pass on only."""

    def __init__(self, net: nn.Module, how: str) -> None:
        super().__init__()
        self.net, self.how, self.passes = net, how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.how == "open" or (self.how == "late" and self.passes > 2):
            return self.net(x.mul_(0.5))
        if self.how == "hidden":
            x.data.mul_(0.5)
            return self.net(x)
        return self.net(x * 0.5)


@pytest.mark.parametrize("how", ["open", "hidden"])
def test_every_call_shields_the_images_from_a_net_that_works_in_place(
    how: str, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x = batch[0]
    before = x.clone()
    answers = []
    for model in (Rough(net, "never"), Rough(net, how)):
        with Victim(model, x) as victim:
            first = victim.gradient(x, lambda logits: logits[:, 0])  # a leaf that wants gradients, before all else
            answers.append([*first, victim.logits(x), victim.logits(x), *victim.jacobian(x, lambda logits: logits)])
        assert torch.equal(x, before)
    # Behind autograd's back the halving has no gradient.
    for number, (gentle, rough) in enumerate(zip(*answers, strict=True)):
        scale = 0.5 if how == "hidden" and number in (2, 7) else 1.0
        torch.testing.assert_close(rough * scale, gentle, msg=f"answer {number}")


def test_a_net_that_takes_to_working_in_place_later_is_told(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0]
    with Victim(Rough(net, "late"), x) as victim:
        victim.logits(x)
        victim.logits(x)
        with pytest.raises(ValueError, match=r"Rough changes its input in place, but did not on its first batch"):
            victim.logits(x.clone())


def test_a_stochastic_net_is_told_from_one_that_sees_itself(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with Victim(net, batch[0]) as victim:
        assert victim.sees_itself
        assert (victim.draws, victim.is_stochastic) == (1, False)
    with Victim(model := EOT(net, 3), batch[0]) as victim:
        assert (victim.draws, victim.is_stochastic, victim.sees_itself) == (3, True, False)
    with Victim(model, batch[0], draws=1) as victim:  # as in training
        victim.gradient(batch[0], lambda logits: logits[:, 0])
        assert victim.backwards.tolist() == [1] * 8


def test_modes_come_back_around_a_stochastic_net(tricky: tuple[Tricky, Tensor, Tensor]) -> None:
    net, x, y = tricky
    model = EOT(Spy(net), 2)
    model.train()
    before = _modes(model)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    ATTACK(model, x, y, seed=0)
    assert not any(seen["training"] for seen in model.model.seen)
    assert _modes(model) == before
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    model.model.fail_at = len(model.model.seen) + 3
    with pytest.raises(RuntimeError, match="out of memory"):
        ATTACK(model, x, y, seed=0)
    assert _modes(model) == before
