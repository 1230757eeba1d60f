"""The verdict tells right from wrong: broken set-ups fail by the check that should see them, sound ones pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, EOT, FGSM, PGD, Attack, BudgetAttack, NearestL2, Square, WorstCase
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.defenses import BitDepth
from robustlit.evaluation import evaluate
from robustlit.results import Evaluation, Verdict
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Check, judged_share, judged_value
from robustlit.threat import Ball
from robustlit.verdict import verdict
from robustlit.verdict.from_probes import randomness
from robustlit.verdict.from_table import valid
from robustlit.verdict.growth import other_class_distance
from robustlit.verdict.probe import Probe

Digits = tuple[Tensor, Tensor]
ALL = set(range(1, 20))


def judged(
    model: nn.Module, digits: Digits, attacks: dict[str, Attack] | None = None, n: int = 15, **options: Any
) -> Verdict:
    """The full verdict on an evaluation at L-inf .1."""
    x, y = digits[0][:n], digits[1][:n]
    attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1)} if attacks is None else attacks
    result = evaluate(model, (x, y), attacks)
    return verdict(result, model, (x, y), attacks, **{"profile": "full", **options})


def failed(found: Verdict) -> set[int]:
    return {check.number for check in found.failed}


class Rounded(nn.Module):
    """A rounding layer that gives no surrogate."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.round(x * 3) / 3)


class Noisy(Rounded):
    """A random layer that nobody declared."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.3 * torch.randn_like(x))


class Leaking(nn.Module):
    """A detector that knows the clean images, and refuses all else."""

    stochastic = False
    rejects = True

    def __init__(self, net: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.net, self.known = net, known

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        far = torch.cdist(x.flatten(1), self.known.flatten(1)).amin(1)
        return self.net(x), torch.where(far > 1e-3, 1.0, -1.0) + 0 * x.flatten(1).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        logits, excess = self.detection(x)
        return torch.cat([logits, (logits.amax(1) + excess).unsqueeze(1)], 1)

    def attack_view(self) -> nn.Module:
        return self

    def undefended(self) -> nn.Module:
        return self.net


@dataclass(frozen=True)
class Backwards(BudgetAttack):
    """An attack with the wrong sign."""

    name: ClassVar[str] = "backwards"
    steps: int = 10

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        ball, z = Ball(x, eps, self.norm), x
        for _ in range(self.steps):
            z = ball.step(z, -victim.gradient(z, criterion.log_odds, rows)[2], eps / 4)
        return z


@dataclass(frozen=True)
class Escaping(PGD):
    """An attack that leaves its ball."""

    name: ClassVar[str] = "escaping"

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        return super()._search(victim, x, criterion, rows, draws, eps * 2)


@dataclass(frozen=True)
class LastPoint(BIM):
    """An attack that loses what it finds on its way."""

    name: ClassVar[str] = "last-point"

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        super()._search(victim, x, criterion, rows, draws, eps)
        return x


@dataclass(frozen=True)
class PlainLoss(BudgetAttack):
    """An attack that climbs the cross-entropy as it comes: zero in float32 where the softmax saturates."""

    name: ClassVar[str] = "plain-loss"
    steps: int = 20

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        ball, z = Ball(x, eps, self.norm), x

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, criterion.label, reduction="none")

        for _ in range(self.steps):
            z = ball.step(z, victim.gradient(z, cross_entropy, rows)[2], eps / 8)
        return z


class Saturated(Rounded):
    """Logits so large that the softmax of each is 0 or 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


def test_a_sound_evaluation_passes(net: nn.Module, digits: Digits) -> None:
    minimal = NearestL2(explore=30, refine=20, finish=20)
    found = judged(net, digits, {"fgsm": FGSM(eps=0.1), "pgd": WorstCase(eps=0.1), "nearest_l2": minimal}, n=6)
    assert failed(found) == set(), found.failed
    assert found.status == PASS
    assert {check.number for check in found.checks} == ALL
    undecided = {check.number for check in found.checks if check.status == INCONCLUSIVE}
    assert undecided <= {14, 17, 13, 7, 6, 4, 2, 18}  # without a defense or a substitute; shares of few
    assert {14, 17} <= undecided


