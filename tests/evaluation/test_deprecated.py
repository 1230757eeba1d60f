"""Names that have moved can be imported from their old place, with a warning that names the new one."""

from __future__ import annotations

import importlib

import pytest

import robustlit.attacks.losses
import robustlit.evaluation
import robustlit.figures


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        *[
            ("robustlit.evaluation", name, "robustlit.results")
            for name in ("Accuracy", "Check", "Evaluation", "EvaluationError", "Verdict", "wilson_interval")
        ],
        ("robustlit.evaluation", "verdict", "robustlit.verdict"),
        *[("robustlit.evaluation.figures", name, "robustlit.figures") for name in robustlit.figures.__all__],
    ],
)
def test_a_moved_name_warns_and_is_the_new_one(old: str, name: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"from {new} import {name}"):
        found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(new), name)


def test_the_old_name_of_the_criterion() -> None:
    with pytest.warns(DeprecationWarning, match=r"Goal is now called Criterion"):
        goal = robustlit.attacks.losses.Goal
    assert goal is robustlit.attacks.losses.Criterion


@pytest.mark.parametrize("old", ["robustlit.evaluation", "robustlit.evaluation.figures", "robustlit.attacks.losses"])
def test_an_unknown_name_is_an_attribute_error(old: str) -> None:
    module = importlib.import_module(old)
    with pytest.raises(AttributeError, match=rf"module '{old}' has no attribute 'unknown'"):
        module.unknown  # noqa: B018
