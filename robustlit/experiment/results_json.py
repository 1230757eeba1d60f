"""Collect results.json: the figures that a README table quotes, versions and hardware."""

from __future__ import annotations

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustlit.experiment.plan import Plan
from robustlit.results import Accuracy, Evaluation

_PACKAGES = ("robustlit", "torch", "pytorch-lightning", "torchvision", "timm", "torchmetrics", "wandb")


def summarise(
    plan: Plan, net: nn.Module, evaluation: Evaluation | None, clean: Accuracy, seconds: dict[str, float],
    split: int | None = None, all_images: Evaluation | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return what results.json holds, as plain values: accuracies in [0, 1], of a test split of `split` images.

    `all_images` is what a few attacks found on all images, where `evaluation` is of some of them.
    """
    budget: dict[str, Any] = {"norm": plan.norm, "eps": plan.eps}
    results: dict[str, Any] = {
        "recipe": plan.config.recipe,
        "name": plan.name,
        "data": plan.config.data["_target_"].rsplit(".", 1)[-1],
        "n": clean.n,
        **_extent(evaluation, clean.n, split),
        "seed": plan.seed,
        "parameters": sum(p.numel() for p in net.parameters()),
        "clean": plain(clean),
    }
    if evaluation is not None:
        results |= _figures(evaluation, plan)
        known = any(knowledge == "adaptive" for _, knowledge in evaluation.runs)
        if known and (attacks := evaluation.rests_on(**budget)):
            results["worst_case"] = {**budget, **plain(evaluation.worst_case(**budget)), "rests_on": attacks}
    if all_images is not None:
        extent = {"n": all_images.n, **_extent(all_images, all_images.n, split)}
        results["all_images"] = extent | {"clean": plain(all_images.clean_accuracy)} | _figures(all_images, plan)
    results["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
    results["versions"] = {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}}
    results["device"] = _device_name(next((p.device for p in net.parameters()), torch.device("cpu")), plan)
    return results


def largest_budgets(evaluation: Evaluation) -> dict[str, float]:
    """Return the largest budget in each norm, in pixel units, that any attack ran at."""
    ran = [(evaluation.norm_of(attack), evaluation.budgets(attack, known)) for attack, known in evaluation.runs]
    norms = dict.fromkeys(norm for norm, budgets in ran if budgets)
    return {norm: max(max(budgets) for n, budgets in ran if n == norm and budgets) for norm in norms}


def _figures(evaluation: Evaluation, plan: Plan) -> dict[str, Any]:
    """Return what each attack and each certificate reached."""
    attacks = {evaluation.label(*run): _of_attack(evaluation, *run, plan.eps) for run in evaluation.runs}
    proven = _certified(evaluation, plan.norm, plan.eps)
    found: dict[str, Any] = {"complete": evaluation.complete, "attacks": attacks}
    if spent := evaluation.meta.get("seconds"):  # of each attack and certificate
        found["attack_seconds"] = {name: round(seconds, 1) for name, seconds in spent.items()}
    return found if proven is None else found | {"certified": proven}


def _extent(evaluation: Evaluation | None, n: int, split: int | None) -> dict[str, Any]:
    """Return how many images the split has, how the evaluated ones were chosen, and how many copies were left out."""
    found: dict[str, Any] = {} if split is None else {"of": split, "chosen": "class by class" if n < split else "all"}
    return found | ({"copies": evaluation.copies} if evaluation is not None and evaluation.copies else {})


def _certified(evaluation: Evaluation, norm: str, eps: float) -> dict[str, Any] | None:
    """Return the share of examples that are proven robust at a budget, by any certificate and by each."""
    proven = evaluation.certificates
    if proven is None or norm not in proven.norms:
        return None
    names = [name for name in proven.names if proven.norm_of(name) == norm]
    each = {
        name: plain(proven.accuracy(norm=norm, eps=eps, certificate=name)) | {"passes": round(proven.passes(name), 2)}
        for name in names
    }
    return {"norm": norm, "eps": eps, **plain(proven.accuracy(norm=norm, eps=eps)), "certificates": each}


def _of_attack(evaluation: Evaluation, attack: str, knowledge: str, eps: float) -> dict[str, Any]:
    """Return an attack's accuracy at `eps`, or at its largest budget; for a minimal attack, the median distance."""
    norm, budgets = evaluation.norm_of(attack), evaluation.budgets(attack, knowledge)
    found: dict[str, Any] = {"norm": norm, "eps": None}
    if budgets:
        found["eps"] = eps if any(abs(eps - b) < 1e-9 for b in budgets) else budgets[-1]
        reached = evaluation.accuracy(attack=attack, norm=norm, eps=found["eps"], knowledge=knowledge)
    else:
        median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
        robust = evaluation.least_distances(attack, distance=norm, knowledge=knowledge) == math.inf
        found["median"] = round(median, 6) if math.isfinite(median) else None
        reached = Accuracy(int(robust.sum()), len(robust))
    passes = evaluation.passes(attack, eps=found["eps"], knowledge=knowledge)
    return {**found, **plain(reached), "passes": round(passes, 2)}


def plain(accuracy: Accuracy) -> dict[str, Any]:
    """Return an accuracy with its number of examples and its interval as plain values."""
    return {"accuracy": float(accuracy), "n": accuracy.n, "interval": [round(bound, 6) for bound in accuracy.interval]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device, plan: Plan) -> str:
    if torch.cuda.is_available() and plan.trainer["accelerator"] in ("auto", "gpu", "cuda"):
        name = torch.cuda.get_device_name(device if device.type == "cuda" else None)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    count = plan.trainer["devices"]
    return f"{count} x {name}" if isinstance(count, int) and count > 1 else name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
