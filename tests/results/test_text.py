"""The text that print(evaluation) shows."""

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


def test_a_line_for_each_accuracy(evaluation: Evaluation) -> None:
    shown = str(evaluation)
    lines = shown.splitlines()
    assert lines[0] == "Evaluation of 20 examples"
    rows = [" ".join(line.split()) for line in lines[1:]]  # the columns are padded
    expected = [f"clean {evaluation.clean_accuracy}"]
    for known, ending in (("greybox", "-greybox"), ("adaptive", "")):
        for attack in ("fgsm", "pgd"):
            for eps in (0.1, 0.2):
                accuracy = evaluation.accuracy(attack=attack, eps=eps, knowledge=known)
                expected.append(f"{attack}{ending} linf {eps} {accuracy}")
        median = evaluation.median_distance("ddn", knowledge=known)
        expected.append(f"ddn{ending} l2 nearest median distance {median:.4g}")
    assert rows == [*expected, *(f"worst case linf {eps} {evaluation.worst_case(eps=eps)}" for eps in (0.1, 0.2))]
    assert repr(evaluation) == shown
    assert max(map(len, lines)) < 80


def test_partial_tables_are_shown(evaluation: Evaluation) -> None:
    cut = Evaluation(evaluation.table, {"complete": False, "meant": 50})
    assert str(cut).startswith("Evaluation of 20 examples (cut short, of 50)\n")
    table = evaluation.to_frame()
    assert str(Evaluation(table[:0])) == "Evaluation of 0 examples"
    grey = str(Evaluation(table[table["knowledge"] == "greybox"].reset_index(drop=True), {"complete": True}))
    assert "pgd-greybox" in grey
    assert "worst case" not in grey