def test_a_defense_that_says_how_it_is_attacked_passes(net: nn.Module, digits: Digits) -> None:
    found = judged(BitDepth(net, 3), digits)
    assert not failed(found) & {1, 3, 9, 15, 16}
    ablated = {check.number: check for check in found.checks}[17]
    assert ablated.figure is not None


@pytest.mark.parametrize(
    ("broken", "seen_by"),
    [
        (lambda net, x: Rounded(net), {9}),
        (lambda net, x: nn.Sequential(net, nn.Softmax(1)), {16}),
        (lambda net, x: Noisy(net), {15}),
        (lambda net, x: Leaking(net, x), {3}),
    ],
    ids=["rounding", "probabilities", "random", "leaking"],
)
def test_a_broken_model_fails_by_the_check_that_should_see_it(
    broken: Any, seen_by: set[int], net: nn.Module, digits: Digits
) -> None:
    found = judged(broken(net, digits[0]), digits)
    assert seen_by <= failed(found)
    assert found.status == FAIL
    for check in found.failed:
        assert ": " in check.finding  # says what to try


@pytest.mark.parametrize(
    ("attack", "seen_by"),
    [
        (PGD(eps=0.1, steps=3, step_size=0.01), {6}),
        (Backwards(eps=0.1), {3}),
        (Escaping(eps=0.1), {1}),
        (LastPoint(eps=0.1), {11}),
    ],
    ids=["too few steps", "wrong sign", "leaves the ball", "returns its last point"],
)
def test_a_broken_attack_fails_by_the_check_that_should_see_it(
    attack: BudgetAttack, seen_by: set[int], net: nn.Module, digits: Digits
) -> None:
    assert seen_by <= failed(judged(net, digits, {attack.name: attack}))


def test_a_saturated_softmax_stops_a_plain_loss_and_is_seen_but_not_ours(net: nn.Module, digits: Digits) -> None:
    model = Saturated(net)
    blind = judged(model, digits, {"plain-loss": PlainLoss(eps=0.1)})
    assert {2, 3, 13} <= failed(blind), blind.failed
    assert all(": " in check.finding for check in blind.failed)
    ours = judged(model, digits, {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=50, restarts=2)})
    assert not failed(ours) & {2, 3, 13}, ours.failed


def test_without_a_minimal_attack_the_nearest_in_l2_are_looked_for(net: nn.Module, digits: Digits) -> None:
    found = judged(net, digits, {"pgd": PGD(eps=0.1, steps=50)})
    check = {check.number: check for check in found.checks}[5]
    assert check.status == PASS
    assert check.finding.startswith("standing at L2 ")
    assert ": 0 of 1" in check.finding  # of the rightly classified, by DDN


def test_attacks_at_one_budget_are_held_against_half_of_it(net: nn.Module, digits: Digits) -> None:
    sound = judged(net, digits, {"pgd": PGD(eps=0.1, steps=50)})
    lost = judged(net, digits, {"plain-loss": PlainLoss(eps=0.2, steps=1)})
    by_number = [{check.number: check for check in found.checks}[4] for found in (sound, lost)]
    assert by_number[0].status == PASS
    assert "by PGD within 0.05" in by_number[0].finding
    assert by_number[1].status == FAIL


def test_a_table_without_witnesses_says_nothing_of_their_validity(table: Any) -> None:
    check = valid(table([(k, "pgd", 0.1, None) for k in range(5)]))
    assert check.status == INCONCLUSIVE
    assert "no attack found a witness" in check.finding
    escaped = valid(table([(0, "pgd", 0.1, 0.1), (1, "square", 0.1, 0.3)]))
    assert escaped.status == FAIL
    assert "1 of 2" in escaped.finding
    assert "square leaves its ball" in escaped.finding


def test_the_same_sound_attack_passes_where_the_broken_one_fails(net: nn.Module, digits: Digits) -> None:
    found = judged(net, digits, {"pgd": PGD(eps=0.1, steps=50, restarts=2)})
    assert not failed(found) & {1, 3, 6}
    assert {check.number: check.status for check in found.checks}[11] == PASS


