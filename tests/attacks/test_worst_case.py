"""WorstCase: at least as strong as its parts, with or without gradients, and cheap where nothing can be broken."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import APGD, EOT, FAB, PGD, BudgetAttack, NearestL2, Square, WorstCase, worst_case
from robustlit.attacks.draws import Draws
from robustlit.attacks.plan import PLANS, RIVALS, BoundaryWalk, Climb, Look, NearestSearch, Patches, Refine
from robustlit.attacks.starts import FAR, far_from, in_ball
from robustlit.threat import Ball, distance


def most_passes(classes: int, norm: str = "linf", *, refined: bool = True) -> int:
    """Forwards and backwards of the whole plan, with those that judge the image and the result."""
    rivals = min(classes - 1, RIVALS)

    def refine(part: BoundaryWalk | Refine) -> int:
        return 2 * part.refine * refined + 1

    costs = {Climb: lambda part: 2 * part.steps + 1, Patches: lambda part: part.queries, Refine: refine,
             BoundaryWalk: lambda part: 3 * part.steps + refine(part), NearestSearch: lambda _: nearest_passes(rivals),
             Look: lambda _: 1 + rivals + -(-rivals // 3)}  # fmt: skip
    return 3 + sum(costs[type(part)](part) for part in PLANS[norm])


def nearest_passes(rivals: int) -> int:
    """Forwards and backwards of `NearestL2` and of the one that judges its result."""
    attack = NearestL2()
    towards = min(attack.candidates, rivals) if rivals > 1 else 0
    walks = 2 * (1 + towards) * attack.explore + 3 * attack.boundary * (attack.explore // 2)
    return 2 + walks + 2 * (attack.kept * attack.refine + attack.finish)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.07), ("l2", 0.9)])
@pytest.mark.slow
def test_it_breaks_what_its_rivals_break(norm: str, eps: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    mine = WorstCase(eps=eps, norm=norm).run(net, x, y, seed=0)
    assert (distance(mine.x_adv, x, norm) <= eps + 1e-6).all()
    for rival in (PGD(eps=eps, norm=norm), APGD(eps=eps, norm=norm), APGD(eps=eps, norm=norm, loss="dlr")):
        theirs = rival.run(net, x, y, seed=0)
        assert 0 < theirs.success.sum() < 60  # else the comparison says nothing
        assert not (theirs.success & ~mine.success).any()


def test_hidden_gradients_do_not_stop_it(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    model = Function(lambda z: net((z * 8).round() / 8 + 0 * z))  # its gradient is zero
    with pytest.warns(UserWarning, match="zero at every pixel"):
        result, blind = (attack.run(model, x, y, seed=0) for attack in (WorstCase(eps=0.3), PGD(eps=0.3)))
    assert result.success.float().mean() > 0.9
    assert blind.success.float().mean() < 0.7


def split(x: Tensor) -> Tensor:
    """Two classes: images whose mean is bright are out of reach, the others are nearly on the boundary."""
    mean = x.flatten(1).mean(1)
    near, far = 10 * x[:, 0, 0, 0] - 1.51, mean * 10 - 5
    return torch.stack([torch.zeros_like(mean), torch.where(mean > 0.5, -far.abs() - 5, near)], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.slow
def test_passes_go_where_the_margin_is_nearly_gone(norm: str) -> None:
    x = torch.cat([torch.full((4, 1, 6, 6), 0.9), torch.full((4, 1, 6, 6), 0.1)])
    result = WorstCase(eps=0.05, norm=norm).run(Function(split), x, torch.zeros(8, dtype=torch.int64), seed=0)
    assert not result.success.any()
    spent = result.forwards + result.backwards
    assert (spent[4:] > 1.5 * spent[:4]).all()
    assert (spent <= most_passes(2, norm)).all()


@pytest.mark.parametrize("pattern", ["uniform", "bright", "dark", "corner", "blocks", "columns", "rows", "image"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(5, 3, 6, 7), (5, 6, 7), (5, 12)], ids=str)
def test_starts_lie_in_the_ball_and_the_box(pattern: str, norm: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) * 0.4 + 0.3
    eps = torch.full((5,), 0.2)
    z = in_ball(pattern, Ball(x, eps, norm), Draws(0, torch.arange(5)))
    far = distance(z, x, norm)
    if pattern == "image":
        assert torch.equal(z, x)
        return
    torch.testing.assert_close(far, eps, rtol=0, atol=1e-5)  # the ball lies inside the box: all reach its surface
    delta = (z - x) / eps[0]
    if pattern in ("columns", "rows") and len(shape) == 4:
        along = 2 if pattern == "columns" else 3
        assert (delta - delta.select(along, 0).unsqueeze(along)).abs().max() < 1e-5
    if pattern not in ("bright", "dark"):
        assert (delta[0] - delta[1]).abs().max() > 0.01  # each example has its own


@pytest.mark.parametrize("pattern", FAR)
@pytest.mark.parametrize("shape", [(5, 3, 28, 12), (5, 28, 12), (5, 40), (5, 1, 2, 2)], ids=str)
def test_far_starts_lie_between_the_image_and_noise(pattern: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(torch.float64)
    z = far_from(x, pattern, Draws(0, torch.arange(5)))
    assert z.dtype is x.dtype
    assert ((z >= 0) & (z <= 1)).all()
    assert (distance(z, x, "linf") > 0.01).all()
    one = far_from(x[3:4], pattern, Draws(0, torch.tensor([3])))
    assert torch.equal(one, z[3:4])  # an example's own, whatever the batch
    if len(shape) == 4 and shape[-1] == 12:
        levels = {"noise": 3 * 28 * 12, "coarse": 3 * 7 * 3, "grey": 1, "salt": 2}[pattern]
        black = far_from(torch.zeros_like(x), pattern, Draws(0, torch.arange(5)))
        assert all(0.99 * levels <= len(image.unique()) <= levels for image in black)  # random numbers may coincide


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.2)])
def test_more_rounds_never_lose(norm: str, eps: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    once, twice = (WorstCase(eps=eps, norm=norm, rounds=n).run(net, x, y, seed=0) for n in (1, 2))
    assert not (once.success & ~twice.success).any()
    robust = ~twice.success
    assert (twice.forwards[robust] > once.forwards[robust]).all()


def tie(x: Tensor) -> Tensor:
    """Two classes that are level where the image is grey; elsewhere the first one wins."""
    apart = (x.flatten(1).mean(1) - 0.5).square()
    return torch.stack([torch.zeros_like(apart), -apart], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.slow
def test_an_example_on_the_boundary_gets_the_whole_plan(norm: str) -> None:
    x = torch.full((3, 1, 6, 6), 0.5)
    # In L-inf a climb starts at the image itself, where the gradient is zero.
    warned = pytest.warns(UserWarning, match="zero at every pixel") if norm == "linf" else contextlib.nullcontext()
    with warned:
        result = WorstCase(eps=0.1, norm=norm).run(Function(tie), x, torch.zeros(3, dtype=torch.int64), seed=0)
    assert not result.success.any()
    # Nothing was found outside either, so nothing is refined.
    assert (result.forwards + result.backwards == most_passes(2, norm, refined=False)).all()


def seventh(x: Tensor) -> Tensor:
    """Ten classes, linear: class 7, far behind the others, is the only one that can win within 0.1 of grey."""
    pattern = (torch.arange(108) * 7 % 5 > 1) * 2.0 - 1
    along = (x.flatten(1) - 0.5) @ pattern
    logits = (-1 - torch.arange(10) * 0.1).repeat(len(x), 1) - 0.001 * along.unsqueeze(1)  # the others lead away
    logits[:, 0], logits[:, 7] = 0, 0.2 * along - 1.9
    return 60 * logits  # so steep that a softmax sees one rival only


def test_the_class_that_wins_may_be_far_behind() -> None:
    x, y = torch.full((3, 3, 6, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    assert not PGD(eps=0.1).run(Function(seventh), x, y, seed=0).success.any()
    result = WorstCase(eps=0.1).run(Function(seventh), x, y, seed=0)
    assert (result.prediction == 7).all()
    assert (result.forwards + result.backwards < 400).all()


def test_a_thousand_classes_cost_no_more_than_ten() -> None:
    weight = torch.randn(108, 1000, generator=torch.Generator().manual_seed(0))
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    y = (x.flatten(1) @ weight).argmax(1)
    result = WorstCase(eps=1e-4).run(Function(lambda z: z.flatten(1) @ weight), x, y, seed=0)
    assert not result.success.any()
    assert (result.backwards < 200).all()


@pytest.fixture
def short_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin and end of the plan, with few steps and queries."""
    short = {Climb: {"steps": 6}, Patches: {"queries": 20}, Look: {}, BoundaryWalk: {"refine": 6},
             Refine: {"refine": 6}, NearestSearch: {}}  # fmt: skip
    monkeypatch.setattr(BoundaryWalk, "steps", 6)
    for norm, plan in PLANS.items():
        parts = [replace(part, **short[type(part)]) for part in (*plan[:9], *plan[-3:])]
        monkeypatch.setitem(worst_case.PLANS, norm, tuple(parts))


