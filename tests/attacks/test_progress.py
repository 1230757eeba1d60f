"""Progress from inside the loops of attacks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import (
    APGD,
    FAB,
    FGSM,
    JSMA,
    PGD,
    Attack,
    AutoAttack,
    CarliniWagner,
    NearestL2,
    Square,
    WorstCase,
)
from robustlit.attacks.progress import report_to, track

ATTACKS: list[Attack] = [
    PGD(eps=0.1, steps=5, restarts=3), APGD(eps=0.1, steps=10), CarliniWagner(steps=5, searches=3), FAB(steps=6),
    JSMA(gamma=0.02), Square(eps=0.1, queries=20), NearestL2(explore=3, candidates=2, kept=2, refine=3, finish=3),
    WorstCase(eps=0.05),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_tells_how_far_it_is_and_finds_the_same(
    attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:6], digits[1][:6]
    unwatched = attack.run(net, x, y, seed=0)
    shares: list[float] = []
    with report_to(shares.append):
        watched = attack.run(net, x, y, seed=0)
    assert torch.equal(watched.x_adv, unwatched.x_adv)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert len(set(shares)) > 3
    assert shares[-1] <= 1


def test_loops_within_loops_share_the_work_by_weight() -> None:
    shares: list[float] = []
    with report_to(shares.append):
        for outer in track("ab", [1, 3]):
            for _ in track(range(4)):
                if outer == "a":
                    break
        for _ in track(range(2)):  # what comes after the loops is part of the same work: nothing is taken back
            pass
    assert shares == [0, 0, 0.25, 0.25, 0.25 + 0.75 / 4, 0.625, 0.25 + 0.75 * 3 / 4, 0.8125, 0.8125]


def test_what_is_left_is_shared_by_the_weights_as_they_are_now() -> None:
    shares: list[float] = []
    weights = [1.0, 1.0, 8.0]
    with report_to(shares.append):
        for item in track("abc", weights):
            if item == "a":
                weights[1:] = [3.0, 1.0]
    assert shares == pytest.approx([0, 0.1, 0.1 + 0.9 * 3 / 4])


@pytest.mark.parametrize("attack", ["worst case", "budgets below and above"])
def test_what_is_shown_is_near_the_share_of_the_forwards(
    attack: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    done, seen = [0], []  # forwards of an image
    hook = net.register_forward_hook(lambda module, inputs, logits: done.__setitem__(0, done[0] + len(logits)))

    def progress(name: str, share: float) -> None:
        seen.append((share, done[0]))

    images = digits[0][:40], digits[1][:40]
    if attack == "worst case":
        with report_to(lambda share: progress(attack, share)):
            WorstCase(eps=0.01).run(net, *images, seed=0)
    else:
        evaluate(net, images, [PGD(eps=0.05)], grid={"linf": [0.01, 0.02, 0.03, 0.06]}, progress=progress)
    hook.remove()
    assert max(abs(share - forwards / done[0]) for share, forwards in seen) < 0.25


def test_an_attack_of_few_passes_has_a_small_share_of_a_sweep(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    seen: dict[str, list[float]] = {}
    attacks: list[Attack] = [FGSM(eps=0.1), PGD(eps=0.1, steps=40), Square(eps=0.1, queries=120)]
    few = digits[0][:4], digits[1][:4]
    evaluate(net, few, attacks, progress=lambda name, share: seen.setdefault(name, []).append(share))
    assert [max(shares) for shares in seen.values()] == pytest.approx([2 / 202, 82 / 202, 1])


def test_nobody_watching_costs_nothing_and_an_error_leaves_no_watcher() -> None:
    endless = track(iter(int, 1))  # not made a list
    assert next(endless) == 0
    shares: list[float] = []
    with pytest.raises(ZeroDivisionError), report_to(shares.append):
        _ = [1 / number for number in track(range(3))]
    list(track(range(3)))
    assert shares == [0]


def test_a_sweep_moves_from_the_first_step_to_the_end(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[str, float]] = []
    attacks = [PGD(eps=0.1, steps=10), AutoAttack(eps=0.02)]
    small = (digits[0][:8], digits[1][:8])
    evaluate(
        net,
        small,
        attacks,
        grid={"linf": [0.05, 0.2]},
        progress=lambda name, share: seen.append((name, share)),
        batch_size=4,
    )
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert sum(0 < share < 0.25 for name, share in seen if name == "pgd") > 5
    assert {name for name, _ in seen} == {"pgd", "auto_attack"}


def test_the_search_for_the_least_budget_never_stands_still(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    calls, moved = [0], [0]
    hook = net.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    shares: list[float] = []

    def progress(name: str, share: float) -> None:
        if not shares or share > shares[-1]:
            shares.append(share)
            moved.append(calls[0])

    grid = [0.01 * number for number in range(1, 9)]
    evaluate(net, (digits[0][:20], digits[1][:20]), [PGD(eps=0.3, steps=20)], grid={"linf": grid}, progress=progress)
    hook.remove()
    waits = [after - before for before, after in zip(moved, [*moved[1:], calls[0]], strict=True)]
    # First come the questions about the clean images; an attack looks at its results between steps.
    assert max(waits[1:]) <= 4
