"""What counts as a success, what a failure returns, and what both cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, BudgetAttack
from robustlit.attacks.losses import Criterion
from robustlit.classifier import undefended
from robustlit.threat import distance

ALL = [
    FGSM(eps=0.1),
    FGSM(eps=1.0, norm="l2", random_start=True),
    BIM(eps=0.1, steps=5),
    PGD(eps=0.1, steps=5, restarts=2),
    PGD(eps=1.0, norm="l2", steps=5, restarts=2),
]


def _name(attack: BudgetAttack) -> str:
    return f"{attack.name}-{attack.norm}"


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


@pytest.mark.parametrize("attack", ALL, ids=_name)
def test_a_misclassified_example_comes_back_as_it_was(
    attack: BudgetAttack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:12], net(digits[0][:12]).argmax(1)
    wrong = torch.zeros(12, dtype=torch.bool)
    wrong[[0, 3, 11]] = True
    result = attack.run(net, x, torch.where(wrong, (y + 1) % 10, y), seed=0)
    assert result.success[wrong].all()
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert torch.equal(result.distance[wrong], torch.zeros(3))
    assert torch.equal(result.prediction[wrong], y[wrong])
    assert torch.equal(result.backwards[wrong], torch.zeros(3, dtype=torch.int64))
    assert (result.distance[~wrong] > 0).all()
    everyone = attack.run(net, x, (y + 1) % 10, seed=0)
    assert everyone.success.all()
    assert torch.equal(everyone.x_adv, x)


@pytest.mark.parametrize("attack", ALL, ids=_name)
def test_the_result_agrees_with_the_net(attack: BudgetAttack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    before = x.clone()
    result = attack.run(net, x, y, seed=0)
    assert torch.equal(x, before)
    with torch.no_grad():
        prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction != y)
    assert result.success.any()
    assert not result.success.all()
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, attack.norm))
    assert (result.distance <= attack.eps + 1e-6).all()
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1


@pytest.mark.parametrize("attack", ALL, ids=_name)
@pytest.mark.parametrize("targeted", [False, True])
def test_a_failure_returns_the_iterate_of_highest_loss(
    attack: BudgetAttack, targeted: bool, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.inputs.append(x.detach().clone())
            return net(x)

    failures = 0
    for row in range(8):
        x, y = digits[0][row : row + 1], digits[1][row : row + 1]
        target = (y + 5) % 10 if targeted else None
        model = Recorder()
        result = attack.run(model, x, y, target=target, seed=0, eps=attack.eps / 3)
        if result.success.item():
            continue
        failures += 1
        steps, restarts = getattr(attack, "steps", 1), getattr(attack, "restarts", 1)
        looks = model.inputs[1 - attack._starts_at_image : -1]  # from an image, judging and first gradient are one
        if attack.name == "fgsm":
            looks.append(model.inputs[-1])  # its only candidate is judged once
        assert len(looks) == restarts * (steps + 1)
        climbed = [z for i, z in enumerate(looks) if i % (steps + 1) != 0]  # the starts do not count
        with torch.no_grad():
            losses = [-F.cross_entropy(net(z), target) if targeted else F.cross_entropy(net(z), y) for z in climbed]
            returned = (
                -F.cross_entropy(net(result.x_adv), target) if targeted else F.cross_entropy(net(result.x_adv), y)
            )
        assert any(torch.allclose(z, result.x_adv) for z in climbed)
        # Two of them may be alike but for the last bits.
        torch.testing.assert_close(returned, max(losses), rtol=1e-4, atol=1e-4)
        assert result.distance > 0
    assert failures >= 4


def test_a_witness_on_the_way_is_kept_though_the_climb_goes_on() -> None:
    # Class 1 only where the mean lies in (0.58, 0.62), and the slope leads past it.
    model = OfMean(lambda mean: ((mean - 0.6).abs() < 0.02).float() - 0.5)
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    for attack in (BIM(eps=0.3, steps=10), PGD(eps=0.3, steps=10, step_size=0.03, random_start=False)):
        result = attack.run(model, x, y)
        assert result.success.all()
        assert ((result.x_adv.flatten(1).mean(1) - 0.6).abs() < 0.02).all()
        assert (result.backwards < 10).all()  # and it left there
    l2 = BIM(eps=1.2, norm="l2", steps=10).run(model, x, y)  # steps of 0.12 / 4 in the mean
    assert l2.success.all()


def test_a_climb_over_a_peak_returns_the_peak() -> None:
    model = OfMean(lambda mean: -1 - (mean - 0.62).abs())  # never class 1; nearest at 0.62
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    result = BIM(eps=0.3, steps=10).run(model, x, y)
    assert not result.success.any()
    torch.testing.assert_close(result.x_adv.flatten(1).mean(1), torch.full((2,), 0.62), atol=0.016, rtol=0)
    assert max(float(mean.max()) for mean in model.visited) > 0.79  # though it climbed to the end


def test_the_best_restart_counts_and_not_the_last() -> None:
    model = OfMean(lambda mean: -1 - (mean - 0.5).abs())  # the start's own luck decides: steps hardly move
    x, y = torch.full((40, 1, 1, 1), 0.5), torch.zeros(40, dtype=torch.int64)
    one, many = (
        PGD(eps=0.4, steps=1, step_size=1e-4, restarts=n).run(model, x, y, seed=0).distance.mean() for n in (1, 10)
    )
    assert one > 0.15  # 0.2 for a uniform start
    assert many < 0.07  # 0.036 for the best of ten


def test_restarts_start_elsewhere_and_only_the_unbroken_go_on() -> None:
    # Won by the start alone, in a tenth of the ball.
    model = OfMean(lambda mean: ((mean - 0.6).abs() < 0.04).float() - 0.5)
    x, y = torch.full((60, 1, 1, 1), 0.5), torch.zeros(60, dtype=torch.int64)
    attack = {n: PGD(eps=0.4, steps=1, step_size=1e-4, restarts=n) for n in (1, 30)}
    assert attack[1].run(model, x, y, seed=0).success.float().mean() < 0.3
    model.visited.clear()
    result = attack[30].run(model, x, y, seed=0)
    assert result.success.float().mean() > 0.85  # 1 - 0.9^30 = 0.96
    assert result.forwards.min() < 4  # who won in the first round paid for no other
    assert result.forwards.max() > 20
    sizes = [len(mean) for mean in model.visited[1:-1]]
    assert sizes == sorted(sizes, reverse=True)
    starts = torch.cat(model.visited[1:-1])
    assert len(starts.unique()) > 0.9 * len(starts)


@pytest.mark.filterwarnings("ignore:the gradient of")
def test_logits_that_are_not_numbers_are_no_success(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], net(digits[0][:6]).argmax(1)

    class Breaks(nn.Module):
        """Right on the clean images, not a number anywhere else."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, z: Tensor) -> Tensor:
            logits = net(z)
            moved = torch.tensor([not any(torch.equal(one, clean) for clean in x) for one in z])
            return torch.where(moved.unsqueeze(1) & (torch.arange(10) != 3), self.value, logits)

    for attack in ALL:
        for value in (float("nan"), float("inf"), -float("inf")):
            result = attack.run(Breaks(value), x, y, seed=0)
            assert not result.success.any(), (attack, value)
            assert result.x_adv.isfinite().all()
            assert (result.distance <= attack.eps + 1e-6).all()

    class Dead(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return net(z) * float("nan")

    for attack in ALL:
        with pytest.warns(UserWarning, match="zero at every pixel"):
            result = attack.run(Dead(), x, y, seed=0)
        assert not result.success.any()
        assert (result.distance <= attack.eps + 1e-6).all()
        assert result.x_adv.isfinite().all()
        assert not attack.run(Dead(), x, y, target=(y + 1) % 10, seed=0).success.any()


class Rounding(nn.Module):
    """A defense that rounds the pixels, with a straight-through twin."""

    stochastic = False

    def __init__(self, net: nn.Module, levels: int = 4) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * self.levels).round() / self.levels)

    def attack_view(self) -> nn.Module:
        return Through(self)

    def undefended(self) -> nn.Module:
        return self.net


