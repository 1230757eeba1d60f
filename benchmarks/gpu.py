"""What robustlit does on an accelerator: tests, throughput, host synchronisations, attacks, whole trainings.

    python benchmarks/gpu.py                                          # all parts that need no pictures
    python benchmarks/gpu.py --pictures PICTURES                      # and CIFAR-10's recipe on PICTURES/train/CLASS/*
    python benchmarks/gpu.py throughput syncs --quick                 # some parts, in miniature (on a CPU too)

Parts, in this order: `tests` (`pytest -m gpu`); `syncs`, how often a step of an attack makes the host wait;
`throughput`, PGD-10 training in images a second, Lightning against a bare loop, with and without bf16, channels_last
and torch.compile, and the most memory each took; `cifar10_fast`, the recipe for --epochs on pictures of 32 pixels;
`attacks`, the seconds and accuracy of WorstCase and AutoAttack on --images test pictures of the net that it trained, or
of --run; `mnist`, the main job from start to results.json. Each prints its lines as it ends and is added to the JSON
file of --out, so that a part that fails loses nothing of the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_steps import synchronisations, throughput
from training_step import now

import robustlit
from robustlit.attacks import Attack, AutoAttack, WorstCase
from robustlit.data import ImageFolder

HERE = Path(__file__).resolve().parent.parent
EPS = 8 / 255  # as papers quote CIFAR-10
Result = dict[str, Any]


def tests(arguments: argparse.Namespace, device: torch.device) -> Result:
    """Run the tests that need a GPU."""
    files = [str(path) for path in sorted(HERE.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text()]
    # Each test by its name, and what the drivers print as it comes: a process that they end says no more.
    options = ["-n", "0", "-v", "--capture=sys", "-p", "no:cacheprovider", "-m", "gpu"]
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", *options, *files]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout[-6000:]}\n{run.stderr[-2000:]}")
    return {"pytest": run.stdout.strip().splitlines()[-1]}


def syncs(arguments: argparse.Namespace, device: torch.device) -> Result:
    """Count the waits of a step."""
    return synchronisations(device) if device.type == "cuda" else {"skipped": "no CUDA device"}


def speed(arguments: argparse.Namespace, device: torch.device) -> Result:
    """Compare Lightning with a bare loop."""
    return throughput(device, arguments.quick)


def cifar10_fast(arguments: argparse.Namespace, device: torch.device) -> Result:
    """Train by the recipe, on pictures in folders."""
    if arguments.pictures is None:
        return {"skipped": "needs --pictures FOLDER, with train/CLASS/* and test/CLASS/*"}
    settings = [f"trainer.max_epochs={arguments.epochs}", *arguments.override]
    if arguments.quick:
        settings += ["data.train_size=600", "data.val_size=200", "data.test_size=100", "model.width=8"]
    data = ["data=image_folder", f"data.root={arguments.pictures}", "data.image_size=32", "data.in_memory=true"]
    data += ["data.crop_padding=4", "eps=8/255"]
    return _job("cifar10_fast", [*data, "sweep=none", *settings], arguments)


def attacks(arguments: argparse.Namespace, device: torch.device) -> Result:
    """Time WorstCase and AutoAttack, and report the accuracy that they leave."""
    run = arguments.run or arguments.work / "cifar10_fast"
    if arguments.pictures is None or not Path(run).exists():
        return {"skipped": f"needs --pictures FOLDER and a trained net: --run RUN, or the part cifar10_fast ({run})"}
    images = 20 if arguments.quick else arguments.images
    data = ImageFolder(arguments.pictures, 32, test_size=images)
    x, y, _ = (part.to(device) for part in data.tensors("test"))
    net = robustlit.load(run).to(device)
    result: Result = {"run": str(run), "images": len(y), "eps": EPS}
    suite: list[Attack] = [WorstCase(eps=EPS)] if arguments.quick else [WorstCase(eps=EPS), AutoAttack(eps=EPS)]
    for attack in suite:
        started = now(device)
        evaluation = robustlit.evaluate(net, (x, y), [attack], batch_size=len(y))  # one batch: less to launch
        seconds = now(device) - started
        result["clean"] = evaluation.clean_accuracy
        result[type(attack).__name__] = {"accuracy": evaluation.accuracy(eps=EPS), "seconds": seconds}
        print(f"{type(attack).__name__}: {result[type(attack).__name__]}", flush=True)
    return result


def mnist(arguments: argparse.Namespace, device: torch.device) -> Result:
    """Run the main job of the README."""
    small = ["trainer.max_epochs=1", "data.train_size=600", "data.test_size=50"] if arguments.quick else []
    return _job("pgd_adv_train", small, arguments)


def _job(recipe: str, settings: list[str], arguments: argparse.Namespace) -> Result:
    folder = arguments.work / recipe
    command = [sys.executable, "train.py", f"recipe={recipe}", "logger=csv", f"run_dir={folder}", *settings]
    started, log = time.perf_counter(), arguments.work / f"{recipe}.log"
    with log.open("w") as file:
        run = subprocess.run(command, cwd=HERE, stdout=file, stderr=subprocess.STDOUT, check=False)
    seconds = time.perf_counter() - started
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}:\n{log.read_text()[-6000:]}")
    found = json.loads((folder / "results.json").read_text())
    kept = ("n", "clean", "attacks", "worst_case", "seconds", "device")
    return {"command": " ".join(command[1:]), "end to end": seconds} | {k: found[k] for k in kept if k in found}


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], Result]] = {
    "tests": tests, "syncs": syncs, "throughput": speed, "cifar10_fast": cifar10_fast, "attacks": attacks,
    "mnist": mnist,
}  # fmt: skip


def main() -> None:
    """Run the parts and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="in miniature: whether it runs, no figures")
    parser.add_argument("--pictures", type=Path, help="folder with train/CLASS/* and test/CLASS/*, 32 pixels a side")
    parser.add_argument("--epochs", type=int, default=30, help="of cifar10_fast")
    parser.add_argument("--images", type=int, default=1000, help="test pictures to attack")
    parser.add_argument("--run", help="run folder or checkpoint to attack instead of cifar10_fast's")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="of cifar10_fast")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="folder for the runs; must be new")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    results: Result = {"device": name, "torch": torch.__version__, "quick": arguments.quick}
    failed = False
    for part in arguments.parts or PARTS:
        started = time.perf_counter()
        try:
            results[part] = PARTS[part](arguments, device)
        except Exception:
            results[part], failed = {"error": traceback.format_exc()}, True
        results[part]["part's seconds"] = time.perf_counter() - started
        print(f"== {part}\n{_readable(results[part])}", flush=True)
        arguments.out.write_text(json.dumps(results, indent=2))
    sys.exit(failed)


def _readable(result: Result) -> str:
    if "error" in result:
        return str(result["error"])
    return re.sub(r"(\d\.\d{4})\d+", r"\1", json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
