"""results.json: what a README table quotes of a run, with what it ran on."""

from __future__ import annotations

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from robustlit.results import Accuracy, Evaluation


def summarise(
    config: DictConfig,
    net: nn.Module,
    evaluation: Evaluation | None,
    clean: Accuracy,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """results.json: what a README table quotes, as plain values. Accuracies are shares in [0, 1]."""
    eps, norm = float(config.eps), str(config.norm)
    results: dict[str, Any] = {
        "recipe": config.recipe,
        "name": config.name,
        "data": config.data["_target_"].rsplit(".", 1)[-1],
        "n": clean.n,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in net.parameters()),
        "clean": _plain(clean),
    }
    if evaluation is not None:
        results["complete"] = evaluation.complete
        results["attacks"] = {}
        for attack, knowledge in evaluation.runs:
            results["attacks"][evaluation.label(attack, knowledge)] = _of_attack(evaluation, attack, knowledge, eps)
        known = any(knowledge == "adaptive" for _, knowledge in evaluation.runs)
        if known and (attacks := evaluation.rests_on(norm=norm, eps=eps)):
            worst = evaluation.worst_case(norm=norm, eps=eps)
            results["worst_case"] = {"norm": norm, "eps": eps, **_plain(worst), "rests_on": attacks}
    results["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
    packages = ("robustlit", "torch", "pytorch-lightning", "torchvision", "timm", "torchmetrics", "wandb")
    results["versions"] = {"python": platform.python_version(), **{p: _version(p) for p in packages}}
    results["device"] = device_name(next((p.device for p in net.parameters()), torch.device("cpu")), config)
    return results


def _of_attack(evaluation: Evaluation, attack: str, knowledge: str, eps: float) -> dict[str, Any]:
    """One attack's entry: its accuracy at `eps` or its own largest budget; of a minimal attack the median distance."""
    norm, budgets = evaluation.norm_of(attack), evaluation.budgets(attack, knowledge)
    if not budgets:
        median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
        stood = evaluation.least_distances(attack, distance=norm, knowledge=knowledge) == math.inf
        found = {"norm": norm, "eps": None, "median": round(median, 6) if math.isfinite(median) else None}
        passes = evaluation.passes(attack, knowledge=knowledge)
        return {**found, **_plain(Accuracy(int(stood.sum()), len(stood))), "passes": round(passes, 2)}
    at = eps if any(abs(eps - b) < 1e-9 for b in budgets) else budgets[-1]
    reached = evaluation.accuracy(attack=attack, norm=norm, eps=at, knowledge=knowledge)
    passes = evaluation.passes(attack, eps=at, knowledge=knowledge)
    return {"norm": norm, "eps": at, **_plain(reached), "passes": round(passes, 2)}


def _plain(accuracy: Accuracy) -> dict[str, Any]:
    return {"accuracy": float(accuracy), "interval": [round(bound, 6) for bound in accuracy.interval]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device, config: DictConfig) -> str:
    """What the run ran on, in words."""
    if torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda"):
        name = torch.cuda.get_device_name(device if device.type == "cuda" else None)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    count = config.trainer.devices
    return f"{count} x {name}" if isinstance(count, int) and count > 1 else name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
