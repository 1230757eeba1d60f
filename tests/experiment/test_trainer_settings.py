"""What a recipe's `trainer` section may hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.trainer_settings import trainer_settings


def settings(**given: Any) -> dict[str, Any]:
    return trainer_settings(OmegaConf.create({"accelerator": "cpu", "precision": "32-true", **given}))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("max_epochs", "two", "must be a whole number, got 'two'"),
        ("max_epochs", 1.5, "must be a whole number, got 1.5"),
        ("max_steps", True, "must be a whole number, got True"),
        ("num_nodes", [2], r"must be a whole number, got \[2\]"),
        ("limit_val_batches", "half", "must be a number, got 'half'"),
        ("max_steps", float("inf"), "must be a whole number, got inf"),
        ("max_epochs", 0, "=0 trains nothing"),
    ],
)
def test_a_number_that_is_something_else_is_named(key: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{key}( )?{rule}"):
        settings(**{key: value})


def test_numbers_are_taken_as_they_are_meant() -> None:
    found = settings(max_steps=1e4, max_epochs=-1, limit_val_batches=0.5, gradient_clip_val=None, devices="auto")
    assert (found["max_steps"], found["max_epochs"], found["limit_val_batches"]) == (10_000, -1, 0.5)
    assert isinstance(found["max_steps"], int)
    assert (found["gradient_clip_val"], found["devices"]) == (None, "auto")


@pytest.mark.faults
def test_a_length_in_words_is_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "recipe=standard", "logger=none", "trainer.max_epochs=two") == 1
    assert capsys.readouterr().err == "error: trainer.max_epochs must be a whole number, got 'two'\n"
    assert not (tmp_path / "runs" / "standard").exists()
