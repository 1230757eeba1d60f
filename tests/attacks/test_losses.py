"""When a criterion is reached, and the losses that increase towards it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Defended, Function
from torch import Tensor, nn

from robustlit.attacks import EOT, PGD, Square, Transfer
from robustlit.attacks.losses import Criterion, LogOdds, are_saturated, spread
from robustlit.classifier import names_class, predicted

NAN, INF = float("nan"), float("inf")


def test_when_a_criterion_is_reached() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [float("nan"), 3.0, 2.0], [1.0, float("inf"), 0.0]])
    label, target = torch.tensor([0, 0, 0, 0]), torch.tensor([2, 1, 1, 1])
    assert Criterion(label).reached(logits).tolist() == [False, True, True, True]
    assert Criterion(label, target).reached(logits).tolist() == [False, True, False, True]
    assert Criterion(label, torch.tensor([1, 2, 0, 0])).reached(logits).tolist() == [False] * 4
    chosen = Criterion(label, target).select(torch.tensor([1, 0]))
    assert chosen.target is not None
    assert chosen.target.tolist() == [1, 2]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("logits", "named"),
    [
        ([INF, 1.0, 2.0], 0),
        ([-INF, 1.0, 2.0], 2),  # an impossible class
        ([-INF, -INF, 2.0], 2),
        ([INF, -INF, 2.0], 0),
        ([INF, INF, 2.0], -1),
        ([-INF, -INF, -INF], -1),
        ([NAN, 1.0, 2.0], -1),
        ([NAN, INF, 2.0], -1),
        ([1.0, 2.0, NAN], -1),
        ([2.0, 2.0, 1.0], 0),  # a tie goes to the first
    ],
)
@pytest.mark.parametrize("rejects", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_logits_that_name_no_class_are_a_success_of_no_targeted_attack_and_of_every_other(
    logits: list[float], named: int, rejects: bool, dtype: torch.dtype
) -> None:
    scores = torch.tensor([logits], dtype=dtype)
    assert predicted(scores).tolist() == [named]
    assert names_class(scores).tolist() == [named >= 0]
    refused = rejects and named == 2
    for label in (0, 1):
        criterion = Criterion(torch.tensor([label]), rejects=rejects)
        reached = criterion.reached(scores)
        assert reached.tolist() == [named != label and not refused]
        assert criterion.prediction(scores, reached).tolist() == [named]
        for target in {0, 1} - {label}:
            assert criterion.targeting(torch.tensor([target])).reached(scores).tolist() == [named == target]


def test_a_refusal_counts_with_the_true_class() -> None:
    label = torch.tensor([0, 0, 0, 0])
    logits = torch.tensor(
        [[3.0, 1, 2, 0], [1, 3, 2, 0], [1, 3, 2, 4], [2, 1, 0, 2.5]]  # right, wrong, refused though wrong, refused
    )
    criterion = Criterion(label, rejects=True)
    assert criterion.reached(logits).tolist() == [False, True, False, False]
    assert criterion.margin(logits).tolist() == [-1, 2, -1, -1.5]
    assert (criterion.margin(logits) > 0).tolist() == criterion.reached(logits).tolist()
    assert criterion.other_logits(logits).argmax(1).tolist() == [2, 1, 1, 1]
    assert (criterion.log_odds(logits) - torch.tensor([[1.0, 2], [3, 2], [3, 2], [1, 0]]).logsumexp(1)).tolist() == (
        pytest.approx([-3, -1, -4, -2.5])
    )
    targeted = criterion.targeting(torch.tensor([1, 1, 1, 1]))
    assert targeted.reached(logits).tolist() == [False, True, False, False]
    assert targeted.margin(logits).tolist() == [-2, 1, -1, -1.5]
    assert criterion.classes(logits) == 3
    chosen = criterion.select(torch.tensor([2]))
    assert (chosen.rejects, len(chosen.label)) == (True, 1)


def test_of_votes_neither_the_label_nor_the_refusal_counts() -> None:
    votes = torch.tensor([[0.2, 0.6, 0.2], [0.2, 0.3, 0.5], [0.0, 0.4, 0.6]]).log()
    criterion = Criterion(torch.tensor([0, 0, 0]), share=0.48, rejects=True)
    assert criterion.reached(votes).tolist() == [True, False, False]
    assert criterion.prediction(votes, criterion.reached(votes)).tolist() == [1, 2, 2]


def test_log_odds_order_points_and_ascend_as_cross_entropy_does() -> None:
    logits = (torch.randn(50, 7, dtype=torch.float64) * 3).requires_grad_(True)
    y, target = torch.randint(7, (50,)), torch.randint(7, (50,))
    for criterion, cross_entropy in (
        (Criterion(y), F.cross_entropy(logits, y, reduction="none")),
        (Criterion(y, target), -F.cross_entropy(logits, target, reduction="none")),
    ):
        odds = criterion.log_odds(logits)
        (ours,) = torch.autograd.grad(odds.sum(), logits, retain_graph=True)
        (theirs,) = torch.autograd.grad(cross_entropy.sum(), logits)
        torch.testing.assert_close(F.normalize(ours, dim=1), F.normalize(theirs, dim=1))
        assert torch.equal(odds.argsort(), cross_entropy.argsort())
    even = torch.zeros(1, 2, dtype=torch.float64)  # the true class has half of the probability
    assert Criterion(torch.tensor([0])).log_odds(even).item() == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_slope_of_the_log_odds_is_their_gradient(dtype: torch.dtype, classes: int, scale: float) -> None:
    y = torch.randint(classes, (20,))
    logits = (torch.randn(20, classes, dtype=torch.float64) * scale).to(dtype).requires_grad_(True)
    odds = LogOdds(y)
    assert torch.equal(odds(logits), Criterion(y).log_odds(logits))
    (expected,) = torch.autograd.grad(odds(logits).sum(), logits)
    slope = odds.slope(logits.detach())
    assert slope.dtype == dtype
    torch.testing.assert_close(slope, expected)
    assert slope.gather(1, y.unsqueeze(1)).eq(-1).all()
    impossible = torch.tensor([[1.0, -torch.inf, -torch.inf]], dtype=dtype)  # no other class can be raised
    assert LogOdds(torch.tensor([0])).slope(impossible).isfinite().all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_ratio_of_too_few_logits_is_the_margin(classes: int, targeted: bool) -> None:
    label = torch.zeros(4, dtype=torch.int64)
    criterion = Criterion(label, label + 1 if targeted else None)
    logits = torch.randn(4, classes, dtype=torch.float64)
    if classes < (4 if targeted else 3):
        torch.testing.assert_close(criterion.dlr(logits), criterion.margin(logits))
    else:
        torch.testing.assert_close(criterion.dlr(logits * 7 + 3), criterion.dlr(logits))


def test_probabilities_do_make_an_attack_look_weaker(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    # What the warning about them says: where the softmax saturates, it hides the direction.
    x, y = digits[0][:100], digits[1][:100]
    attack = PGD(eps=0.1, steps=5, random_start=False)
    plain = attack.run(net, x, y).success.float().mean()

    with pytest.warns(UserWarning, match="probabilities"):
        masked = attack.run(Function(lambda z: (net(z) * 100).softmax(1)), x, y).success.float().mean()
    assert masked < plain - 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_guard_asks_for_a_little_more_than_the_boundary(dtype: torch.dtype) -> None:
    clean = torch.tensor([[10.0, 0.0, -1e9], [10.0, 9.0, -float("inf")]], dtype=dtype)
    plain = Criterion(torch.zeros(2, dtype=torch.int64))
    guarded = plain.with_rounding_margin(clean)
    assert guarded.min_margin is not None
    assert (guarded.min_margin > 1e-4 * torch.tensor([10.0, 1.0])).all()
    assert (guarded.min_margin < 0.2).all()  # a sentinel among the logits does not raise it
    near = torch.tensor([[0.0, 1e-5, -1.0], [0.0, 1e-5, -1.0]])
    far = torch.tensor([[0.0, 0.3, -1.0], [0.0, float("nan"), -1.0]])
    assert plain.reached(near).all()
    assert not guarded.reached(near).any()
    assert guarded.reached(far).all()  # no class at all is a success
    assert torch.equal(guarded.select(torch.tensor([1])).min_margin, guarded.min_margin[1:])
    votes = Criterion(torch.zeros(2, dtype=torch.int64), share=0.5)
    assert votes.with_rounding_margin(clean.float().log_softmax(1)).min_margin is None


@pytest.mark.parametrize("target", [None, 1])
def test_dlr_does_not_count_classes_that_nothing_predicts(target: int | None) -> None:
    possible = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.1, 1.5, 3.0, 1.4]])
    padded = torch.cat([possible, torch.full((2, 3), -INF)], 1).requires_grad_()
    label = torch.tensor([0, 2])
    criterion = Criterion(label, None if target is None else torch.tensor([target, target]))
    loss = criterion.dlr(padded)
    torch.testing.assert_close(loss, criterion.dlr(possible))
    (gradient,) = torch.autograd.grad(loss.sum(), padded)
    assert gradient[:, :4].isfinite().all()
    assert gradient[:, :4].any(1).all()
    few = padded.detach()[:, [0, 1, 4, 5, 6]]  # two possible classes: the ratio would be constant
    criterion = Criterion(torch.tensor([0, 0]))
    torch.testing.assert_close(criterion.dlr(few), criterion.margin(few))
    three = padded.detach()[:, [0, 1, 2, 4]]  # enough for the ratio of an untargeted attack, not for a targeted one
    criterion = Criterion(torch.tensor([0, 0]), torch.tensor([1, 1]))
    torch.testing.assert_close(criterion.dlr(three), criterion.margin(three))


@pytest.mark.parametrize("factor", [1e-6, 0.05])
def test_log_odds_of_nearly_equal_logits_follow_the_highest_other_one(factor: float) -> None:
    logits = torch.tensor([[9.0, 8.0, -4.0, -5.0, -6.0]])
    criterion = Criterion(torch.tensor([0]))
    assert criterion.scaled_to(logits) is criterion  # logits of usual nets stay as they are
    small = (factor * logits).requires_grad_()
    (gradient,) = torch.autograd.grad(criterion.scaled_to(small).log_odds(small).sum(), small)
    shares = gradient[0, 1:] / gradient[0, 1:].sum()
    assert shares[0] > 0.95
    scaled = Criterion(torch.tensor([0, 0])).scaled_to(torch.cat([logits, factor * logits]))
    assert scaled.scale is not None
    assert scaled.scale[0] == 1
    assert torch.equal(scaled.select(torch.tensor([1])).scale, scaled.scale[1:])  # type: ignore[arg-type]
    flat = torch.zeros(1, 5)
    assert criterion.scaled_to(flat) is criterion  # no spread to scale by
    shifted = criterion.scaled_to(small.detach() - 1e5).scale  # all are that low, so none is masked
    assert (shifted is None) == (factor < 1e-3)  # in float32 they are then equal
    # A masked class, as of a net that is restricted to some of its classes, does not hide that the others are alike.
    for masked in (-math.inf, -1e4, -1e9):
        beside = criterion.scaled_to(torch.cat([small.detach(), torch.full((1, 3), masked)], 1)).scale
        torch.testing.assert_close(beside, criterion.scaled_to(small.detach()).scale)


@pytest.mark.parametrize("how", ["itself", "random", "by its view", "transfer"])
def test_a_net_of_small_logits_is_attacked_as_the_net_itself(
    how: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    attack = PGD(eps=0.06, steps=20)

    def left(factor: float) -> int:
        scaled = Function(lambda z: factor * net(z))
        if how == "transfer":
            return int((~Transfer(attack, scaled).run(net, x, y, seed=0).success).sum())
        model = {"itself": scaled, "random": EOT(scaled, 1), "by its view": Defended(net, scaled)}[how]
        return int((~attack.run(model, x, y, seed=0).success).sum())

    assert abs(left(1e-3) - left(1.0)) <= 1
    deviation = float(spread(net(x).detach()).median())
    for aim in (0.6, 1.2, 1.9):  # nearly alike, too
        assert left(aim / deviation) <= left(1.0) + 1


def test_a_source_is_scaled_by_its_attack_view(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y, attack = digits[0][:60], digits[1][:60], PGD(eps=0.06, steps=20)
    view = Function(lambda z: 0.02 * net(z))
    found = [Transfer(attack, source).run(net, x, y, seed=0) for source in (net, Defended(net, view))]
    left = [int((~result.success).sum()) for result in found]
    assert abs(left[0] - left[1]) <= 1


def test_an_attack_without_gradients_asks_no_attack_view(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("the view was asked")

    x, y = digits[0][:4], digits[1][:4]
    attack = Square(eps=0.1, queries=5)
    defended = attack.run(Defended(net, Function(fails)), x, y, seed=0)
    assert torch.equal(defended.x_adv, attack.run(net, x, y, seed=0).x_adv)


def test_two_opposite_outputs_are_not_taken_for_a_saturated_tanh() -> None:
    cosines = torch.tensor([[0.999, -0.999], [-0.995, 0.995], [0.4, -0.4]])
    assert not are_saturated(cosines)
    assert are_saturated(torch.cat([cosines, torch.full((3, 1), -1.0)], 1))