def test_a_model_without_gradients_is_told_so_and_the_rest_goes_on(net: nn.Module, digits: Digits) -> None:
    class Hard(Rounded):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(x)

    found = judged(Hard(net), digits, {"square": Square(eps=0.1, queries=50)})
    assert failed(found) <= {9, 13}
    later = {check.number: check for check in found.checks}
    assert later[9].status == FAIL
    assert "attack_view" in later[9].finding
    assert later[6].status == INCONCLUSIVE
    assert later[15].status == PASS


def test_declared_randomness_is_judged_by_fresh_draws(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:12], digits[1][:12]
    attack, standing = PGD(eps=0.15, steps=3), torch.ones(12, dtype=torch.bool)
    check = randomness(Probe(EOT(Noisy(net), 3), x, y, torch.arange(12), standing, attack, "linf", 0.15, 0))
    assert check.status != FAIL
    assert "gradients over 3 draws" in check.finding


def test_a_quick_verdict_costs_a_tenth_at_most(net: nn.Module, digits: Digits) -> None:
    attacks: dict[str, Attack] = {"fgsm": FGSM(eps=0.05), "ensemble": WorstCase(eps=0.05)}
    quick = judged(net, digits, attacks, n=150, profile="quick")
    assert 0 < quick.share <= 0.1
    assert failed(quick) == set(), quick.failed
    assert 9 in {check.number for check in quick.checks if check.status == PASS}


def test_of_a_small_evaluation_a_quick_verdict_costs_little_and_says_what_it_can(
    net: nn.Module, digits: Digits
) -> None:
    small = judged(net, digits, {"fgsm": FGSM(eps=0.1)}, n=40, profile="quick")
    assert small.passes <= 40 * 100
    status = {check.number: check for check in small.checks}
    assert {status[number].status for number in (3, 6, 8)} == {INCONCLUSIVE}
    assert {status[number].status for number in (9, 12, 15, 16)} == {PASS}
    assert "names no defense" in status[17].finding  # more images would change nothing
    assert "profile='full'" in status[19].finding


def test_an_undeclared_random_net_that_fell_at_once_is_seen_by_a_quick_verdict(net: nn.Module, digits: Digits) -> None:
    found = judged(Noisy(net), digits, {"ensemble": WorstCase(eps=0.3)}, n=60, profile="quick")
    assert {check.number: check.status for check in found.checks}[15] == FAIL


def test_where_nobody_stands_nothing_is_overstated(net: nn.Module, digits: Digits) -> None:
    found = judged(nn.Sequential(net, nn.Softmax(1)), digits, {"pgd": PGD(eps=0.5)}, profile="quick")
    assert found.status == PASS
    assert {check.number for check in found.checks} == ALL
    assert found.passes == 0
    x, y = digits[0][:15], digits[1][:15]
    table = evaluate(net, (x, y), [PGD(eps=0.5)]).to_frame()
    table.loc[table["linf"] > 0, "linf"] = 0.6
    escaped = verdict(Evaluation(table), net, (x, y), [PGD(eps=0.5)])
    assert 1 in failed(escaped)
    assert escaped.passes > 0  # a point beyond the budget breaks nobody


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_model_with_a_detector_is_never_without_its_check(profile: str, net: nn.Module, digits: Digits) -> None:
    found = judged(Leaking(net, digits[0]), digits, {"pgd": PGD(eps=0.1, steps=5)}, n=20, profile=profile)
    assert 20 in {check.number for check in found.checks}


def test_passes_are_those_that_the_model_saw(net: nn.Module, digits: Digits, counting: Any) -> None:
    x, y = digits[0][:40], digits[1][:40]
    attacks = {"pgd": PGD(eps=0.1, steps=10)}
    result = evaluate(net, (x, y), attacks)
    model = counting(net)
    found = verdict(result, model, (x, y), attacks, profile="full")
    assert found.passes == pytest.approx(model.forwards + model.backwards, rel=0.1)


