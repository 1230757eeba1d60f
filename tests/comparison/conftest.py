"""Run folders with tables of known contents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pages import HOSTILE, PROBE, made_evaluation

from robustlit.results import Check, Evaluation, Verdict

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    """The classes of MNIST's test digits."""
    from robustlit.data import load_mnist

    return load_mnist()[3].numpy()


@pytest.fixture
def make(tmp_path: Path, labels: np.ndarray) -> Make:
    """Write a run folder and return it; its contents can be changed, or left out with None."""

    def write(
        name: str, index: Any = range(40), *, data: str = "MNIST", config: dict[str, Any] | None = None,
        results: dict[str, Any] | None = None, evaluation: Evaluation | str | None = "made",
        command: str | bytes | None = None, **given: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        numbers = np.asarray(list(index))
        if evaluation == "made":
            evaluation = made_evaluation(numbers, labels[numbers], **given)
        if isinstance(evaluation, Evaluation):
            evaluation.save(folder / "evaluation")
        settings = {
            "model": {"_target_": "robustlit.models.SmallCNN", "width": 1.0},
            "data": {"_target_": f"robustlit.data.{data}", "test_size": len(numbers)},
            "objective": {"_target_": "robustlit.objectives.Standard"},
            "recipe": "standard", "name": name, "run_dir": str(folder), "eps": 0.3, "norm": "linf",
            **(config or {}),
        }  # fmt: skip
        clean = float(evaluation.clean_accuracy) if isinstance(evaluation, Evaluation) else 0.95
        found = {
            "recipe": "standard", "name": name, "data": data, "n": len(numbers), "seed": 0, "parameters": 1234,
            "clean": {"accuracy": clean, "interval": [0.8, 0.99]}, "seconds": {"train": 10.0, "evaluate": 2.5},
            **(results or {}),
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
        (folder / "results.json").write_text(json.dumps(found))
        if command is not None:
            (folder / "command.txt").write_bytes(command if isinstance(command, bytes) else command.encode())
        return folder

    return write


@pytest.fixture
def hostile(make: Make, labels: np.ndarray) -> list[Path]:
    """Two runs in which every name and value attacks the page."""
    attacks = {f"</script>{PROBE}": ("linf", (0.3,)), "__proto__": ("linf", (0.3,))}
    config = {"note": HOSTILE, "objective": {"_target_": HOSTILE}, "ckpt_path": f"runs/{HOSTILE}"}
    other = {HOSTILE: 1, "model": {"_target_": HOSTILE, "name": "x" * 999}, "base": HOSTILE}
    results = {"name": "long " * 400, "seed": float("nan"), "parameters": "many", "seconds": HOSTILE}
    named, command = {"name": HOSTILE, "recipe": HOSTILE}, f"robustlit evaluate {HOSTILE}"
    runs = [
        make("a", results=named, config=config, command=command, attacks=attacks),
        make("b", results=results, config=other),
    ]
    checks = [Check(1, HOSTILE, "FAIL", HOSTILE, None, None, HOSTILE), Check(99, HOSTILE, "FAIL", HOSTILE)]
    Verdict(checks, HOSTILE, 5, HOSTILE, 0.3, 0, 1, 0.1).save(runs[0] / "evaluation")
    return runs
