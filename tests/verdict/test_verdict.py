"""A flawed model or attack fails the check that is meant to detect it; a sound one passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import APGD, EOT, FGSM, PGD, Attack, BudgetAttack, NearestL2, Square, WorstCase
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.defenses import BitDepth
from robustlit.evaluation import evaluate
from robustlit.results import BELIEVABLE, FAIL, INCONCLUSIVE, PASS, Check, Evaluation, Verdict
from robustlit.results.certificates import COLUMNS, Certificates
from robustlit.threat import Ball
from robustlit.verdict import verdict
from robustlit.verdict.checks import CHECKS
from robustlit.verdict.context import Context, other_class_distance
from robustlit.verdict.effort import FULL
from robustlit.verdict.probe import Probe
from robustlit.verdict.spec import TABLE, CheckSpec

judge = import_module("robustlit.verdict.judge")  # the name of the package's function hides the module

Digits = tuple[Tensor, Tensor]
Judged = Callable[..., dict[int, Check]]
PLACES = {spec.number: at for at, spec in enumerate(CHECKS) if spec.number in (2, 13, 14, 28)}
ALL = {*range(1, 20), *range(21, 28)}


def judged_on(model: nn.Module, digits: Digits, attacks: dict[str, Attack], n: int = 15, **options: Any) -> Verdict:
    data = digits[0][:n], digits[1][:n]
    return verdict(evaluate(model, data, attacks), model, data, attacks, **{"profile": "full", **options})


@pytest.fixture
def judged(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Make some checks of the full verdict on an evaluation by one attack."""

    def make(numbers: set[int], model: nn.Module, attack: BudgetAttack, n: int = 8) -> dict[int, Check]:
        monkeypatch.setattr(judge, "CHECKS", [spec for spec in CHECKS if spec.number in numbers])
        return by_number(judged_on(model, digits, {attack.name: attack}, n))

    return make


def by_number(found: Verdict) -> dict[int, Check]:
    return {check.number: check for check in found.checks}


def failed(found: Verdict) -> set[int]:
    return {check.number for check in found.failed}


class Wrapped(nn.Module):
    """A network behind something else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Rounded(Wrapped):
    """A rounding layer without a surrogate, though it names the network behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.round(x * 3) / 3)

    def undefended(self) -> nn.Module:
        return self.net


class Misled(Wrapped):
    """A network whose attack view is another network."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def attack_view(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Noisy(Wrapped):
    """A random layer that is not declared."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.3 * torch.randn_like(x))


