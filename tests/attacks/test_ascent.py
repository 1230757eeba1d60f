"""Projected ascent step by step: which iterate is returned, what a restart does, and who judges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Defended
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, BudgetAttack
from robustlit.attacks.ascent import Ascent, AscentState, run_ascent
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.threat import Ball


class OfMean(nn.Module):
    """Two logits (0, score of the mean pixel); the gradient may be that of another function (straight-through)."""

    def __init__(
        self, score: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor] = lambda mean: mean
    ) -> None:
        super().__init__()
        self.score, self.slope = score, slope
        self.visited: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        self.visited.append(mean.detach().clone())
        surrogate = self.slope(mean)
        score = self.score(mean.detach()) + surrogate - surrogate.detach()
        return torch.stack([torch.zeros_like(score), score], 1)


def in_a_window(mean: Tensor) -> Tensor:
    """Class 1 only where the mean lies in (0.58, 0.62)."""
    return ((mean - 0.6).abs() < 0.02).float() - 0.5


def grey(examples: int, side: int = 4) -> tuple[Tensor, Tensor]:
    return torch.full((examples, 1, side, side), 0.5), torch.zeros(examples, dtype=torch.int64)


def test_an_adversarial_iterate_is_kept_though_the_ascent_would_pass_it() -> None:
    model, (x, y) = OfMean(in_a_window), grey(3)
    for attack in (BIM(eps=0.3, steps=10), PGD(eps=0.3, steps=10, step_size=0.03, random_start=False)):
        result = attack.run(model, x, y)
        assert result.success.all()
        assert ((result.x_adv.flatten(1).mean(1) - 0.6).abs() < 0.02).all()
        assert (result.backwards < 10).all()  # and it left there
    l2 = BIM(eps=1.2, norm="l2", steps=10).run(model, x, y)  # steps of 0.12 / 4 in the mean
    assert l2.success.all()


def test_an_ascent_over_a_peak_returns_the_peak() -> None:
    model, (x, y) = OfMean(lambda mean: -1 - (mean - 0.62).abs()), grey(2)  # never class 1; nearest at 0.62
    result = BIM(eps=0.3, steps=10).run(model, x, y)
    assert not result.success.any()
    torch.testing.assert_close(result.x_adv.flatten(1).mean(1), torch.full((2,), 0.62), atol=0.016, rtol=0)
    assert max(float(mean.max()) for mean in model.visited) > 0.79  # though it went on to the end


def test_the_best_restart_counts_and_not_the_last() -> None:
    model, (x, y) = OfMean(lambda mean: -1 - (mean - 0.5).abs()), grey(40, 1)  # the start decides: steps hardly move
    one, many = (
        PGD(eps=0.4, steps=1, step_size=1e-4, restarts=n).run(model, x, y, seed=0).distance.mean() for n in (1, 10)
    )
    assert one > 0.15  # 0.2 for a uniform start
    assert many < 0.07  # 0.036 for the best of ten


def test_restarts_start_elsewhere_and_only_unbroken_examples_go_on() -> None:
    model, (x, y) = OfMean(lambda mean: ((mean - 0.6).abs() < 0.04).float() - 0.5), grey(60, 1)  # a tenth of the ball
    attack = {n: PGD(eps=0.4, steps=1, step_size=1e-4, restarts=n) for n in (1, 30)}
    assert attack[1].run(model, x, y, seed=0).success.float().mean() < 0.3
    model.visited.clear()
    result = attack[30].run(model, x, y, seed=0)
    assert result.success.float().mean() > 0.85  # 1 - 0.9^30 = 0.96
    assert result.forwards.min() < 4  # an example broken in the first round takes no other
    assert result.forwards.max() > 20
    sizes = [len(mean) for mean in model.visited[1:-1]]
    assert sizes == sorted(sizes, reverse=True)
    starts = torch.cat(model.visited[1:-1])
    assert len(starts.unique()) > 0.9 * len(starts)


def test_an_attack_view_that_is_never_broken_does_not_hide_that_the_defense_is() -> None:
    model, (x, y) = Defended(OfMean(in_a_window), OfMean(lambda mean: mean - 50)), grey(3)
    result = BIM(eps=0.3, steps=10).run(model, x, y)
    assert result.success.all()
    assert ((result.x_adv.flatten(1).mean(1) - 0.6).abs() < 0.02).all()
    # One forward to judge the clean image, one of the view for the scale of its logits and one for the result; at each
    # iterate the view's and the real one.
    iterates = len(model.view.visited) - 1
    assert result.backwards.tolist() == [iterates] * 3
    assert result.forwards.tolist() == [3 + 2 * iterates] * 3


def test_the_best_attempt_against_a_defense_is_judged_by_the_defense() -> None:
    # The view's loss rises all the way, the real one's peaks early; neither is ever broken.
    model, (x, y) = Defended(OfMean(lambda mean: -1 - (mean - 0.56).abs()), OfMean(lambda mean: mean - 50)), grey(2)
    result = BIM(eps=0.3, steps=10).run(model, x, y)
    torch.testing.assert_close(result.x_adv.flatten(1).mean(1), torch.full((2,), 0.56), atol=0.016, rtol=0)


@pytest.mark.parametrize(
    ("attack", "steps"),
    [
        (FGSM(eps=0.03), 1),
        (BIM(eps=0.03, steps=5), 5),
        (PGD(eps=0.03, steps=4, restarts=3), 12),
        (PGD(eps=0.6, norm="l2", steps=5, random_start=False), 5),
    ],
    ids=str,
)
def test_an_unbroken_example_takes_every_step_of_every_restart(attack: BudgetAttack, steps: int) -> None:
    result = attack.run(OfMean(lambda mean: mean - 50), *grey(3), seed=0)
    assert not result.success.any()
    assert result.backwards.tolist() == [steps] * 3


def test_more_effort_breaks_no_less(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:100], digits[1][:100]
    attacks = (FGSM(eps=0.08), PGD(eps=0.08, steps=10), PGD(eps=0.08, steps=10, restarts=3))
    share = [attack.run(net, x, y, seed=0).success.float().mean().item() for attack in attacks]
    assert share == sorted(share)
    assert share[1] > share[0]
    by_budget = [PGD(eps=0.3, steps=10).run(net, x, y, seed=0, eps=e).success.float().mean() for e in (0.02, 0.06, 0.2)]
    assert by_budget[0] < by_budget[1] < by_budget[2]


def test_failed_points_are_ranked_by_the_criterion_not_by_the_class_aimed_at(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:8], digits[1][:8]
    criterion, at = Criterion(y), torch.arange(8)
    ball = Ball(x, torch.full((8,), 0.01), "linf")  # so small that none succeeds
    with Victim(net, x) as victim:
        keep = ~criterion.reached(victim.logits(x))
        for aim in (criterion, criterion.targeting((y + 1) % 10)):
            best = Best(x)
            images = AscentState(at, at, criterion, x, ball, aim, Draws(0, at))
            run_ascent(victim, best, images, Ascent([0.5, 0.5], None, Criterion.log_odds))
            expected = criterion.log_odds(victim.logits(best.points))
            recorded = keep & (best.scores > -torch.inf)
            assert recorded.any()
            torch.testing.assert_close(best.scores[recorded], expected[recorded])
