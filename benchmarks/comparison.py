"""Time and page size of `robustlit compare` on synthetic runs of nine attacks, in a fresh process.

python benchmarks/comparison.py --runs 50 --n 1000
python benchmarks/comparison.py --runs 50 --n 1000 --knowledge adaptive,greybox,blackbox
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]

from robustlit.data import load_mnist
from robustlit.results import Check, Evaluation, Verdict

BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
OF_BUDGET = ("fgsm", "bim", "pgd", "mim")
MINIMAL = ("deepfool", "carlini_wagner", "newtonfool", "jsma", "nearest_l2")
CHECKS = 19


def made_evaluation(index: np.ndarray, labels: np.ndarray, knowledge: list[str], seed: int) -> Evaluation:
    """Return nine attacks, four of them at eight budgets, on a network and examples of random robustness.

    Args:
        index: (n,) numbers of the examples.
        labels: (n,) their classes.
        knowledge: Kinds of knowledge of the attackers.
        seed: Seed of the run.
    """
    draws, n = np.random.default_rng(seed), len(index)
    clean = draws.random(n) > 0.01 * (1 + seed % 4)
    strength = 0.2 + 0.3 * draws.random()
    parts: list[dict[str, np.ndarray]] = []

    def add(
        attack: str, known: str, norm: str, eps: float, broken: np.ndarray, l2: np.ndarray, linf: np.ndarray
    ) -> None:
        success, moved = broken | ~clean, clean.astype(float)
        wrong = (labels + draws.integers(1, 10, n)) % 10
        parts.append({
            "index": index, "label": labels, "clean": clean, "attack": np.full(n, attack),
            "knowledge": np.full(n, known), "norm": np.full(n, norm), "eps": np.full(n, eps), "success": success,
            "prediction": np.where(success, wrong, labels), "l0": 400 * moved, "l1": 40 * moved, "l2": l2 * moved,
            "linf": linf * moved, "forwards": np.full(n, 41), "backwards": np.full(n, 40),
        })  # fmt: skip

    for known in knowledge:
        for attack in OF_BUDGET:
            least = 0.02 + draws.gamma(4, strength / 4, n)
            for eps in BUDGETS:
                add(attack, known, "linf", eps, least <= eps, 20 * eps * draws.uniform(0.8, 1, n), np.full(n, eps))
        for attack in MINIMAL:
            norm, far = ("l0" if attack == "jsma" else "l2"), 0.1 + draws.gamma(6, strength, n)
            add(attack, known, norm, np.nan, draws.random(n) > 0.01, far, far / 4)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    attacks = {attack: f"{attack}()" for attack in (*OF_BUDGET, *MINIMAL)}
    return Evaluation.from_columns(columns, {"attacks": attacks, "complete": True})


def made_verdict(seed: int) -> Verdict:
    """Return nineteen checks with findings of usual length; every tenth run fails one."""
    sentence = "a finding as long as they are: 17 of 500 (3.4 %; at most 0.2 %): and what could be tried next about it"
    status = ["PASS"] * 15 + ["INCONCLUSIVE"] * 3 + ["FAIL" if seed % 10 == 9 else "PASS"]
    checks = [
        Check(k + 1, f"check {k}", s, f"{k}: {sentence}", 0.001 if s == "PASS" else 0.034, 0.002, "A. Author 2026")
        for k, s in enumerate(status[:CHECKS])
    ]
    return Verdict(checks, "quick", 200, "linf", 0.3, 0, 10_000, 0.08)


def make_runs(folder: Path, count: int, n: int, knowledge: list[str]) -> list[Path]:
    """Write the run folders: real classes of test digits, everything else synthetic."""
    classes = load_mnist()[3].numpy()
    index = np.sort(np.random.default_rng(0).permutation(len(classes))[:n])
    runs = []
    for seed in range(count):
        run = folder / f"run{seed:02d}"
        evaluation = made_evaluation(index, classes[index], knowledge, seed)
        evaluation.save(run / "evaluation")
        made_verdict(seed).of(evaluation).save(run / "evaluation")
        config = {
            "model": {"_target_": "robustlit.models.SmallCNN", "width": 1.0},
            "data": {"_target_": "robustlit.data.MNIST", "test_size": n},
            "objective": {"_target_": "robustlit.objectives.AdversarialTraining", "warmup": 0.1 * (seed % 3)},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001 * (1 + seed % 5)},
            "recipe": "made_up", "name": run.name, "seed": seed, "eps": 0.3, "norm": "linf",
        }  # fmt: skip
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        results = {
            "recipe": "made_up", "name": run.name, "data": "MNIST", "n": n, "seed": seed, "parameters": 166406,
            "clean": {"accuracy": float(evaluation.clean_accuracy)}, "seconds": {"train": 50.0, "evaluate": 30.0},
        }  # fmt: skip
        (run / "results.json").write_text(json.dumps(results))
        runs.append(run)
    return runs


def measured(runs: list[Path], page: Path) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of `robustlit compare` in a process of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "robustlit", "compare", *map(str, runs), "--out", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--n", type=int, default=1000, help="examples of each (default 1000, at most 10000)")
    parser.add_argument("--knowledge", default="adaptive", help="comma-separated: adaptive,greybox,blackbox")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the fastest is printed (default 3)")
    wanted = parser.parse_args()
    if wanted.runs < 1 or not 1 <= wanted.n <= 10_000 or wanted.rounds < 1:
        parser.error("--runs and --rounds must be at least 1, --n within 1 and 10000")
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(Path(folder) / "runs", wanted.runs, wanted.n, wanted.knowledge.split(","))
        page = Path(folder) / "compare.html"
        wall, cpu = min(measured(runs, page) for _ in range(wanted.rounds))
        attacks = len(OF_BUDGET) + len(MINIMAL)
        print(f"{wanted.runs} runs x {wanted.n} examples x {attacks} attacks, {wanted.knowledge}")
        print(f"{wall:.1f} s by the wall clock, {cpu:.1f} s of CPU; the page {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
