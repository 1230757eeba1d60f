"""What print(evaluation) shows."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from robustlit import Evaluation, evaluate
from robustlit.attacks import DDN, FGSM, PGD
from robustlit.defenses import BitDepth


@pytest.fixture
def evaluation(net: nn.Module, digits: tuple[Tensor, Tensor]) -> Evaluation:
    x, y = digits
    attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=3), "ddn": DDN(steps=5)}
    knowledge = ("greybox", "adaptive")
    return evaluate(BitDepth(net, bits=4), (x[:20], y[:20]), attacks, grid={"linf": [0.2]}, knowledge=knowledge)


def test_it_says_what_was_found_in_a_few_lines(evaluation: Evaluation) -> None:
    shown = str(evaluation)
    lines = shown.splitlines()
    assert lines[0] == "Evaluation of 20 examples"
    said = [" ".join(line.split()) for line in lines[1:]]  # the columns are padded
    expected = [f"clean {evaluation.clean_accuracy}"]
    for known, ending in (("greybox", "-greybox"), ("adaptive", "")):
        for attack in ("fgsm", "pgd"):
            for eps in (0.1, 0.2):
                expected.append(
                    f"{attack}{ending} linf {eps} {evaluation.accuracy(attack=attack, eps=eps, knowledge=known)}"
                )
        expected.append(
            f"ddn{ending} l2 nearest median distance {evaluation.median_distance('ddn', knowledge=known):.4g}"
        )
    assert said == [*expected, *(f"worst case linf {eps} {evaluation.worst_case(eps=eps)}" for eps in (0.1, 0.2))]
    assert repr(evaluation) == shown
    assert max(map(len, lines)) < 80


def test_one_that_was_cut_short_says_so(evaluation: Evaluation) -> None:
    cut = Evaluation(evaluation.table, {"complete": False, "meant": 50})
    assert str(cut).startswith("Evaluation of 20 examples (cut short, of 50)\n")


def test_an_empty_table_and_one_without_adaptive_attacks_are_shown(evaluation: Evaluation) -> None:
    table = evaluation.to_frame()
    assert str(Evaluation(table[:0])) == "Evaluation of 0 examples"
    grey = str(Evaluation(table[table["knowledge"] == "greybox"].reset_index(drop=True), {"complete": True}))
    assert "pgd-greybox" in grey
    assert "worst case" not in grey
