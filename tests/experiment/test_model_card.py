"""The model card: the figures of results.json, and what they do not say."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd

from robustlit.experiment.model_card import model_card
from robustlit.experiment.results_json import largest_budgets
from robustlit.results import Evaluation
from robustlit.results.table import COLUMNS

PGD = {"norm": "linf", "eps": 8 / 255, "accuracy": 0.5, "n": 200, "interval": [0.43, 0.57], "passes": 60.5}
RESULTS: dict[str, Any] = {
    "recipe": "cifar10_pgd", "name": "a|b", "data": "CIFAR10", "n": 200, "of": 10_000, "seed": 3, "parameters": 1234567,
    "clean": {"accuracy": 0.8, "n": 200, "interval": [0.74, 0.85]}, "complete": True,
    "attacks": {"pgd": PGD, "nearest_l2": {**PGD, "norm": "l2", "eps": None, "median": 0.51234}},
    "worst_case": {**PGD, "rests_on": ["pgd", "nearest_l2"]}, "seconds": {"train": 12.5}, "device": "a CPU",
    "attack_seconds": {"pgd": 7.5},
    "versions": {"torch": "2.6", "wandb": None},
}  # fmt: skip
CONFIG = {"model": {"_target_": "robustlit.models.PreActResNet"}, "defense": None, "objective": {"_target_": "x.Y"}}
ATTACKS = {"pgd": "PGD(eps=0.03)", "nearest_l2": "NearestL2()"}


LARGEST = {"linf": 12 / 255}


def card(command: str | None = "python train.py", attacks: dict[str, str] | None = ATTACKS, **changes: Any) -> str:
    certificates = changes.pop("certificates", {})
    ran = {"attacks": attacks, "certificates": certificates, "seed": 0}
    return model_card({**copy.deepcopy(RESULTS), **changes}, CONFIG, command, ran, LARGEST)


def test_the_figures_are_those_of_results_json() -> None:
    text = card()
    assert text.startswith("# a\\|b\n")  # ends no cell
    assert "80.00 % [74.00, 85.00] of 200 test images of 10000, chosen class by class" in text
    assert "**50.00 % [43.00, 57.00] at L∞ 8/255** under every attack below" in text
    assert "| pgd | L∞ 8/255 | 50.00 % [43.00, 57.00] | 200 | 60.5 | 7.5 |" in text
    assert "| nearest_l2 | L2, median 0.5123 | " in text
    assert "| command | `python train.py` |" in text
    assert "- `pgd`: `PGD(eps=0.03)`" in text
    assert "wandb" not in text
    assert "| seed | 3, one: other seeds may differ by points |" in text
    assert "| seed | 3, of the attacks; how the net was trained is not known here |" in card(recipe="evaluate")


def test_it_says_what_was_not_measured() -> None:
    assert "- Attacks in L1, L0:" in card()
    assert "Attacks without gradients" in card()
    assert "Attacks without gradients" not in card(attacks={"x": "WorstCase(eps=0.03)"})
    assert "no verdict" in card().lower()
    assert "A proof" in card()
    text = card(attacks={}, worst_case=None)
    assert "nothing is known about its robustness" in card(attacks=None, worst_case=None)
    assert "an upper bound" not in text
    assert "cut short" in card(complete=False)


def test_a_verdict_and_a_certificate_stand_beside_the_figure() -> None:
    verdict = {"figure": "overstated", "profile": "full", "PASS": 20, "FAIL": 1, "INCONCLUSIVE": 0}
    assert "calls that figure **overstated** (20 pass, 1 fail, 0 inconclusive)" in card(verdict=verdict)
    proven = {**PGD, "accuracy": 0.25, "certificates": {"crown": {**PGD, "accuracy": 0.25}}}
    text = card(certified=proven)
    assert "25.00 % [43.00, 57.00] are proven robust at L∞ 8/255: a lower bound." in text
    votes = card(certified=proven, certificates={"crown": "RandomizedSmoothing(eps=0.03)"})
    assert "a lower bound (of each image with probability 1 - alpha)." in votes
    assert "- `crown`: `RandomizedSmoothing(eps=0.03)`" in votes
    assert "| proven by crown | L∞ 8/255 | 25.00 %" in text
    assert "A proof" not in text


def test_figures_of_all_images_follow_with_their_number() -> None:
    many = {**PGD, "accuracy": 0.6, "n": 10_000}
    text = card(all_images={"n": 10_000, "clean": {**many, "accuracy": 0.9}, "attacks": {"pgd": many}})
    assert "| pgd | L∞ 8/255 | 50.00 % [43.00, 57.00] | 200 | 60.5 |" in text
    assert "| pgd, all 10000 | L∞ 8/255 | 60.00 % [43.00, 57.00] | 10000 | 60.5 |" in text
    assert "| clean, all 10000 |  | 90.00 % [43.00, 57.00] | 10000 | 60.5 |" in text
    assert text.count("| clean |") == 1


def test_only_budgets_above_the_largest_attacked_one_were_not_attacked() -> None:
    assert "- Figures at budgets above L∞ 12/255; smaller ones" in card()
    table = pd.DataFrame({name: [0] for name in COLUMNS})
    rows = [("linf", 0.1, "pgd"), ("linf", 0.3, "fgsm"), ("l2", 1.5, "pgd-2"), ("l2", float("nan"), "ddn")]
    table = pd.concat([table.assign(norm=n, eps=e, attack=a, knowledge="adaptive") for n, e, a in rows])
    assert largest_budgets(Evaluation(table)) == {"linf": 0.3, "l2": 1.5}


def test_a_verdict_is_asked_for_by_a_command_that_works() -> None:
    assert "believable: `robustlit evaluate RUN --verdict`." in card()
    evaluated: Any = {"seconds": {"evaluate": 3.0}}
    for named in ("resume=auto", "name=mine", "run_dir='my evaluation'"):  # of a folder that is finished
        command = f"robustlit evaluate --model my_nets:build {named} eps=0.1"
        assert "believable: `robustlit evaluate --model my_nets:build eps=0.1 --verdict`." in card(command, **evaluated)
    assert "believable: the same evaluation with `--verdict`." in card(None, **evaluated)
