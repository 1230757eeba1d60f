"""`min_robust`: what may be asked for, what it needs, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from robustlit.experiment.gate import BELOW, check_gate, gate, read_share, warn_of_another_norm
from robustlit.experiment.recipes import ConfigError
from robustlit.results import Evaluation


@pytest.mark.parametrize("given", [0.4, "0.4", " .4 ", 1, "1"])
def test_a_share_is_read(given: Any) -> None:
    assert read_share(given) == float(given)


@pytest.mark.parametrize(
    ("given", "hint"),
    [(40, "mean 0.4?"), ("40%", "mean 0.4?"), ("40 %", "mean 0.4?"), (1.5, "mean 0.015?"), (0, "asks for nothing"),
     (-0.1, "least share"), ("nan", "least share"), ("half", "least share"), (True, "least share"),
     (400, "least share")],
)  # fmt: skip
def test_what_is_no_share_is_refused(given: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"min_robust must be a share in \(0, 1\], got ") as caught:
        read_share(given)
    assert hint in str(caught.value)


def recipe(attacks: Any, *, eps: float = 0.1, norm: str = "linf", **sweep: Any) -> Any:
    held = {"_target_": "robustlit.callbacks.AttackSweep", "attacks": attacks, "knowledge": ["adaptive"], **sweep}
    return OmegaConf.create({"min_robust": 0.4, "eps": eps, "norm": norm, "sweep": held})


PGD = {"_target_": "robustlit.attacks.PGD", "eps": "${eps}", "norm": "${norm}"}
DDN = {"_target_": "robustlit.attacks.DDN"}


@pytest.mark.parametrize(
    "config",
    [
        recipe({"a": PGD}),
        recipe({"a": PGD}, norm="l2"),
        recipe({"a": DDN, "b": PGD}),
        recipe({"a": {"_target_": "robustlit.attacks.FGSM"}}, eps=0.3),  # the attack's own default
        recipe({"a": {**PGD, "eps": 0.3}}, grid={"linf": [0.1, 0.2]}),
        recipe({"a": {"_target_": "theirs.Attack"}}),
        {**recipe({"a": DDN}), "min_robust": None},
    ],
)
def test_a_sweep_at_the_budget_is_taken(config: Any) -> None:
    check_gate(OmegaConf.create(config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (recipe({"a": PGD}, _target_=None), "sweep=none nothing is attacked"),
        (recipe({"a": DDN}, norm="l2"), r"no attack of the sweep \(a\) runs at that budget"),
        (recipe({"a": {**PGD, "norm": "l2"}}), "at linf 0.1, and no attack"),
        (recipe({"a": {**PGD, "eps": 0.3}}, grid={"linf": [0.2]}), "at linf 0.1, and no attack"),
        (recipe({"a": PGD}, knowledge=["greybox"]), r"sweep.knowledge=\[greybox\] runs none"),
    ],
)
def test_a_sweep_beside_the_budget_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_gate(config)


def test_a_sweep_in_another_norm_than_the_budget_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    def warning(config: Any) -> str:
        warn_of_another_norm(OmegaConf.create(config))
        return capsys.readouterr().err

    fgsm = {"_target_": "robustlit.attacks.FGSM"}
    two = recipe({"a": fgsm, "b": fgsm}, norm="l2")
    assert "norm=l2, but the sweep attacks (a, b) in linf alone: take sweep=l2" in warning(two)
    assert "norm=linf, but the sweep attacks (a) in l2 alone" in warning(recipe({"a": {**PGD, "norm": "l2"}}))
    own = {"_target_": "theirs.Attack"}
    assert warning(recipe({"a": {**PGD, "norm": "l2"}, "b": DDN})) == ""  # a curve over L2 beside any budget
    for attacks in ({"a": fgsm, "b": PGD}, {"a": fgsm, "b": DDN}, {"a": fgsm, "b": own}, {}, {"a": "no attack"}):
        assert warning(recipe(attacks, norm="l2")) == ""
    assert warning({**recipe({}), "sweep": {"_target_": None}}) == ""


def test_the_exit_code(table: Callable[..., Evaluation], capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 if k < 12 else None) for k in range(20)])  # 8 of 20 are robust
    asked = {"norm": "linf", "eps": 0.3}
    assert gate(evaluation, asked) == 0
    assert capsys.readouterr().err == ""
    assert gate(evaluation, asked | {"min_robust": 0.4}) == 0  # the point, not the lower end of the interval
    line = "40.00 % [21.88, 61.34] of 20 images are robust at linf 0.3; --min-robust asks for "
    assert capsys.readouterr().err == f"{line}40 %\n"
    assert gate(evaluation, asked | {"min_robust": 0.41}) == BELOW == 4
    assert capsys.readouterr().err == f"error: only {line}41 %\n"
    assert gate(evaluation, {"norm": "linf", "eps": 0.2, "min_robust": 0.4}) == 1
    assert gate(None, asked | {"min_robust": 0.4}) == 1
    assert capsys.readouterr().err.count("error: --min-robust, but there is no robust accuracy at linf ") == 2
