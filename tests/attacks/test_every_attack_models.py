"""The contract of every attack on unusual models: out of reach, constant, not finite, defended, stochastic."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, FIELDS, WRONG, Batch, Case, Defended, Function, N, each, quietly, same
from torch import Tensor, nn

from robustlit.attacks import BudgetAttack
from robustlit.attacks.eot import EOT
from robustlit.attacks.losses import Criterion
from robustlit.threat import distance


class OutOfReach(nn.Module):
    """A net whose lead for the labels cannot be overcome, and is uneven, so that the last point is rarely the best."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.net, self.label = net, F.one_hot(y, 10)
        self.visited: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.visited.append(x.detach().clone())
        lead = 300 + (1e3 * x.detach().flatten(1).sum(1, keepdim=True)).sin()
        return self.net(x) + lead * self.label


def _losses(case: Case, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """(k, b) the losses by which the attack of a case may rank points of one example."""
    criterion = Criterion(y, target).select(torch.zeros(len(logits), dtype=torch.int64))
    if "targets" in case.settings:  # the points of one run are ranked by the target of that run
        aims = [criterion.targeting(torch.full_like(criterion.label, k)) for k in range(10) if k != y]
        return torch.stack([aim.dlr(logits) for aim in aims])
    return torch.stack([criterion.margin(logits), criterion.log_odds(logits)])


@each
def test_a_failure_returns_the_best_point_that_was_visited(case: Case, net: nn.Module, batch: Batch) -> None:
    net, batch = net.double(), batch.double()
    for row in (0, 1, 5):
        one, y = torch.tensor([row]), batch.y[row : row + 1]
        target = None if case.attack.untargeted else batch.target[one]
        model = OutOfReach(net, y)
        result = batch.run(case, model, one)
        assert not result.success.item()
        visited = torch.cat(model.visited)
        visited = visited[(visited != batch.x[row]).flatten(1).any(1)]  # the image itself is not an attempt
        if isinstance(case.attack, BudgetAttack):  # AutoAttack's FAB looks outside the ball
            visited = visited[distance(visited, batch.x[one], case.attack.norm) <= case.attack.eps + 1e-6]
        with torch.no_grad():
            losses, found = (_losses(case, model(x), y, target) for x in (visited, result.x_adv))
        assert (losses <= found + 1e-6).all(1).any()


@each
@pytest.mark.parametrize("kind", ["constant", "tie", "stochastic"])
def test_a_model_that_never_changes_its_mind_is_not_broken(case: Case, kind: str, batch: Batch) -> None:
    batch.y = torch.full((N,), 0 if kind == "tie" else 9)
    logits = torch.zeros(10) if kind == "tie" else torch.arange(10.0)
    fixed = Function(lambda x: x.flatten(1).sum(1, keepdim=True) * 0 + logits)  # with a gradient of zero
    model = EOT(fixed, 2) if kind == "stochastic" else fixed
    result = quietly(case, batch, model)
    assert not result.success.any()
    assert result.finite.all()
    assert torch.equal(result.prediction, batch.y)
    assert result.x_adv.isfinite().all()
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
    if isinstance(case.attack, BudgetAttack):
        assert (result.distance <= case.attack.eps + 1e-6).all()


@each
@pytest.mark.parametrize("shift", [-1e3, 1e3], ids=["negative", "positive"])
def test_only_differences_of_logits_count(case: Case, shift: float, net: nn.Module, batch: Batch) -> None:
    net, batch = net.double(), batch.double()
    result, expected = batch.run(case, Function(lambda x: net(x) + shift)), batch.run(case, net)
    assert torch.equal(result.success, expected.success)
    torch.testing.assert_close(result.distance, expected.distance, rtol=1e-3, atol=1e-3)


@each
def test_confidence_is_not_robustness(case: Case, net: nn.Module, batch: Batch) -> None:
    # In float32 the gradient of the cross-entropy is zero here: it masked the weakness of defensive distillation
    # (Carlini, Wagner: Towards evaluating the robustness of neural networks, 2017, arXiv:1608.04644).
    confident = quietly(case, batch, Function(lambda x: net(x) * 1e4))
    assert confident.success.sum() >= batch.run(case, net).success.sum() - 1


class NotFiniteFor(nn.Module):
    """A net whose logits are not finite for one digit of a batch, from the start or once it has moved."""

    def __init__(self, net: nn.Module, batch: Batch, row: int, value: float, at_once: bool) -> None:
        super().__init__()
        self.net, self.batch, self.row, self.value, self.at_once = net, batch, row, value, at_once

    def forward(self, x: Tensor) -> Tensor:
        bad = self.batch.nearest(x) == self.row
        if not self.at_once:
            bad &= (x.detach() != self.batch.x[self.row]).flatten(1).any(1)
        return torch.where(bad.unsqueeze(1) & (torch.arange(10) != 1), self.value, self.net(x))


@pytest.mark.faults
@each
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_model_that_names_no_class_is_broken_unchanged(case: Case, stochastic: bool, batch: Batch) -> None:
    lost = Function(lambda x: x.flatten(1).sum(1, keepdim=True) * 0 + torch.full((10,), torch.nan))
    result = quietly(case, batch, EOT(lost, 2) if stochastic else lost)
    assert (result.success == case.attack.untargeted).all()
    assert not result.finite.any()
    assert (result.prediction == -1).all()
    assert result.x_adv.isfinite().all()
    assert not case.attack.untargeted or torch.equal(result.x_adv, batch.x)


@pytest.mark.faults
@each
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_mask_that_fails_in_the_ball_is_broken(case: Case, value: float, batch: Batch) -> None:
    """Wherever many pixels have changed a little, the net names no class; on every image it is right."""

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clean = batch.x[batch.nearest(x)]
            near = ((x.detach() - clean).abs() > 1e-4).flatten(1).sum(1, keepdim=True) > 20
            right = 9.0 * torch.nn.functional.one_hot(batch.y[batch.nearest(x)], 10)
            slope = x.flatten(1).sum(1, keepdim=True) * torch.linspace(0, 0.01, 10)
            return torch.where(near, value, right + slope)

    result = quietly(case, batch, Failing())
    if case.attack.name == "jsma":  # changes few pixels
        return
    assert result.success.all()
    assert (result.prediction == -1).all()
    assert (result.distance > 0).all()


@each
@pytest.mark.parametrize(
    ("value", "at_once"),
    [(torch.nan, False), (torch.inf, False), (-torch.inf, False), (torch.nan, True)],
    ids=["nan", "inf", "-inf", "nan-at-once"],
)
def test_logits_that_are_not_finite_stop_one_example_alone(
    case: Case, value: float, at_once: bool, net: nn.Module, batch: Batch
) -> None:
    net, batch, row, case = net.double(), batch.double(), 4, case.staying
    model = NotFiniteFor(net, batch, row, value, at_once)
    with pytest.warns(UserWarning, match=f"1 of {N} examples got logits that are not finite during {case.attack.name}"):
        result = batch.run(case, model)
    assert result.finite.tolist() == [k != row for k in range(N)]
    # -inf leaves one class, and not the right one.
    named = 1 if value == -torch.inf else -1
    assert result.success[row] == case.attack.untargeted
    assert result.prediction[row] == named or not case.attack.untargeted
    assert result.x_adv.isfinite().all()
    assert result.distance.isfinite().all()
    others = torch.tensor([k for k in range(N) if k != row])
    expected = batch.run(case, net, others)
    assert expected.success.any()
    for name in FIELDS:
        torch.testing.assert_close(getattr(result, name)[others], getattr(expected, name), rtol=0, atol=1e-9)


@each
def test_what_it_refuses_and_warns_about(case: Case, net: nn.Module, batch: Batch) -> None:
    attack, nothing = case.attack, torch.arange(0)
    with pytest.raises(ValueError, match="the batch is empty"):
        batch.run(case, net, nothing)
    with pytest.raises(ValueError, match="for uint8 use x"):
        Batch((batch.x * 255).byte(), batch.y, batch.index).run(case, net)
    with pytest.raises(ValueError, match="most likely normalised"):
        Batch(batch.x * 2 - 1, batch.y, batch.index).run(case, net)
    if not attack.targeted:
        with pytest.raises(ValueError, match="leave target out"):
            batch.run(case, net, target=batch.target)
    if not attack.untargeted:
        with pytest.raises(ValueError, match="needs the class to reach"):
            batch.run(case, net, target=None)
    with pytest.warns(UserWarning, match="Sequential returns probabilities"):
        batch.run(case, nn.Sequential(net, nn.Softmax(1)))


@each
def test_a_model_that_hides_its_gradient_is_not_called_robust(case: Case, net: nn.Module, batch: Batch) -> None:
    hides = Function(lambda x: net(x).detach())
    if case.kind_of_attack.goes_on_blind:
        warnings.simplefilter("error")  # the random search would take long
        with pytest.raises(UserWarning, match=r"random search alone.*far too high.*BPDA"):
            batch.run(case, hides)
    elif case.gradients:
        with pytest.raises(ValueError, match=r"Function gives no gradient .* not thereby robust"):
            batch.run(case, hides)
    else:
        same(batch.run(case, hides), batch.run(case, net), atol=0)


class Meter(nn.Module):
    """Counts the forwards and backwards of each digit of a batch."""

    def __init__(self, inner: Callable[[Tensor], Tensor], batch: Batch) -> None:
        super().__init__()
        self.inner, self.batch = inner, batch
        self.forwards, self.backwards = torch.zeros(2, N, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.batch.nearest(x)
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        if x.requires_grad:
            x.register_hook(lambda _: self._backward(rows))
        return self.inner(x)

    def _backward(self, rows: Tensor) -> None:
        self.backwards.index_add_(0, rows, torch.ones_like(rows))


@each
@pytest.mark.parametrize("defended", [False, True], ids=["plain", "defended"])
def test_every_pass_of_every_example_is_counted(case: Case, defended: bool, net: nn.Module, batch: Batch) -> None:
    model, view, case = Meter(net, batch), Meter(net, batch), case.staying
    result = batch.run(case, Defended(model, view) if defended else model)
    assert not (defended and model.backwards.any())
    backwards = model.backwards + view.backwards
    if case.attack.starts_at_image and not defended:
        backwards[WRONG] -= 1  # the misclassified digit was in the batch of the first gradient, not under attack
    assert torch.equal(result.forwards, model.forwards + view.forwards)
    assert torch.equal(result.backwards, backwards)
    assert bool(backwards.any()) == case.gradients
    assert len({*result.forwards.tolist()}) > 1 or case.kind == "FGSM"  # finished examples leave the batch


@each
def test_success_is_judged_on_the_defended_model_and_not_on_its_attack_view(
    case: Case, net: nn.Module, batch: Batch
) -> None:
    y, case = net(batch.x).argmax(1), case.staying
    batch.y = y

    unbroken = Function(lambda z: 8.0 * F.one_hot(y[batch.nearest(z)], 10) - 4.0)
    if not case.gradients:
        pytest.skip("it does not use the attack view")
    result = batch.run(case, Defended(unbroken, net))
    assert not result.success.any()
    assert torch.equal(result.prediction, batch.y)


@each
def test_a_defense_is_broken_through_its_attack_view(case: Case, net: nn.Module, batch: Batch) -> None:
    result = batch.run(case, model := Defended(Function(lambda x: net((x * 15).round() / 15)), net))
    assert result.success.sum() >= batch.run(case, net).success.sum() - 2  # such fine levels are hardly a defense
    with torch.no_grad():
        assert torch.equal(result.prediction, model(result.x_adv).argmax(1))


_SLOW = ("worst_case", "nearest_l2", "square-l2", "square", "carlini_wagner")  # 20 forwards for each look


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (str(case) in _SLOW)) for case in CASES]
)
def test_a_stochastic_model_is_judged_by_votes(case: Case, net: nn.Module, batch: Batch) -> None:
    noisy, case = Function(lambda x: net(x + 0.03 * torch.randn_like(x))), case.staying
    model, generator = EOT(Meter(noisy, batch), 2), torch.get_rng_state()
    result = batch.run(case, model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(model.model.forwards, result.forwards)
    assert torch.equal(model.model.backwards, result.backwards)
    assert (result.forwards >= 40).all()  # twenty to see whether it needs an attack, twenty to judge
    assert result.success[WRONG]
    with torch.no_grad():
        share = torch.stack([batch.reached(case, noisy(result.x_adv).argmax(1)) for _ in range(60)]).float().mean(0)
    assert (share[result.success] > 0.25).all()
    same(batch.run(case, model), result, atol=0)
    assert result.success.sum() >= batch.run(case, net).success.sum() - 2  # so little noise is hardly a defense