@pytest.mark.parametrize(
    "attack",
    [
        WorstCase(eps=0.06),
        WorstCase(eps=0.35, norm="l2"),
        APGD(eps=0.06, loss="dlr", steps=20),
        Square(eps=0.09, queries=60),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("short_plan")
def test_a_deterministic_net_declared_random_leaves_the_same_examples(attack: BudgetAttack) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
        x = torch.rand(24, 1, 8, 8)
    y = net(x).argmax(1)
    plain, wrapped = (attack.run(model, x, y, seed=0) for model in (net, EOT(net, 1)))
    assert 0 < plain.success.sum() < 24
    assert torch.equal(plain.success, wrapped.success)
    assert torch.equal(plain.backwards, wrapped.backwards)
    torch.testing.assert_close(plain.x_adv, wrapped.x_adv)


def test_the_control_group_is_drawn_for_each_example_and_warns_where_the_gates_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y, index = torch.full((12, 1, 4, 4), 0.5), torch.zeros(12, dtype=torch.int64), torch.arange(12)
    last = Climb("bright", 2, within=1e-3)  # gated for every example, though it breaks all
    monkeypatch.setitem(worst_case.PLANS, "linf", (Climb("dark", 1), Look(), last))
    bright = Function(lambda z: torch.stack([torch.zeros(len(z)), z.mean((1, 2, 3)) - 0.55], 1))
    attack = WorstCase(eps=0.1, control=0.4)
    with pytest.warns(UserWarning, match=r"of (\d+) such examples .* \1 were broken late"):
        result = attack.run(bright, x, y, index=index, seed=0)
    assert 0 < result.success.sum() < 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [attack.run(bright, x[k : k + 1], y[:1], index=index[k : k + 1], seed=0).success for k in index]
    assert torch.equal(torch.cat(alone), result.success)
    assert not replace(attack, control=0.0).run(bright, x, y, seed=0).success.any()
    assert replace(attack, control=1.0).run(bright, x, y, seed=0).success.all()


def test_the_version_is_part_of_what_is_quoted() -> None:
    assert "version=6" in repr(WorstCase(eps=0.1))
    with pytest.raises(ValueError, match="version must be 5 or 6, the plans of this release, got 4"):
        WorstCase(eps=0.1, version=4)


def threshold(x: Tensor) -> Tensor:
    """Two classes: four pixels decide once they are brighter than .4; below, every pixel counts a little."""
    flat = x.flatten(1)
    pixels = flat[:, [3, 17, 40, 62]]
    lead = (pixels - 0.4).relu().sum(1) + 0.002 * flat.sum(1) - 1.2
    return torch.stack([torch.zeros_like(lead), lead], 1)


def test_in_l2_it_comes_from_outside_where_gradients_inside_mislead() -> None:
    # Four pixels at .7 suffice, 1.4 away. In the ball of 1.5 a climb moves each of 64 pixels by .19, and sees none.
    x, y = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    assert not APGD(eps=1.5, norm="l2").run(Function(threshold), x, y, seed=0).success.any()
    result = WorstCase(eps=1.5, norm="l2").run(Function(threshold), x, y, seed=0)
    assert result.success.all()
    assert (distance(result.x_adv, x, "l2") <= 1.5).all()
    assert not WorstCase(eps=1.3, norm="l2", control=1).run(Function(threshold), x, y, seed=0).success.any()


def shy(x: Tensor) -> Tensor:
    """Two classes: eight pixels decide once they are brighter than .35; below, the others alone have a gradient."""
    flat = x.flatten(1)
    lead = 4 * (flat[:, :8] - 0.35).relu().sum(1) - 0.01 * flat[:, 8:].sum(1) - 2
    return torch.stack([torch.zeros_like(lead), lead], 1)


def test_noise_far_outside_shows_which_pixels_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of the eight pixels at .61 suffice, .8 away. Inside the ball no step brings one of them above .35.
    x, y = torch.full((4, 1, 8, 8), 0.05), torch.zeros(4, dtype=torch.int64)

    def broken(*parts: object) -> int:
        monkeypatch.setitem(worst_case.PLANS, "l2", (Look(at_image=True), *parts))
        return int(WorstCase(eps=1.2, norm="l2").run(Function(shy), x, y, seed=0).success.sum())

    assert broken(Climb("uniform", 25), BoundaryWalk(0)) == 0
    for start in ("noise", "salt"):
        assert broken(BoundaryWalk(0, start=start)) > 2


def test_the_nearest_example_of_all_parts_is_refined(net: nn.Module, digits: tuple[Tensor, Tensor],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    x, y = digits[0][:40], digits[1][:40]
    walks = (Look(at_image=True), BoundaryWalk(0, start="noise", refine=0), BoundaryWalk(0, start="grey", refine=0))

    def broken(*more: object) -> Tensor:
        monkeypatch.setitem(worst_case.PLANS, "l2", (*walks, *more))
        return WorstCase(eps=0.6, norm="l2").run(net, x, y, seed=0).success

    without, refined = broken(), broken(Refine(1.0))
    assert 0 < without.sum() < refined.sum()
    assert not (without & ~refined).any()
    walks = walks[0], BoundaryWalk(0, start="noise", refine=60)
    assert without.sum() < broken().sum()  # a walk refines what it found


def test_examples_within_twice_the_budget_get_walks_towards_three_classes() -> None:
    walks = [part for part in PLANS["l2"] if isinstance(part, BoundaryWalk) and part.within >= 1]
    assert {walk.rival for walk in walks} == {0, 1, 2}
    assert {walk.start for walk in walks} == {"image", *FAR}


def test_each_walk_is_towards_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def bent(x: Tensor) -> Tensor:  # the nearest boundary, of class 1, bends away; that of class 2 is at x_1 = .9
        first, second = x.flatten(1)[:, :2].unbind(1)
        return torch.stack([torch.zeros_like(first), 0.4 * (first / 0.4).tanh() - 0.5, second - 0.9], 1)

    x, y = torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    for rival, expected in ((0, False), (1, True), (5, True)):  # of two wrong classes the last
        monkeypatch.setitem(worst_case.PLANS, "l2", (Look(at_image=True), BoundaryWalk(rival)))
        assert bool(WorstCase(eps=0.95, norm="l2").run(Function(bent), x, y, seed=0).success) is expected


def test_how_near_an_attack_from_outside_came_opens_the_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    # The linearised boundary is many times 1.35 away, the adversarial example at 1.4 is 4 % outside the ball.
    x, y, last = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), Climb("dark", 7, within=0.1)

    def passes(*parts: object, eps: float = 1.35) -> Tensor:
        monkeypatch.setitem(worst_case.PLANS, "l2", (Look(at_image=True), *parts))
        result = WorstCase(eps=eps, norm="l2", control=0).run(Function(threshold), x, y, seed=0)
        assert not result.success.any()
        return result.backwards

    assert (passes(last) == passes()).all()
    for part in (BoundaryWalk(0), NearestSearch(100.0)):
        assert (passes(part, last) == passes(part) + 7).all()
        assert (passes(part, Look(), last) == passes(part, Look()) + 7).all()  # nor does a later look forget it
        assert (passes(part, last, eps=1.2) == passes(part, eps=1.2)).all()


def test_later_rounds_start_elsewhere_and_do_not_search_the_nearest_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, searches = [], []
    toward, nearest = FAB.toward, NearestL2.nearest
    monkeypatch.setattr(FAB, "toward", lambda *args: (starts.append(args[7]), toward(*args))[1])
    monkeypatch.setattr(NearestL2, "nearest", lambda *args: (searches.append(args), nearest(*args))[1])
    monkeypatch.setitem(worst_case.PLANS, "l2", (Look(at_image=True), BoundaryWalk(0), NearestSearch(100.0)))
    x = torch.zeros(1, 1, 8, 8)
    WorstCase(eps=1.2, norm="l2", rounds=3).run(Function(threshold), x, torch.zeros(1, dtype=torch.int64), seed=0)
    points = [starts[0], *starts[-2:]]  # without the runs of the search, which come between
    assert len(searches) == 1
    assert torch.equal(points[0], x)
    assert len({float(point.sum()) for point in points}) == len(points) == 3


class Tempered(nn.Module):
    """Multiply the centred logits of a net by a factor that grows with brightness; no prediction changes."""

    def __init__(self, net: nn.Module, strength: float) -> None:
        super().__init__()
        self.net, self.strength = net, strength

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return (logits - logits.mean(1, keepdim=True)) * (self.strength * x.flatten(1).mean(1, keepdim=True)).exp()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_factor_of_the_logits_hides_nothing(norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    eps, strength = (0.1, 100.0) if norm == "linf" else (1.5, 400.0)

    def left(strength: float, version: int) -> int:
        attack = WorstCase(eps=eps, norm=norm, version=version)
        return int((~attack.run(Tempered(net, strength).eval(), x, y, seed=0).success).sum())

    plain, former, latter = left(0.0, 5), left(strength, 5), left(strength, 6)
    assert left(0.0, 6) == plain
    assert latter <= plain + 1
    if norm == "linf":
        assert former >= latter + 3