class Through(nn.Module):
    def __init__(self, defended: Rounding) -> None:
        super().__init__()
        self.defended = defended

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * self.defended.levels).round() / self.defended.levels
        return self.defended.net(x + (rounded - x).detach())


def test_an_honest_twin_breaks_what_hides_its_gradient(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    defended = Rounding(net)
    attack = PGD(eps=0.2, steps=10)
    adaptive = attack.run(defended, x, y, seed=0)
    assert adaptive.success.float().mean() > 0.9
    with torch.no_grad():
        assert torch.equal(defended(adaptive.x_adv).argmax(1), adaptive.prediction)
    assert torch.equal(adaptive.success, adaptive.prediction != y)
    # The same defense without its twin blinds the attack, which says so.
    blind = nn.Sequential()
    blind.forward = defended.forward
    with pytest.warns(UserWarning, match=r"zero at every pixel.*attack_view"):
        result = attack.run(blind, x, y, seed=0)
    assert result.success.float().mean() < 0.5


def test_a_twin_that_is_broken_while_the_defense_stands_is_no_success(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][:10]
    y = net(x).argmax(1)

    class Misled(Rounding):
        """The twin is the naked net; the defense always answers with the class of the clean image."""

        def forward(self, z: Tensor) -> Tensor:
            near = torch.cdist(z.flatten(1), x.flatten(1)).argmin(1)
            return F.one_hot(y[near], 10).float()

        def attack_view(self) -> nn.Module:
            return self.net

    for attack in ALL:
        assert attack.run(net, x, y, seed=0, eps=attack.eps * 2).success.any()
        result = attack.run(Misled(net), x, y, seed=0, eps=attack.eps * 2)
        assert not result.success.any()
        assert torch.equal(result.prediction, y)
        assert (result.distance > 0).all()


def test_a_twin_that_never_breaks_does_not_hide_that_the_defense_does() -> None:
    class Wary(nn.Module):
        """The twin only shows the way, for ever class 0; the defense falls in a window that the climb passes."""

        stochastic = False

        def __init__(self) -> None:
            super().__init__()
            self.real = OfMean(lambda mean: ((mean - 0.6).abs() < 0.02).float() - 0.5)
            self.twin = OfMean(lambda mean: mean - 50)

        def forward(self, x: Tensor) -> Tensor:
            return self.real(x)

        def attack_view(self) -> nn.Module:
            return self.twin

        def undefended(self) -> nn.Module:
            return self.twin

    model = Wary()
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    result = BIM(eps=0.3, steps=10).run(model, x, y)
    assert result.success.all()
    assert ((result.x_adv.flatten(1).mean(1) - 0.6).abs() < 0.02).all()
    # One forward to judge the clean image and one for the result; at each iterate the twin's and the real one.
    iterates = len(model.twin.visited)
    assert result.backwards.tolist() == [iterates] * 3
    assert result.forwards.tolist() == [2 + 2 * iterates] * 3
    assert not BIM(eps=0.3, steps=10).run(undefended(model), x, y).success.any()


def test_the_best_attempt_against_a_defense_is_judged_by_the_defense() -> None:
    class Diverging(nn.Module):
        """The twin's loss rises all the way, the real one's peaks early; neither ever breaks."""

        stochastic = False

        def __init__(self) -> None:
            super().__init__()
            self.real = OfMean(lambda mean: -1 - (mean - 0.56).abs())
            self.twin = OfMean(lambda mean: mean - 50)

        def forward(self, x: Tensor) -> Tensor:
            return self.real(x)

        def attack_view(self) -> nn.Module:
            return self.twin

        def undefended(self) -> nn.Module:
            return self.twin

    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    result = BIM(eps=0.3, steps=10).run(Diverging(), x, y)
    torch.testing.assert_close(result.x_adv.flatten(1).mean(1), torch.full((2,), 0.56), atol=0.016, rtol=0)


@pytest.mark.parametrize("confidence", [20.0, 100.0, 1e4])
def test_confidence_is_no_robustness(confidence: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    # Logits times a constant give the same decisions, and a cross-entropy whose gradient vanishes in float32: the
    # mask that broke defensive distillation (Carlini, Wagner, 2017).
    class Confident(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x) * confidence

    x, y = digits[0][:100], digits[1][:100]
    for attack in (
        FGSM(eps=0.1),
        BIM(eps=0.1, steps=10),
        PGD(eps=0.1, steps=10),
        PGD(eps=1.5, norm="l2", steps=10),
    ):
        plain = attack.run(net, x, y, seed=0).success.float().mean()
        assert plain > 0.4
        # Where the gradient is masked nearly all is lost.
        assert attack.run(Confident(), x, y, seed=0).success.float().mean() >= plain - 0.1


def test_log_odds_order_and_ascend_as_cross_entropy_does() -> None:
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
    assert torch.equal(Criterion(y).log_odds(logits) > 0, Criterion(y).log_odds(logits).detach() > 0)
    # Log odds of zero: the true class has half of the probability.
    even = torch.tensor([[2.0, 2.0 - 1e9], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        Criterion(torch.tensor([0, 0])).log_odds(even)[1], torch.tensor(0.0, dtype=torch.float64)
    )


def test_when_a_goal_is_reached() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [float("nan"), 3.0, 2.0], [1.0, float("inf"), 0.0]])
    label, target = torch.tensor([0, 0, 0, 0]), torch.tensor([2, 1, 1, 1])
    assert Criterion(label).reached(logits).tolist() == [False, True, False, False]
    assert Criterion(label, target).reached(logits).tolist() == [False, True, False, False]
    assert Criterion(label, torch.tensor([1, 2, 0, 0])).reached(logits).tolist() == [False] * 4
    chosen = Criterion(label, target).select(torch.tensor([1, 0]))
    assert chosen.target is not None
    assert chosen.target.tolist() == [1, 2]


class Toll(nn.Module):
    """Counts the passes of each example, told by a pixel that the net does not see."""

    def __init__(self, net: nn.Module, n: int) -> None:
        super().__init__()
        self.net, self.n = net, n
        self.forwards, self.backwards = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        who = (x.detach()[:, 0, 0, 0] * (self.n - 1)).round().long()
        self.forwards.index_add_(0, who, torch.ones_like(who))
        if x.requires_grad:
            x.register_hook(lambda _: self._backward(who))
        mask = torch.ones_like(x)
        mask[:, 0, 0, 0] = 0
        return self.net(x * mask)

    def _backward(self, who: Tensor) -> None:
        self.backwards.index_add_(0, who, torch.ones_like(who))


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=0.03),
        BIM(eps=0.03, steps=5),
        PGD(eps=0.03, steps=4, restarts=3),
        PGD(eps=0.6, norm="l2", steps=5, random_start=False),
    ],
    ids=_name,
)
def test_the_counters_tell_what_each_example_cost(
    attack: BudgetAttack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    n = 12
    x, y = digits[0][:n].clone(), digits[1][:n].clone()
    x[:, 0, 0, 0] = torch.linspace(0, 1, n)
    y[2] = (y[2] + 1) % 10
    eps = attack.eps * torch.linspace(0.1, 1.3, n)
    model = Toll(net, n)
    result = attack.run(model, x, y, seed=0, eps=eps)
    assert torch.equal(result.forwards, model.forwards)
    attacked = result.backwards > 0  # the misclassified may stand idle in the batch of the first gradient
    assert torch.equal(result.backwards[attacked], model.backwards[attacked])
    assert result.backwards[2] == 0
    assert attack.name == "fgsm" or len(set(result.forwards.tolist())) > 1
    steps, restarts = getattr(attack, "steps", 1), getattr(attack, "restarts", 1)
    assert result.backwards.max() == steps * restarts  # who stands takes every step of every restart


def test_more_effort_breaks_no_less(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:100], digits[1][:100]
    share = [
        attack.run(net, x, y, seed=0).success.float().mean().item()
        for attack in (FGSM(eps=0.08), PGD(eps=0.08, steps=10), PGD(eps=0.08, steps=10, restarts=3))
    ]
    assert share == sorted(share)
    assert share[1] > share[0]
    by_budget = [PGD(eps=0.3, steps=10).run(net, x, y, seed=0, eps=e).success.float().mean() for e in (0.02, 0.06, 0.2)]
    assert by_budget[0] < by_budget[1] < by_budget[2]
