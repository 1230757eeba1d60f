"""The inner maximisation of adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustlit.attacks import BIM, FGSM, PGD
from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import LogOdds
from robustlit.threat import distance


class Recorder(nn.Module):
    """Keeps what went in and what came out; BatchNorm and dropout on the way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.dropout, self.net = nn.BatchNorm2d(1), nn.Dropout(0.2), net
        self.inputs: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.training_flags: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(self.dropout(self.norm(x)))
        self.inputs.append(x.detach().clone())
        self.logits.append(logits)
        self.training_flags.append(self.norm.training)
        return logits


def cross_entropy(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def by_hand(net: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, norm: str) -> Tensor:
    """Projected gradient ascent from x, as the paper has it."""
    z = x.clone()
    for _ in range(steps):
        z.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
        if norm == "linf":
            z = (z.detach() + step * g.sign()).clamp(x - eps, x + eps)
        else:
            delta = z.detach() + step * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            z = x + delta * torch.minimum(torch.ones(()), eps / length)
        z = z.clamp(0, 1)
    return z


@pytest.mark.parametrize(
    ("attack", "step"),
    [
        (FGSM(eps=0.1), 0.1),
        (FGSM(eps=0.1, step_size=0.05), 0.05),
        (BIM(eps=0.1, steps=8), 0.1 / 8),
        (PGD(eps=0.1, steps=8, step_size=0.03, random_start=False), 0.03),
        (PGD(eps=0.1, steps=8, random_start=False), 0.25 / 8),
        (PGD(eps=1.5, norm="l2", steps=8, random_start=False), 3.75 / 8),
    ],
    ids=str,
)
def test_every_example_takes_every_step_and_the_last_point_is_returned(
    attack: GradientAscent, step: float, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, x, y = net.double(), digits[0][:16].double(), digits[1][:16].clone()
    y[3] = (y[3] + 1) % 10  # wrong from the start, and pushed further all the same
    steps = getattr(attack, "steps", 1)
    for eps in (None, attack.eps / 2):
        scale = 1.0 if eps is None else 0.5
        found = attack.maximise(net, x, cross_entropy(y), eps=eps)
        expected = by_hand(net, x, y, attack.eps * scale, step * scale, steps, attack.norm)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(attack.maximise(net, x, LogOdds(y), eps=eps), expected, rtol=0, atol=1e-9)
        assert (net(found).argmax(1) != y).any()  # some became adversarial on the way, and went on
        assert not found.requires_grad
        assert (distance(found, x, attack.norm)[3] > 0).item()


def test_no_example_leaves_and_nothing_is_judged(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:16], digits[1][:16]
    model = Recorder(net).eval()
    PGD(eps=0.3, steps=5).maximise(model, x, cross_entropy(y))
    assert [len(z) for z in model.inputs] == [16] * 5


def test_random_starts_come_from_the_generator(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    for attack in (PGD(eps=0.1, steps=2), PGD(eps=1.0, norm="l2", steps=2), FGSM(eps=0.1, random_start=True)):
        torch.manual_seed(4)
        first, second = (attack.maximise(net, x, cross_entropy(y)) for _ in range(2))
        torch.manual_seed(4)
        assert torch.equal(attack.maximise(net, x, cross_entropy(y)), first)
        assert not torch.equal(first, second)
        for found in (first, second):
            assert (distance(found, x, attack.norm) <= attack.eps + 1e-6).all()
            assert found.min() >= 0
            assert found.max() <= 1


def test_no_budget_no_attack(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], digits[1][:4]
    model = Recorder(net)
    found = PGD(eps=0.3).maximise(model, x, cross_entropy(y), eps=0.0)
    assert torch.equal(found, x)
    assert model.inputs == []


def test_the_images_are_not_written_into(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4].clone(), digits[1][:4]
    for attack in (FGSM(eps=0.3), PGD(eps=0.3, steps=3), PGD(eps=2.0, norm="l2", steps=3)):
        attack.maximise(net, x, cross_entropy(y))
        assert torch.equal(x, digits[0][:4])


@pytest.mark.parametrize(
    ("ambient", "inside"),
    [(None, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
    ids=["fp32", "bf16", "fp16"],
)
def test_precision(
    ambient: torch.dtype | None, inside: torch.dtype, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:8], digits[1][:8]
    model = Recorder(net).eval()
    attack = PGD(eps=0.1, steps=3, random_start=False)
    exact = attack.maximise(model, x, cross_entropy(y))
    model.logits.clear()
    with torch.autocast("cpu", dtype=ambient, enabled=ambient is not None):
        found = attack.maximise(model, x, cross_entropy(y))
        assert torch.is_autocast_enabled("cpu") == (ambient is not None)
        assert ambient is None or torch.get_autocast_dtype("cpu") == ambient
    assert {logits.dtype for logits in model.logits} == {inside}
    assert found.dtype == torch.float32
    assert torch.equal(found, exact) == (inside == torch.float32)
    assert (distance(found, x, "linf") <= 0.1 + 1e-6).all()


@pytest.mark.parametrize("eval_mode", [True, False])
def test_modes_while_attacking(eval_mode: bool, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    model = Recorder(net).train()
    model.dropout.eval()
    modes = [module.training for module in model.modules()]
    seen = model.norm.num_batches_tracked.item()
    PGD(eps=0.1, steps=3).maximise(model, x, cross_entropy(y), eval_mode=eval_mode)
    assert model.training_flags == [not eval_mode] * 3
    assert [module.training for module in model.modules()] == modes
    assert model.norm.num_batches_tracked.item() - seen == (0 if eval_mode else 3)


def test_it_works_where_gradients_are_off(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    attack = PGD(eps=0.1, steps=3, random_start=False)
    x, y = digits[0][:8], digits[1][:8]
    expected = attack.maximise(net, x, cross_entropy(y))
    with torch.no_grad():
        assert torch.equal(attack.maximise(net, x, cross_entropy(y)), expected)
    with torch.inference_mode():
        inside = attack.maximise(net, x.clone(), lambda logits: F.cross_entropy(logits, y, reduction="none"))
    assert torch.equal(inside, expected)
    assert not inside.is_inference()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_stronger_inner_attack_finds_higher_loss(norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:64], digits[1][:64]
    eps = 0.1 if norm == "linf" else 1.5
    loss = [
        F.cross_entropy(net(attack.maximise(net, x, cross_entropy(y))), y).item()
        for attack in (
            PGD(eps=eps / 1000, norm=norm, steps=1),
            FGSM(eps=eps, norm=norm),
            PGD(eps=eps, norm=norm, steps=10),
        )
    ]
    assert loss[0] < loss[1] < loss[2]


def test_a_start_outside_the_box_is_for_training_alone(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    attack = FGSM(eps=0.3, random_start=True, step_size=0.375, start_in_box=False)
    model = Recorder(net)
    found = attack.maximise(model, x, cross_entropy(y))
    start = model.inputs[0]
    assert start.min() < -0.2
    assert start.max() > 1.2
    assert distance(start, x, "linf").max() <= 0.3 + 1e-6
    assert (found.min(), found.max()) == (0, 1)
    assert distance(found, x, "linf").max() <= 0.3 + 1e-6
    model.inputs.clear()
    attack.run(model, x, y, seed=0)
    assert all(seen.min() >= 0 and seen.max() <= 1 for seen in model.inputs)
    model.inputs.clear()
    FGSM(eps=0.3, random_start=True).maximise(model, x, cross_entropy(y))
    assert model.inputs[0].min() >= 0


class Operations(TorchDispatchMode):
    """Count what a GPU would have to launch: operations that are not views, forward and backward."""

    views = ("view", "detach", "expand", "unsqueeze", "squeeze", "select", "slice", "alias", "transpose", "empty")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket._qualified_op_name.partition("::")[2].strip("_")
        self.count += name not in (*self.views, "t", "unsafe_view", "empty_like", "new_empty", "as_strided")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ambient", [None, torch.bfloat16])
def test_a_step_takes_as_many_operations_as_in_a_bare_loop(
    ambient: torch.dtype | None, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:4], digits[1][:4]

    def bare(steps: int) -> None:
        low, high = (x - 0.1).clamp(min=0), (x + 0.1).clamp(max=1)
        z = x
        for _ in range(steps):
            z = z.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
            z = torch.clamp(z.detach() + 0.02 * g.sign(), low, high)

    def count(run: Callable[[int], object]) -> int:
        counts = []
        for steps in (5, 9):
            with Operations() as operations, torch.autocast("cpu", ambient, enabled=ambient is not None):
                run(steps)
            counts.append(operations.count)
        return (counts[1] - counts[0]) // 4

    ours = count(lambda steps: PGD(eps=0.1, steps=steps, step_size=0.02).maximise(net, x, LogOdds(y)))
    assert 10 < ours <= count(bare) + 1
