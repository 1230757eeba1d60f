"""Run folders made by hand: tables whose every figure is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robustlit.results import Evaluation

ATTACKS = {"fgsm": ("linf", (0.1, 0.3, 0.4)), "pgd": ("linf", (0.1, 0.3, 0.4)), "nearest_l2": ("l2", ())}
Make = Callable[..., Path]


def made_evaluation(
    index: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    knowledge: tuple[str, ...] = ("adaptive",),
    attacks: dict[str, tuple[str, tuple[float, ...]]] = ATTACKS,
    strength: float = 1.0,
    **meta: Any,
) -> Evaluation:
    """Random witnesses of a few attacks on the examples `index` of classes `labels`; 5 % are misclassified at once."""
    draws = np.random.default_rng(seed)
    n = len(index)
    clean = draws.random(n) > 0.05
    columns: dict[str, list[np.ndarray]] = {}
    for known in knowledge:
        for attack, (norm, budgets) in attacks.items():
            reach = draws.uniform(0, 0.6 if norm == "linf" else 4, n) / strength
            for eps in budgets or (np.nan,):
                broken = ~clean | ((reach <= eps) if budgets else (reach < 3.5))
                spot = np.where(clean, reach, 0.0)
                linf, l2 = (spot, 20 * spot) if norm == "linf" else (spot / 3, spot)
                rows = {
                    "index": index, "label": labels, "clean": clean, "attack": np.full(n, attack),
                    "knowledge": np.full(n, known), "norm": np.full(n, norm), "eps": np.full(n, eps),
                    "success": broken, "prediction": np.where(broken, (labels + 1 + draws.integers(0, 9, n)) % 10, -1),
                    "l0": 700 * linf, "l1": 90 * linf, "l2": l2, "linf": linf,
                    "forwards": np.full(n, 3), "backwards": np.full(n, 2),
                }  # fmt: skip
                for name, values in rows.items():
                    columns.setdefault(name, []).append(values)
    stored = {"attacks": {a: f"{a}()" for a in attacks}, "complete": True, **meta}
    return Evaluation.from_columns({name: np.concatenate(parts) for name, parts in columns.items()}, stored)


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    """The classes of MNIST's test digits."""
    from robustlit.data import load_mnist

    found: np.ndarray = load_mnist()[3].numpy()
    return found


@pytest.fixture
def make(tmp_path: Path, labels: np.ndarray) -> Make:
    """Writes a run folder and returns it; what a run leaves can be changed or, with None, left out."""

    def write(
        name: str,
        index: Any = range(40),
        *,
        data: str = "MNIST",
        config: dict[str, Any] | None = None,
        results: dict[str, Any] | None = None,
        evaluation: Evaluation | str | None = "made",
        **given: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        numbers = np.asarray(list(index))
        if evaluation == "made":
            evaluation = made_evaluation(numbers, labels[numbers], **given)
        if isinstance(evaluation, Evaluation):
            evaluation.save(folder / "evaluation")
        attacked = evaluation if isinstance(evaluation, Evaluation) else None
        sweep = {
            "_target_": "robustlit.callbacks.AttackSweep",
            "attacks": {a: {"_target_": f"robustlit.attacks.{a}"} for a in attacked.attacks} if attacked else {},
            "knowledge": list(dict.fromkeys(k for _, k in attacked.runs)) if attacked else ["adaptive"],
        }
        settings = {
            "model": {"_target_": "robustlit.models.SmallCNN", "width": 1.0},
            "data": {"_target_": f"robustlit.data.{data}", "test_size": len(numbers)},
            "objective": {"_target_": "robustlit.objectives.Standard"},
            "sweep": sweep,
            "recipe": "standard",
            "name": name,
            "run_dir": str(folder),
            "eps": 0.3,
            "norm": "linf",
            **(config or {}),
        }
        found = {
            "recipe": "standard",
            "name": name,
            "data": data,
            "n": len(numbers),
            "seed": 0,
            "parameters": 1234,
            "clean": {"accuracy": 0.95, "interval": [0.8, 0.99]},
            "seconds": {"train": 10.0, "evaluate": 2.5},
            **(results or {}),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
        (folder / "results.json").write_text(json.dumps(found))
        return folder

    return write


@pytest.fixture
def made() -> Callable[..., Evaluation]:
    return made_evaluation