class Saturated(Wrapped):
    """Logits so large that each softmax is 0 or 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


class Blind(nn.Sequential):
    """A network without gradients."""

    forward = torch.no_grad()(nn.Sequential.forward)


class Leaking(Wrapped):
    """A detector that recognises clean images, of whole grey values, and flags all others."""

    stochastic = False
    rejects = True

    def excess(self, x: Tensor) -> Tensor:
        grey = 255 * x.flatten(1)
        return ((grey - grey.round()).abs().amax(1) > 1e-3).float() - 0.5

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), self.excess(x) + 0 * x.flatten(1).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        logits, excess = self.detection(x)
        return torch.cat([logits, (logits.amax(1) + excess).unsqueeze(1)], 1)

    def attack_view(self) -> nn.Module:
        return self

    def undefended(self) -> nn.Module:
        return self.net


class Asleep(Leaking):
    """A detector that flags nothing."""

    def excess(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), -1.0)


Search = Callable[[Ball, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class Flawed(BudgetAttack):
    """An attack that returns what a function makes of its ball and of the gradient of a loss."""

    name: ClassVar[str] = "flawed"
    search: Search = lambda ball, gradient: ball.x
    loss: Callable[[Criterion, Tensor], Tensor] = Criterion.log_odds

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None

        def gradient(z: Tensor) -> Tensor:
            return victim.gradient(z, lambda logits: self.loss(criterion, logits), rows)[2]

        return self.search(Ball(x, eps, self.norm), gradient)


def climbing(steps: int) -> Search:
    def search(ball: Ball, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        z = ball.x
        for _ in range(steps):
            z = ball.step(z, gradient(z), ball.eps / 4)
        return z

    return search


def descent(criterion: Criterion, logits: Tensor) -> Tensor:
    return -criterion.log_odds(logits)


def cross_entropy(criterion: Criterion, logits: Tensor) -> Tensor:
    """The plain loss, whose gradient is zero in float32 where the softmax saturates."""
    return F.cross_entropy(logits, criterion.label, reduction="none")


def escaping(ball: Ball, gradient: Callable[[Tensor], Tensor]) -> Tensor:
    return climbing(10)(Ball(ball.x, 2 * ball.eps, ball.norm), gradient)


def discarding(ball: Ball, gradient: Callable[[Tensor], Tensor]) -> Tensor:
    climbing(10)(ball, gradient)
    return ball.x


def plain(net: nn.Module) -> nn.Module:
    return net


def with_impossible_class(net: nn.Module) -> nn.Module:
    return nn.Sequential(net, nn.ConstantPad1d((0, 1), -float("inf")))


def sigmoids(net: nn.Module) -> nn.Module:
    return nn.Sequential(net, nn.Sigmoid())


class HalfProbabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1).bfloat16()


def probabilities(net: nn.Module) -> nn.Module:
    return nn.Sequential(net, nn.Softmax(1))


STRONG = PGD(eps=0.1, steps=50, restarts=2)
PLAIN_LOSS = Flawed(eps=0.1, search=climbing(20), loss=cross_entropy)


@pytest.mark.parametrize(
    ("number", "status", "model", "attack"),
    [
        (1, FAIL, plain, Flawed(eps=0.1, search=escaping)),
        (2, FAIL, Saturated, PLAIN_LOSS),
        (2, PASS, Saturated, STRONG),
        (3, FAIL, Saturated, PLAIN_LOSS),
        (3, FAIL, plain, Flawed(eps=0.1, search=climbing(10), loss=descent)),
        (3, FAIL, Leaking, PGD(eps=0.1, steps=5)),
        (3, PASS, Saturated, STRONG),
        (4, FAIL, plain, Flawed(eps=0.2, search=climbing(1))),
        (4, PASS, plain, STRONG),
        pytest.param(5, FAIL, Rounded, PGD(eps=0.1), marks=pytest.mark.slow),
        (5, PASS, plain, PGD(eps=0.1, steps=50)),
        (6, FAIL, plain, PGD(eps=0.1, steps=3, step_size=0.01)),
        (6, PASS, plain, STRONG),
        (7, FAIL, plain, PGD(eps=0.3, steps=1, step_size=0.05)),  # all depends on the random start
        (8, FAIL, plain, PGD(eps=0.1, steps=20, step_size=0.001)),
        (9, FAIL, Rounded, PGD(eps=0.1)),
        (9, FAIL, Blind, Square(eps=0.1, queries=10)),
        (10, FAIL, Noisy, PGD(eps=0.1, steps=5)),
        (11, FAIL, plain, Flawed(eps=0.1, search=discarding)),
        (11, PASS, plain, STRONG),
        (12, FAIL, Misled, PGD(eps=0.1)),
        (12, PASS, plain, PGD(eps=0.1)),
        (13, FAIL, Saturated, PLAIN_LOSS),
        (14, FAIL, Rounded, PGD(eps=0.3)),
        (14, INCONCLUSIVE, plain, PGD(eps=0.1)),  # nothing else to craft on
        (15, FAIL, Noisy, PGD(eps=0.1, steps=5)),
        (16, FAIL, probabilities, PGD(eps=0.1)),
        (16, FAIL, HalfProbabilities, PGD(eps=0.1)),
        (16, FAIL, sigmoids, PGD(eps=0.1)),
        (16, PASS, with_impossible_class, PGD(eps=0.05)),
        (17, INCONCLUSIVE, Rounded, PGD(eps=0.01)),  # the network is robust by itself at so small an eps
        (18, FAIL, plain, Flawed(eps=0.5, search=climbing(10), loss=descent)),
        (19, FAIL, Rounded, PGD(eps=0.1, steps=10)),
        (20, FAIL, Asleep, Flawed(eps=0.1, search=climbing(10), loss=descent)),
    ],
)
def test_a_flaw_fails_the_check_that_is_meant_to_detect_it(
    number: int, status: str, model: Callable[[nn.Module], nn.Module], attack: BudgetAttack, net: nn.Module,
    judged: Judged,
) -> None:  # fmt: skip
    (check,) = judged({number}, model(net), attack).values()
    assert check.status == status, check
    if status == FAIL:
        assert ": " in check.finding  # and says what to try


@pytest.mark.slow
def test_a_sound_evaluation_passes(net: nn.Module, digits: Digits) -> None:
    minimal = NearestL2(explore=30, refine=20, finish=20)
    found = judged_on(net, digits, {"fgsm": FGSM(eps=0.1), "pgd": WorstCase(eps=0.1), "nearest_l2": minimal}, n=6)
    assert found.status == BELIEVABLE, found.failed
    undecided = {check.number for check in found.checks if check.status == INCONCLUSIVE}
    assert set(by_number(found)) == ALL
    assert {14, 17} <= undecided <= {14, 17, 13, 7, 6, 4, 2, 18}  # no defense, no substitute; shares of few examples


def test_a_defense_with_an_attack_view_passes(net: nn.Module, judged: Judged) -> None:
    found = judged({1, 3, 9, 12, 15, 16, 17}, BitDepth(net, 3), PGD(eps=0.1))
    assert not {check.number for check in found.values() if check.status == FAIL}
    assert found[17].figure is not None


def test_without_gradients_the_other_checks_are_made(net: nn.Module, judged: Judged) -> None:
    found = judged({6, 9, 12, 15}, Blind(net), Square(eps=0.1, queries=10))
    assert [found[number].status for number in (6, 9, 12, 15)] == [INCONCLUSIVE, FAIL, INCONCLUSIVE, PASS]
    assert "attack_view" in found[9].finding


def test_the_table_answers_checks_1_and_4(table: Any, net: nn.Module, digits: Digits, monkeypatch: Any) -> None:
    def valid(*rows: tuple[int, str, float, float | None]) -> Check:
        return CHECKS[0].reads(CHECKS[0], SimpleNamespace(evaluation=table(list(rows))))  # type: ignore

    nothing = valid(*[(k, "pgd", 0.1, None) for k in range(5)])
    assert nothing.status == INCONCLUSIVE
    assert "no attack found an adversarial example" in nothing.finding
    escaped = valid((0, "pgd", 0.1, 0.1), (1, "square", 0.1, 0.3))
    assert escaped.status == FAIL
    assert "1 of 2" in escaped.finding
    assert "square leaves its ball" in escaped.finding
    monkeypatch.setattr(judge, "CHECKS", CHECKS[3:4])
    data = digits[0][:30], digits[1][:30]
    rising = evaluate(net, data, [PGD(eps=0.1, steps=5)], grid={"linf": [0.05, 0.15]}).to_frame()
    rising.loc[np.isclose(rising["eps"], 0.15), "success"] = False
    found = verdict(Evaluation(rising), net, data, [PGD(eps=0.1, steps=5)], profile="full")
    assert (failed(found), found.passes) == ({4}, 0)


def test_what_one_kind_of_attack_breaks_alone_is_counted_by_hand(table: Any) -> None:
    """Checks 2, 13, 14 and 28, of four examples: distances of what each attack found, None for nothing."""
    broken: dict[str, dict[str, list[float | None]]] = {
        "adaptive": {"pgd": [None, 0.1, None, 0.3], "square": [0.3, 0.3, None, 0.2], "fgsm": [None, 0.3, 0.2, 0.3]},
        "greybox": {"pgd": [None, 0.1, 0.1, None]},
        "blackbox": {"pgd": [None, None, None, None]},
    }
    frames = [
        table([(k, name, 0.3, reach) for k, reach in enumerate(found)], knowledge=known).table
        for known, attacks in broken.items()
        for name, found in attacks.items()
    ]
    rows = [(k, 1, True, "ibp", norm, 0.1, 1, 0) for norm in ("linf", "l2") for k in range(4)]
    proven = Certificates(pd.DataFrame(rows, columns=list(COLUMNS)))
    evaluation = replace(Evaluation(pd.concat(frames, ignore_index=True)), certificates=proven)
    right = SimpleNamespace(norm="linf", eps=0.3)
    context = SimpleNamespace(evaluation=evaluation, right=right, model=nn.Identity(), nothing_to_probe=lambda: None)
    counts = {number: CHECKS[at].reads(CHECKS[at], context).finding for number, at in PLACES.items()}  # type: ignore
    assert {number: finding.split(" of 4")[0].split()[-1] for number, finding in counts.items()} == {
        2: "1", 13: "1", 14: "0", 28: "2",
    }, counts  # fmt: skip
    alone = evaluation.table
    alone = alone[(alone["knowledge"] != "adaptive") | (alone["attack"] == "pgd")]
    context.evaluation = replace(evaluation, table=alone)
    assert "1 of 4" in CHECKS[PLACES[14]].reads(CHECKS[PLACES[14]], context).finding  # type: ignore


def test_declared_randomness_is_judged_by_fresh_draws(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:12], digits[1][:12]
    robust = torch.ones(12, dtype=torch.bool)
    probe = Probe(EOT(Noisy(net), 3), x, y, torch.arange(12), robust, PGD(eps=0.15, steps=3), "linf", 0.15, 0)
    spec: Any = CHECKS[14]
    check = spec.look(spec, Context(Any, x, y, probe, FULL, None, None))  # type: ignore[arg-type]
    assert check.status != FAIL
    assert "gradients over 3 draws" in check.finding


@pytest.mark.slow
def test_a_quick_verdict_costs_at_most_a_tenth(net: nn.Module, digits: Digits) -> None:
    attacks: dict[str, Attack] = {"fgsm": FGSM(eps=0.05), "ensemble": WorstCase(eps=0.05)}
    quick = judged_on(net, digits, attacks, n=150, profile="quick")
    assert 0 < quick.share <= 0.1
    assert failed(quick) == set(), quick.failed
    assert by_number(quick)[9].status == PASS


def test_a_quick_verdict_on_a_small_evaluation_is_cheap(net: nn.Module, digits: Digits) -> None:
    small = judged_on(net, digits, {"fgsm": FGSM(eps=0.1)}, n=40, profile="quick")
    assert small.passes <= 40 * 120
    found = by_number(small)
    assert {found[number].status for number in (3, 6, 8)} == {INCONCLUSIVE}
    assert {found[number].status for number in (9, 12, 15, 16)} == {PASS}
    assert "names no defense" in found[17].finding  # more images would change nothing
    assert "profile='full'" in found[19].finding


@pytest.mark.slow
def test_a_quick_verdict_detects_undeclared_randomness(net: nn.Module, digits: Digits) -> None:
    found = judged_on(Noisy(net), digits, {"ensemble": WorstCase(eps=0.3)}, n=60, profile="quick")
    assert by_number(found)[15].status == FAIL


def test_an_accuracy_of_zero_cannot_be_overstated(net: nn.Module, digits: Digits) -> None:
    found = judged_on(nn.Sequential(net, nn.Softmax(1)), digits, {"pgd": PGD(eps=0.5)}, profile="quick")
    assert found.status == BELIEVABLE
    assert found.none_robust
    assert set(by_number(found)) == ALL
    assert found.passes == 0
    data = digits[0][:15], digits[1][:15]
    table = evaluate(net, data, [PGD(eps=0.5)]).to_frame()
    table.loc[table["linf"] > 0, "linf"] = 0.6
    escaped = verdict(Evaluation(table), net, data, [PGD(eps=0.5)])
    assert 1 in failed(escaped)
    assert escaped.passes > 0  # a point beyond the budget breaks no example


@pytest.mark.parametrize("n", [2, 20])
def test_a_quick_verdict_on_a_detector_has_check_20(n: int, net: nn.Module, digits: Digits) -> None:
    found = judged_on(Leaking(net), digits, {"pgd": PGD(eps=0.1, steps=5)}, n=n, profile="quick")
    assert by_number(found)[20].status == INCONCLUSIVE


@pytest.mark.parametrize(
    "numbers", [{2, 8, 9, 10, 15, 16, 18}, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_passes_are_those_that_the_model_counts(
    numbers: set[int], net: nn.Module, digits: Digits, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, attacks = (digits[0][:40], digits[1][:40]), {"pgd": PGD(eps=0.1, steps=10)}
    evaluation, model = evaluate(net, data, attacks), counting(net)
    monkeypatch.setattr(judge, "CHECKS", [spec for spec in CHECKS if spec.number in numbers])
    found = verdict(evaluation, model, data, attacks, profile="full")
    assert found.passes == pytest.approx(model.forwards + model.backwards, rel=0.1)


def test_the_list_of_checks_is_complete() -> None:
    assert [spec.number for spec in CHECKS] == list(range(1, 30))
    failures = {Check(spec.number, spec.name, FAIL, "").failure for spec in CHECKS}
    assert len(failures) == 29
    assert failures.isdisjoint(spec.name for spec in CHECKS)
    assert all(spec.source and spec.advice and (spec.look or spec.sample == TABLE) for spec in CHECKS)


@pytest.mark.parametrize("spec", CHECKS, ids=lambda spec: str(spec.number))
def test_the_documentation_shows_the_list_of_checks(spec: CheckSpec) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {spec.number} | {spec.name} |")]
    _, _, _, passes, sample, source, _ = (cell.strip() for cell in row.split("|"))
    limit = f"{100 * spec.limit:g}".replace("0.", ".")
    assert f" {limit} " in f" {passes} "
    assert (sample, source) == (spec.sample, spec.source.partition(", arXiv")[0])


def test_a_share_of_a_few_examples_decides_nothing() -> None:
    spec = CheckSpec(1, "x", 0.005, "", TABLE, advice="a")

    def share(count: int, n: int) -> str:
        return spec.share(count, n, "f").status

    assert [share(0, 10), share(1, 200)] == [PASS, PASS]
    assert [share(1, 10), share(2, 100), share(10, 200)] == [FAIL, FAIL, FAIL]
    assert share(1, 150) == INCONCLUSIVE
    assert spec.share(0, 0, "f").status == INCONCLUSIVE
    spec = replace(spec, limit=0.1)
    values = [(float("nan"), "f", None), (0.1, "f", None), (0.2, "f", None), (0.2, "f", 0.05)]
    assert [spec.value(*given).status for given in values] == [INCONCLUSIVE, PASS, FAIL, INCONCLUSIVE]


def test_the_distance_to_other_classes() -> None:
    x = torch.tensor([[0.0, 0.0], [0.3, 0.0], [1.0, 0.0]])
    assert other_class_distance(x, torch.tensor([0, 0, 1])) == pytest.approx(0.7)  # of 1, .7, .7
    assert other_class_distance(x, torch.tensor([0, 0, 0])) == float("inf")


def test_what_cannot_be_judged_is_refused(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:30], digits[1][:30]
    result = evaluate(net, (x, y), [PGD(eps=0.1, steps=2)])
    with pytest.raises(ValueError, match="profile must be one of quick, full, got 'slow'"):
        verdict(result, net, (x, y), profile="slow")
    with pytest.raises(ValueError, match=r"no adaptive budget attack at any norm eps 0\.2"):
        verdict(result, net, (x, y), eps=0.2)
    with pytest.raises(ValueError, match=r"not those of the evaluation: it has 30 examples, 20 of their numbers"):
        verdict(result, net, (x[:20], y[:20]))
    with pytest.raises(ValueError, match="not those of the evaluation"):
        verdict(result, net, (x, y.flip(0)))
    with pytest.raises(ValueError, match="no adaptive budget attack"):
        verdict(evaluate(net, (x, y), [NearestL2(explore=2, refine=2, finish=2)]), net, (x, y))


class Shy(nn.Module):
    """Two classes: eight pixels decide once they are brighter than .35; below, the gradient is that of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.lead = nn.Parameter(torch.tensor(-2.0))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        lead = 4 * (flat[:, :8] - 0.35).relu().sum(1) - 0.01 * flat[:, 8:].sum(1) + self.lead
        return torch.stack([torch.zeros_like(lead), lead], 1)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_what_ascents_inside_an_l2_ball_cannot_see_is_found(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "CHECKS", [spec for spec in CHECKS if spec.number == 29])
    x = 0.05 + 0.01 * torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = (x, torch.zeros(200, dtype=torch.int64))

    def check(attack: Attack) -> Check | None:
        evaluation = evaluate(Shy(), data, {"a": attack})
        return by_number(verdict(evaluation, Shy(), data, {"a": attack}, profile=profile)).get(29)

    found = check(APGD(eps=1.2, norm="l2"))
    assert found is not None
    assert found.status == FAIL
    assert found.figure is not None
    assert found.figure > 0.3
    assert "evaluate with WorstCase" in found.finding
    x[:100, :, 0] = 0.41  # half of the examples are broken already: the share is of all that are classified correctly
    found = check(APGD(eps=1.2, norm="l2"))
    assert found is not None
    assert found.figure is not None
    assert 0.3 < found.figure <= 0.5
    believed = check(WorstCase(eps=0.6, norm="l2"))
    assert believed is not None
    assert believed.status == PASS
    assert check(PGD(eps=0.02)) is None  # the check applies to budgets in L2 only
