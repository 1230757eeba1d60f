"""Victim: gradients and Jacobians, pass counts, models that work in place, votes of stochastic models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.attacks.eot import EOT
from robustlit.attacks.victim import VOTES, Victim


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:8], digits[1][:8]


def sums(x: Tensor) -> Tensor:
    total = x.flatten(1).sum(1)
    return torch.stack([total, total.detach() * 0 + x.shape[1:].numel() / 2], 1)


def test_a_gradient_without_memory_of_its_own() -> None:
    # The gradient of a bare sum is one number expanded over the image; it cannot be written into.
    x, y = torch.full((3, 1, 4, 4), 0.6), torch.zeros(3, dtype=torch.int64)
    for norm in ("linf", "l2"):
        assert PGD(eps=0.8, norm=norm, steps=2, random_start=False).run(Function(sums), x, y).success.all()


def test_a_victim_counts_what_each_row_cost(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    with Victim(net, x) as victim:
        assert not victim.logits(x).requires_grad
        victim.logits(x[[2, 5]], torch.tensor([2, 5]))
        victim.gradient(x[[5]], lambda logits: logits[:, 0], torch.tensor([5]))
        victim.gradient(x, lambda logits: logits[:, 0])
        assert victim.passes.forwards.tolist() == [2, 2, 3, 2, 2, 4, 2, 2]
        assert victim.passes.backwards.tolist() == [1, 1, 1, 1, 1, 2, 1, 1]


def test_the_gradient_of_an_example_does_not_depend_on_its_batch(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    net, x = net.double(), batch[0].double()
    with Victim(net, x) as victim:
        _, losses, together = victim.gradient(x, lambda logits: logits.logsumexp(1))
        for i in range(len(x)):
            _, loss, alone = victim.gradient(x[i : i + 1], lambda logits: logits.logsumexp(1), torch.tensor([i]))
            torch.testing.assert_close(alone[0], together[i])
            torch.testing.assert_close(loss[0], losses[i])
    assert together.abs().amax() > 0


def _losses(logits: Tensor) -> Tensor:
    """Three quantities that mix the classes: (b, K) -> (b, 3)."""
    return torch.stack([logits[:, 0] ** 2, logits[:, 1] - logits[:, 3], logits.logsumexp(1)], 1)


@pytest.mark.parametrize("losses", [lambda logits: logits, _losses], ids=["logits", "losses"])
def test_the_jacobian_is_that_of_autograd_and_of_one_gradient_at_a_time(
    losses: Callable[[Tensor], Tensor], net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    net, x, rows = net.double(), batch[0].double()[:3], torch.tensor([4, 0, 3])
    expected = torch.func.vmap(torch.func.jacrev(lambda z: losses(net(z.unsqueeze(0)))[0]))(x)  # (b, k, ...)
    with Victim(net, batch[0]) as victim:
        logits, values, gradients = victim.jacobian(x, losses, rows)
        assert victim.passes.forwards.tolist() == [1, 0, 0, 1, 1, 0, 0, 0]
        assert victim.passes.backwards.tolist() == [values.shape[1] * n for n in (1, 0, 0, 1, 1, 0, 0, 0)]
        torch.testing.assert_close(gradients, expected)
        for k in range(values.shape[1]):
            again, value, gradient = victim.gradient(x, lambda logits, k=k: losses(logits)[:, k], rows)
            torch.testing.assert_close(gradient, gradients[:, k])
            torch.testing.assert_close(value, values[:, k])
            torch.testing.assert_close(again, logits)
    assert not any(value.requires_grad for value in (logits, values, gradients))


def test_a_jacobian_where_there_is_no_gradient(batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0]
    with Victim(nn.Sequential(nn.Flatten(), Function(lambda z: z.round()[:, :2])), x) as victim:
        assert not victim.jacobian(x, lambda logits: logits)[2].any()  # zero, not unknown
        with pytest.raises(ValueError, match="Sequential gives no gradient"):
            victim.jacobian(x, lambda logits: logits.detach())
        assert (victim.passes.backwards == 2).all()
    # A slope that is not finite at one pixel does not spoil the other pixels, classes or examples.
    with Victim(Function(Tensor.sqrt), z := torch.tensor([[0.0, 0.25], [0.25, 0.0]])) as victim:
        gradients = victim.jacobian(z, lambda logits: logits)[2]
    assert gradients.tolist() == [[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]]


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
def test_a_net_that_works_in_place_does_not_change_the_images(
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


def test_a_net_that_starts_to_work_in_place_later_is_an_error(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0]
    with Victim(Rough(net, "late"), x) as victim:
        victim.logits(x)
        victim.logits(x)
        with pytest.raises(ValueError, match=r"Rough changes its input in place, but did not on its first batch"):
            victim.logits(x.clone())


def test_which_nets_are_stochastic_and_which_see_themselves(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with Victim(net, batch[0]) as victim:
        assert victim.view_is_model
        assert (victim.draws, victim.is_stochastic) == (1, False)
    with Victim(model := EOT(net, 3), batch[0]) as victim:
        assert (victim.draws, victim.is_stochastic, victim.view_is_model) == (3, True, False)
    with Victim(model, batch[0], draws=1) as victim:  # as in training
        victim.gradient(batch[0], lambda logits: logits[:, 0])
        assert victim.passes.backwards.tolist() == [1] * 8


def test_one_forward_and_the_votes_of_a_stochastic_net(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with Victim(EOT(net, 3), batch[0]) as victim:
        assert torch.equal(victim.forward_once(batch[0]), net(batch[0]))
        assert victim.passes.forwards.tolist() == [1] * 8
        victim.logits(batch[0])
        assert victim.passes.forwards.tolist() == [1 + VOTES] * 8


def test_logits_that_are_not_finite_are_noted_also_where_an_example_is_in_several_rows() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0], [3e38, 3e38]])  # a sum that overflows
    x = torch.zeros(4, 1, 4, 4)
    with Victim(Function(lambda z: logits[: len(z)]), x) as victim:
        victim.logits(x[:3], torch.tensor([1, 1, 3]))
        assert victim.passes.finite.tolist() == [True, False, True, True]
        assert victim.passes.forwards.tolist() == [0, 2, 0, 1]
        victim.logits(x[:2], torch.tensor([1, 0]))
        assert victim.passes.finite.tolist() == [True, False, True, True]
