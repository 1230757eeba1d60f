"""EOT: randomised models, attacked in expectation and judged by votes of fresh draws."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import chain, count, cycle, repeat

import numpy as np
import pytest
import torch
from cases import Defended, Function
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD
from robustlit.attacks.eot import EOT
from robustlit.attacks.victim import VOTES, Victim
from robustlit.classifier import DefendedClassifier, attack_view, draws_of, is_stochastic, undefended


def dropped(x: Tensor) -> Tensor:
    """Leave a fifth of the pixels, others at each draw: the gradient of one draw knows nothing of the rest."""
    return x * (torch.rand_like(x) < 0.2) * 5


class Scripted(nn.Module):
    """Two classes; the share of draws that give class 1 rises from 0 to 1 with the mean pixel, on a fixed schedule."""

    def __init__(self, share: Callable[[Tensor], Tensor] = lambda mean: mean) -> None:
        super().__init__()
        self.share = share
        self.turn: Iterator[int] = cycle(range(VOTES))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        one = self.share(mean.detach()) * VOTES > next(self.turn) + 1e-3
        score = torch.where(one, 5.0, -5.0) + mean - mean.detach()
        return torch.stack([torch.zeros_like(score), score], 1)


def test_more_draws_see_more(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    model = nn.Sequential(Function(dropped), net)
    for attack in (FGSM(eps=0.1), BIM(eps=0.1, steps=4)):
        broken = {n: attack.run(EOT(model, n), x, y, seed=0).success.float().mean() for n in (1, 20)}
        assert broken[20] > broken[1] + 0.25


def test_one_lucky_draw_is_not_an_adversarial_example(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    model = nn.Sequential(Function(dropped), net)

    def wrong(x_adv: Tensor) -> Tensor:
        """The share of 100 draws that are misled."""
        with torch.no_grad():
            return torch.stack([model(x_adv).argmax(1) != y for _ in range(100)]).float().mean(0)

    attack = PGD(eps=0.08, steps=10)
    result = attack.run(EOT(model, 5), x, y, seed=0)
    share = wrong(result.x_adv)
    assert result.success.any()
    assert not result.success.all()
    assert share[result.success].min() > 0.25  # half of twenty, give or take the luck of the draws
    assert share[~result.success].max() < 0.75
    # Judged by one draw, as in AutoAttack's rand mode, points count that mislead hardly any other draw.
    lucky = attack.run(model, x, y, seed=0)
    assert (wrong(lucky.x_adv)[lucky.success] < 0.4).sum() >= 2


@pytest.mark.parametrize(("votes", "success"), [(0, False), (9, False), (10, True), (11, True), (20, True)])
def test_half_of_the_votes_decide(votes: int, success: bool) -> None:
    model = EOT(Scripted(lambda mean: torch.where(mean > 0.55, votes / VOTES, 0.0)), n=2)
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    for target in (None, torch.ones(3, dtype=torch.int64)):
        result = BIM(eps=0.3, steps=3).run(model, x, y, target=target, seed=0)
        assert result.success.tolist() == [success] * 3
        assert result.prediction.tolist() == [int(success)] * 3


def test_votes_against_the_label_count_together() -> None:
    def spread() -> EOT:
        """Return a model whose true class has 8 votes of 20, three others 4 each."""
        turn = cycle(9.0 * torch.eye(4)[[0, 0, 1, 2, 3]])
        slope = torch.tensor([0.0, 0.0, 1e-6, 0.0])
        return EOT(Function(lambda z: next(turn) + z.flatten(1).sum(1, keepdim=True) * slope), 5)

    x, y = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    result = BIM(eps=0.1, steps=2).run(spread(), x, y)
    assert result.success.all()
    assert (result.prediction != 0).all()
    for target in (1, 2, 3):
        assert not BIM(eps=0.1, steps=2).run(spread(), x, y, target=y + target).success.any()
    with Victim(net := spread(), x) as victim:
        votes, criterion = victim.logits(x), victim.criterion(y)
        assert criterion.reached(votes).all()
        assert criterion.prediction(votes, torch.tensor([False, True])).tolist()[0] == 0
        assert not victim.criterion(y, safely=True).reached(votes).any()
        assert victim.criterion(y, y).reached(votes).tolist() == [False, False]
    with Victim(net.model, x) as victim:
        assert victim.criterion(y, safely=True).share == 0
        assert victim.criterion(y).prediction(votes, torch.tensor([True, True])).tolist() == [0, 0]


def test_a_search_goes_on_until_the_recount_is_safe() -> None:
    # The share rises with the mean: 11 of 20 would be a majority, 13 make it safe.
    x, y = torch.full((1, 1, 2, 2), 0.5 - 1e-4), torch.zeros(1, dtype=torch.int64)
    result = BIM(eps=0.4, steps=40).run(EOT(Scripted(), n=1), x, y, seed=0)
    assert result.success.item()
    assert 13 / VOTES - 0.05 <= result.x_adv.mean() <= 13 / VOTES + 0.02


def test_an_example_that_was_not_attacked_is_not_called_robust() -> None:
    # Misclassified by the votes at first; the recount would go the other way.
    turns = chain([1.0] * VOTES, repeat(-1.0))
    model = EOT(Function(lambda z: torch.tensor([[0.0, next(turns)]]).repeat(len(z), 1)))
    result = BIM(eps=0.3, steps=3).run(model, torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    assert result.success.all()
    assert torch.equal(result.distance, torch.zeros(2))
    assert result.prediction.tolist() == [1, 1]


def fixed(*rows: list[float]) -> EOT:
    """Return a model whose draws give these logits in turn."""
    turn = cycle(rows)
    return EOT(Function(lambda z: torch.tensor([next(turn)]).repeat(len(z), 1)))


def test_the_votes() -> None:
    x = torch.zeros(2, 1, 2, 2)
    with Victim(fixed([3.0, 0.0, 0.0], [0.0, 900.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]), x) as victim:
        shares = victim.logits(x).exp()
        assert victim.passes.forwards.tolist() == [VOTES, VOTES]  # whatever the confidence of each
        torch.testing.assert_close(shares, torch.tensor([[0.25, 0.25, 0.5]] * 2), atol=2e-3, rtol=0)
        torch.testing.assert_close(shares.sum(1), torch.ones(2))
    # Among equal votes the probabilities decide.
    with Victim(fixed([1.0, 0.0], [0.0, 3.0]), x) as victim:
        assert victim.logits(x).argmax(1).tolist() == [1, 1]


@pytest.mark.faults
def test_draws_without_a_class_vote_for_none() -> None:
    x, zeros = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    right, wrong, lost = [9.0, 1.0, 2.0], [1.0, 9.0, 2.0], [math.nan, 300.0, 2.0]
    for rows, broken, prediction, misled in (
        ([right], False, 0, False),
        ([right] * 4 + [lost], False, 0, False),
        ([right] * 11 + [wrong] * 4 + [lost] * 5, False, 0, False),
        ([right] * 9 + [lost] * 11, True, -1, False),
        ([right] * 7 + [wrong] * 5 + [lost] * 8, True, -1, False),  # no class has more votes than none
        ([right] * 2 + [wrong] * 2 + [lost], True, 1, False),
        ([wrong] * 4 + [lost], True, 1, True),
        ([lost], True, -1, False),
        ([[math.inf, math.inf, 0.0]], True, -1, False),
        ([[math.inf, 1.0, 0.0]], False, 0, False),
        ([[1.0, math.inf, 0.0]], True, 1, True),
        ([[1.0, 0.0, -math.inf]], False, 0, False),
    ):
        with Victim(fixed(*rows), x) as victim:
            logits, criterion = victim.logits(x, torch.tensor([1, 0])), victim.criterion(zeros)
            reached = criterion.reached(logits)
            assert reached.tolist() == [broken] * 2
            assert criterion.prediction(logits, reached).tolist() == [prediction] * 2
            assert criterion.targeting(zeros + 1).reached(logits).tolist() == [misled] * 2
            assert not criterion.targeting(zeros + 2).reached(logits).any()
            assert victim.passes.finite.all() == (rows == [right])


def test_gradients_are_means_over_the_draws() -> None:
    def scaled() -> EOT:
        """Return a model whose first logit has the gradient 1, 2, 3, ... from draw to draw."""
        scale = count(1)
        return EOT(Function(lambda z: z.flatten(1)[:, :2] * torch.tensor([1.0, 10.0]) * next(scale)), 5)

    x = torch.rand(3, 1, 2, 2)
    with Victim(scaled(), x) as victim:
        logits, losses, gradient = victim.gradient(x, lambda z: z[:, 0])
        expected = torch.zeros(3, 4)
        expected[:, 0] = 3
        torch.testing.assert_close(gradient.flatten(1), expected)
        torch.testing.assert_close(losses, 3 * x[:, 0, 0, 0])
        torch.testing.assert_close(logits, x.flatten(1)[:, :2] * torch.tensor([3.0, 30.0]))
        assert victim.passes.forwards.tolist() == victim.passes.backwards.tolist() == [5] * 3
        assert not victim.view_is_model
    with Victim(scaled(), x) as victim:
        logits, losses, gradients = victim.jacobian(x[:2], lambda z: z, torch.tensor([0, 2]))
        assert gradients.shape == (2, 2, 1, 2, 2)
        torch.testing.assert_close(gradients.flatten(2)[:, 1, 1], torch.tensor([30.0, 30.0]))
        torch.testing.assert_close(gradients.flatten(2)[:, 0, 0], torch.tensor([3.0, 3.0]))
        torch.testing.assert_close(losses, logits)
        assert (victim.passes.forwards.tolist(), victim.passes.backwards.tolist()) == ([5, 0, 5], [10, 0, 10])


@pytest.mark.parametrize(
    "draw",
    [random.randint, lambda a, b: int(np.random.randint(a, b + 1)), lambda a, b: int(torch.randint(a, b + 1, ()))],
    ids=["random", "numpy", "torch"],
)
def test_a_seed_fixes_the_noise_and_leaves_the_generators(
    draw: Callable[[int, int], int], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:10], digits[1][:10]
    model, attack = EOT(Function(lambda z: net(z.roll((draw(-3, 3), draw(-3, 3)), (2, 3)))), 3), PGD(eps=0.05, steps=3)

    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = state()
    found = attack.run(model, x, y, seed=3)
    assert state() == before
    draw(-3, 3)  # the run does not depend on where the generators stand
    again = attack.run(model, x, y, seed=3)
    for name in ("x_adv", "success", "prediction", "forwards", "backwards"):
        assert torch.equal(getattr(found, name), getattr(again, name)), name
    assert not torch.equal(attack.run(model, x, y, seed=4).x_adv, found.x_adv)


def test_the_noise_of_one_batch_is_not_that_of_the_next(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    seen: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        seen.append(torch.randn_like(x))
        return net(x + 0.1 * seen[-1])

    model = EOT(Function(noise))
    firsts = []
    for index in (torch.arange(4), torch.arange(4) + 4, torch.arange(4)):
        seen.clear()
        FGSM(eps=0.05).run(model, digits[0][:4], digits[1][:4], index=index, seed=0)
        firsts.append(seen[0])
    assert torch.equal(firsts[0], firsts[2])
    assert (firsts[0] - firsts[1]).abs().mean() > 0.5


def test_noise_that_works_in_place_now_and_then(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    calls = count(1)

    def erases(x: Tensor) -> Tensor:
        if next(calls) % 3 == 0:
            x[:, :, 10:18, 10:18] = 0
        return net(x)

    x, y = digits[0][:10], digits[1][:10]
    x[:, :, 10:18, 10:18] = x[:, :, 10:18, 10:18].clamp_min(0.5)
    result = PGD(eps=0.1, steps=3, random_start=False).run(EOT(Function(erases), 2), x, y, seed=0)
    assert (result.distance <= 0.1 + 1e-6).all()
    assert result.x_adv[:, :, 10:18, 10:18].min() >= 0.4 - 1e-6


def test_the_attack_view_and_the_undefended_model_are_passed_on(net: nn.Module) -> None:
    plain = nn.Sequential(Function(dropped), net)
    model, around = EOT(Defended(net, net), 3), EOT(plain)
    assert isinstance(model, DefendedClassifier)
    assert (attack_view(model), undefended(model)) == (net, net)
    assert attack_view(around) is plain
    assert undefended(around) is around  # the bare net would be judged by single draws
    assert (is_stochastic(model), draws_of(model), draws_of(around)) == (True, 3, 20)
    assert {name.removeprefix("model.") for name in around.state_dict()} == set(plain.state_dict())
    assert "draws=3" in repr(model)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "20"])
def test_draws_out_of_range_are_refused(n: object, net: nn.Module) -> None:
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        EOT(net, n)
    model = EOT(net)
    model.draws = n
    with pytest.raises(ValueError, match="draws of EOT must be a whole number"):
        draws_of(model)