def test_a_verdict_is_kept(tmp_path: Path, net: nn.Module, digits: Digits) -> None:
    found = judged(net, digits, n=30)
    found.save(tmp_path / "evaluation")
    for path in (tmp_path, tmp_path / "evaluation", tmp_path / "evaluation" / "verdict.json"):
        assert Verdict.load(path) == found
    stored = json.loads((tmp_path / "evaluation" / "verdict.json").read_text())
    assert stored["status"] == found.status
    assert stored["caution"].endswith("does not prove robustness")
    with pytest.raises(ValueError, match=r"no verdict\.json in .*--verdict"):
        Verdict.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checks": []}, "no checks"),
        ({"checks": None}, "not iterable"),
        ({"checks": [{"number": 1, "name": "a", "status": "MAYBE", "finding": "b"}]}, "status of check 1 must be PASS"),
        ({"checks": [{"number": 1, "name": "a", "status": PASS, "finding": "b", "figure": "2 %"}]}, "must be numbers"),
        ({"checks": [{"number": 1, "name": "a", "status": PASS}]}, "finding"),
        ({"checks": [{"number": 1, "name": "a", "status": PASS, "finding": "b", "colour": "red"}]}, "colour"),
        ({"eps": None}, "eps, seed, passes and share must be numbers"),
        ({"norm": 2}, "must be text"),
        ("{", "Expecting"),
        ("[]", "indices"),
        ("{}", "it lacks 'checks'"),
    ],
)
def test_a_damaged_verdict_or_one_of_another_version_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    file = Verdict([Check(1, "a", PASS, "b")], "quick", 9, "linf", 0.3, 0, 5, 0.1).save(tmp_path)
    text = change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change)
    file.write_text(text)
    with pytest.raises(ValueError, match=r"no verdict of this version: .*judge the checkpoint again") as caught:
        Verdict.load(tmp_path)
    assert said in str(caught.value)


def test_the_headline_says_what_failed() -> None:
    def of(*statuses: str) -> str:
        checks = [Check(number, "a", status, "b") for number, status in zip((2, 13, 18), statuses, strict=True)]
        return Verdict(checks, "full", 9, "linf", 0.3, 0, 5, 0.1).headline

    assert of(PASS, FAIL, FAIL) == "verdict FAIL (full, linf 0.3): 2 of 3 checks (Square wins, random noise wins)"
    assert of(PASS, PASS, INCONCLUSIVE) == "verdict PASS (full, linf 0.3): 2 of 3 checks passed, 1 undecided"
    assert of(PASS, INCONCLUSIVE, INCONCLUSIVE).startswith("verdict INCONCLUSIVE")
    failures = [Check(number, "a", FAIL, "b").failure for number in range(1, 21)]
    assert "a" not in failures
    assert len(set(failures)) == 20


def test_a_share_of_a_few_decides_nothing() -> None:
    def share(count: int, n: int) -> str:
        return judged_share(1, "x", count, n, 0.005, "", found="f", advice="a").status

    assert [share(0, 10), share(1, 10), share(1, 200), share(2, 100), share(10, 200)] == [
        PASS, FAIL, PASS, FAIL, FAIL
    ]  # fmt: skip
    assert share(1, 150) == INCONCLUSIVE
    assert judged_share(1, "x", 0, 0, 0.1, "", found="f", advice="a").status == INCONCLUSIVE
    assert judged_value(1, "x", float("nan"), 0.1, "", found="f", advice="a").status == INCONCLUSIVE
    assert judged_value(1, "x", 0.1, 0.1, "", found="f", advice="a").status == PASS


def test_accuracy_that_rises_with_eps_is_seen(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:100], digits[1][:100]
    result = evaluate(net, (x, y), [PGD(eps=0.1)], grid={"linf": [0.05, 0.15]})
    table = result.to_frame()
    table.loc[np.isclose(table["eps"], 0.15), "success"] = False
    found = verdict(Evaluation(table), net, (x, y), [PGD(eps=0.1)])
    assert 4 in failed(found)


def test_other_classes_are_as_far_as_they_are() -> None:
    x = torch.tensor([[0.0, 0.0], [0.3, 0.0], [1.0, 0.0]])
    assert other_class_distance(x, torch.tensor([0, 0, 1])) == pytest.approx(0.7)  # of 1, .7, .7
    assert other_class_distance(x, torch.tensor([0, 0, 0])) == float("inf")


def test_bad_questions_are_refused(net: nn.Module, digits: Digits) -> None:
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


def test_a_check_is_a_plain_value() -> None:
    assert Check(1, "a", PASS, "b") == Check(1, "a", PASS, "b")
