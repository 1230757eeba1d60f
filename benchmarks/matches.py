"""Which of our attacks is compared with which attacks of other libraries, each at the same number of steps.

A match is one entry of `MATCHES`. `eps` is the L-inf budget that the user chose.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peers import Peer, Settings, adv_lib, art, auto_attack, foolbox, torchattacks, whole_plan

from robustlit.attacks import Attack


@dataclass(frozen=True)
class Match:
    """An attack of ours and its peers, at one budget of steps.

    Args:
        name: The name after `--attacks`.
        ours: eps -> the attack.
        peers: The calls of the peers.
        norm: Norm in which the distance is measured.
        minimal: It minimises the distance, so its distances are compared; else only its error rate within eps.
        scale: Factor on `eps`, for an L2 budget comparable to the L-inf one.
        targeted: The target of each example is the class after its own, as in torchattacks' JSMA.
        few: Most images, because a peer takes minutes.
    """

    name: str
    ours: Callable[[float], Attack]
    peers: tuple[Peer, ...] = ()
    norm: str = "linf"
    minimal: bool = False
    scale: float = 1.0
    targeted: bool = False
    few: int = 10**9


def _ours(module: str, name: str, settings: Settings | None = None) -> Callable[[float], Attack]:
    def build(eps: float) -> Attack:
        arguments: dict[str, Any] = {} if settings is None else settings(eps)
        attack: Attack = getattr(importlib.import_module(f"robustlit.attacks.{module}"), name)(**arguments)
        return attack

    return build


MATCHES: tuple[Match, ...] = (
    Match(
        "fgsm",
        _ours("fgsm", "FGSM", lambda e: {"eps": e}),
        (
            foolbox("LinfFastGradientAttack"),
            torchattacks("FGSM", lambda e: {"eps": e}),
            art("FastGradientMethod", lambda e: {"eps": e}),
        ),
    ),
    Match(
        "bim",
        _ours("bim", "BIM", lambda e: {"eps": e, "steps": 10}),
        (
            foolbox("LinfBasicIterativeAttack", lambda e: {"abs_stepsize": e / 10, "steps": 10}),
            torchattacks("BIM", lambda e: {"eps": e, "alpha": e / 10, "steps": 10}),
            art("BasicIterativeMethod", lambda e: {"eps": e, "eps_step": e / 10, "max_iter": 10}),
        ),
    ),
    Match(
        "pgd",
        _ours("pgd", "PGD", lambda e: {"eps": e, "steps": 40, "step_size": e / 30}),
        (
            foolbox("LinfProjectedGradientDescentAttack", lambda e: {"abs_stepsize": e / 30, "steps": 40}),
            torchattacks("PGD", lambda e: {"eps": e, "alpha": e / 30, "steps": 40}),
            art(
                "ProjectedGradientDescent",
                lambda e: {"eps": e, "eps_step": e / 30, "max_iter": 40, "num_random_init": 1},
            ),
            adv_lib("pgd_linf", lambda e: {"ε": e, "steps": 40, "absolute_step_size": e / 30}),
        ),
    ),
    Match(
        "pgd-l2",
        _ours("pgd", "PGD", lambda e: {"eps": e, "steps": 40, "norm": "l2"}),
        (
            foolbox("L2ProjectedGradientDescentAttack", lambda e: {"abs_stepsize": e / 16, "steps": 40}),
            torchattacks("PGDL2", lambda e: {"eps": e, "alpha": e / 16, "steps": 40}),
            art(
                "ProjectedGradientDescent",
                lambda e: {"eps": e, "eps_step": e / 16, "max_iter": 40, "num_random_init": 1, "norm": 2},
            ),
        ),
        norm="l2",
        scale=5.0,
    ),
    Match(
        "mim",
        _ours("mim", "MIM", lambda e: {"eps": e, "steps": 10}),
        (
            foolbox("LinfMomentumIterativeFastGradientMethod", lambda e: {"abs_stepsize": e / 10, "steps": 10}),
            torchattacks("MIFGSM", lambda e: {"eps": e, "alpha": e / 10, "steps": 10}),
            art("MomentumIterativeMethod", lambda e: {"eps": e, "eps_step": e / 10, "max_iter": 10}),
        ),
    ),
    Match(
        "deepfool",
        _ours("deepfool", "DeepFool", lambda e: {"steps": 50, "overshoot": 0.02, "norm": "l2"}),
        (
            adv_lib("df", {"steps": 50, "overshoot": 0.02}),
            foolbox("L2DeepFoolAttack", {"steps": 50, "candidates": 10, "overshoot": 0.02}, minimal=True),
            art("DeepFool", {"max_iter": 50, "epsilon": 0.02, "nb_grads": 10}),
            torchattacks("DeepFool", {"steps": 50, "overshoot": 0.02}),
        ),
        norm="l2",
        minimal=True,
    ),
    Match(
        "deepfool-linf",
        _ours("deepfool", "DeepFool", lambda e: {"steps": 50, "overshoot": 0.02, "norm": "linf"}),
        (
            adv_lib("df", {"steps": 50, "overshoot": 0.02, "norm": math.inf}),
            foolbox("LinfDeepFoolAttack", {"steps": 50, "candidates": 10, "overshoot": 0.02}, minimal=True),
        ),
        minimal=True,
    ),
    Match(
        "carlini-wagner",
        _ours("carlini_wagner", "CarliniWagner"),  # 5 searches of 100 steps are enough
        (
            adv_lib("carlini_wagner_l2", {"max_iterations": 100, "binary_search_steps": 9, "learning_rate": 0.1}),
            foolbox("L2CarliniWagnerAttack", {"steps": 100, "binary_search_steps": 9, "stepsize": 0.1}, minimal=True),
            torchattacks("CW", {"c": 1, "steps": 900, "lr": 0.1}),
        ),
        norm="l2",
        minimal=True,
        few=100,
    ),
    Match(
        "carlini-wagner-small-steps",  # the paper's learning rate and first constant
        _ours("carlini_wagner", "CarliniWagner", lambda e: {"steps": 200, "lr": 0.01, "initial_const": 1e-3}),
        (
            adv_lib("carlini_wagner_l2", {"max_iterations": 200, "binary_search_steps": 9}),
            foolbox("L2CarliniWagnerAttack", {"steps": 200, "binary_search_steps": 9}, minimal=True),
        ),
        norm="l2",
        minimal=True,
        few=100,
    ),
    Match(
        "newtonfool",
        _ours("newtonfool", "NewtonFool", lambda e: {"steps": 100, "eta": 0.01}),
        (
            art("NewtonFool", {"max_iter": 100, "eta": 0.01}),
            foolbox("NewtonFoolAttack", {"steps": 100, "stepsize": 0.01}, minimal=True),
        ),
        norm="l2",
        minimal=True,
    ),
    Match(
        "jsma",
        _ours("jsma", "JSMA", lambda e: {"theta": 1.0, "gamma": 0.145}),
        (
            art("SaliencyMapMethod", {"theta": 1.0, "gamma": 0.145}, targeted=True),
            torchattacks("JSMA", {"theta": 1.0, "gamma": 0.145}),
        ),
        norm="l0",
        minimal=True,
        targeted=True,
        few=20,
    ),
    Match(
        "jsma-probabilities",  # the map of probabilities, where the peers have that of logits
        _ours("jsma", "JSMA", lambda e: {"theta": 1.0, "gamma": 0.145, "outputs": "probabilities"}),
        (
            art("SaliencyMapMethod", {"theta": 1.0, "gamma": 0.145}, targeted=True),
            torchattacks("JSMA", {"theta": 1.0, "gamma": 0.145}),
        ),
        norm="l0",
        minimal=True,
        targeted=True,
        few=20,
    ),
    Match(
        "apgd-ce",
        _ours("apgd", "APGD", lambda e: {"eps": e, "steps": 100, "loss": "ce"}),
        (
            auto_attack("APGDAttack", lambda e: {"eps": e, "n_iter": 100, "loss": "ce"}),
            adv_lib("apgd", lambda e: {"eps": e, "norm": math.inf, "n_iter": 100, "loss_function": "ce"}),
            torchattacks("APGD", lambda e: {"eps": e, "steps": 100, "loss": "ce"}),
        ),
    ),
    Match(
        "apgd-dlr",
        _ours("apgd", "APGD", lambda e: {"eps": e, "steps": 100, "loss": "dlr"}),
        (
            auto_attack("APGDAttack", lambda e: {"eps": e, "n_iter": 100, "loss": "dlr"}),
            adv_lib("apgd", lambda e: {"eps": e, "norm": math.inf, "n_iter": 100, "loss_function": "dlr"}),
        ),
    ),
    Match(
        "apgd-t",
        _ours("apgd", "APGD", lambda e: {"eps": e, "steps": 100, "loss": "dlr", "targets": 9}),
        (
            auto_attack("APGDAttack_targeted", lambda e: {"eps": e, "n_iter": 100}),
            adv_lib("apgd_targeted", lambda e: {"eps": e, "norm": math.inf, "n_iter": 100}),
            torchattacks("APGDT", lambda e: {"eps": e, "steps": 100}),
        ),
    ),
    Match(
        "fab-linf",
        _ours("fab", "FAB", lambda e: {"steps": 100, "norm": "linf"}),
        (
            auto_attack("FABAttack_PT", lambda e: {"n_iter": 100, "eps": e}),
            adv_lib("fab", {"n_iter": 100, "norm": math.inf}),
        ),
        minimal=True,
        few=100,
    ),
    Match(
        "fab-l2",
        _ours("fab", "FAB", lambda e: {"steps": 100, "norm": "l2"}),
        (
            auto_attack("FABAttack_PT", lambda e: {"n_iter": 100, "eps": e, "norm": "L2"}),
            adv_lib("fab", {"n_iter": 100, "norm": 2}),
        ),
        norm="l2",
        minimal=True,
        scale=5.0,
        few=100,
    ),
    Match(
        "ddn",
        _ours("ddn", "DDN", lambda e: {"steps": 100}),
        (
            adv_lib("ddn", {"steps": 100, "levels": None}),
            foolbox("DDNAttack", {"steps": 100}, minimal=True),
        ),
        norm="l2",
        minimal=True,
    ),
    Match(
        "nearest-l2",
        _ours("nearest_l2", "NearestL2"),
        (
            adv_lib("alma", {"num_steps": 1000}, "ALMA 1000"),
            adv_lib("alma", {"num_steps": 100}, "ALMA 100"),
            adv_lib("sdf", {}, "SuperDeepFool"),
            adv_lib("ddn", {"steps": 100, "levels": None}, "DDN 100"),
        ),
        norm="l2",
        minimal=True,
        few=200,
    ),
    Match(
        "square",
        _ours("square", "Square", lambda e: {"eps": e, "queries": 1000}),
        (
            auto_attack("SquareAttack", lambda e: {"eps": e, "n_queries": 1000, "resc_schedule": False}),
            torchattacks("Square", lambda e: {"eps": e, "n_queries": 1000, "resc_schedule": False}),
            art("SquareAttack", lambda e: {"eps": e, "max_iter": 1000}),
        ),
        few=200,
    ),
    Match(
        "auto-attack",
        _ours("auto_attack", "AutoAttack", lambda e: {"eps": e}),
        (auto_attack("AutoAttack", lambda e: {"eps": e}),),
    ),
    Match(
        "auto-attack-l2",
        _ours("auto_attack", "AutoAttack", lambda e: {"eps": e, "norm": "l2"}),
        (auto_attack("AutoAttack", lambda e: {"eps": e, "norm": "L2"}),),
        norm="l2",
        scale=5.0,
    ),
    Match(
        "worst-case",
        _ours("worst_case", "WorstCase", lambda e: {"eps": e}),
        (auto_attack("AutoAttack", lambda e: {"eps": e}), whole_plan("linf")),
    ),
    Match(
        "worst-case-l2",
        _ours("worst_case", "WorstCase", lambda e: {"eps": e, "norm": "l2"}),
        (auto_attack("AutoAttack", lambda e: {"eps": e, "norm": "L2"}), whole_plan("l2")),
        norm="l2",
        scale=5.0,
    ),
)


def matches(names: str | None = None) -> list[Match]:
    """Return the matches of these names, in the table's order; all of them for None."""
    known = {match.name: match for match in MATCHES}
    wanted = list(known) if names is None else names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"there is no match called {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]
