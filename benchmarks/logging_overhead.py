"""Cost of logging for a training step: W&B offline, as the recipes log, against no logger.

    python benchmarks/logging_overhead.py

Both train the same net with `Trainer.fit` and the callbacks of every recipe, alternately in one process; the ratio is
taken within a round. W&B's own process runs at the same time and adds to the wall time when all cores are in use. The
start and the end of the W&B run are timed separately, because a run pays for them once. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from training_step import EPS, PGD_STEPS, STEP_SIZE, time_lightning

from robustlit.attacks import PGD
from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import AdversarialTraining, Objective, Standard
from robustlit.tracking.logger import finish_wandb, wandb_logger


def logged(run: Callable[[Logger], float], folder: str) -> tuple[float, float]:
    """Return the seconds per step of `run` with a W&B logger, and the seconds of its start and end."""
    started = time.perf_counter()
    logger = wandb_logger(folder=folder)
    if not isinstance(logger, WandbLogger):
        raise RuntimeError("W&B did not start, so there is nothing to time")
    start = time.perf_counter() - started
    per_step = run(logger)
    started = time.perf_counter()
    finish_wandb(0)
    return per_step, start + time.perf_counter() - started


def main() -> None:
    """Run the rounds and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1000, help="timed steps in a round (PGD: a quarter)")
    parser.add_argument("--skip", type=int, default=20, help="steps before the clock starts")
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    data = MNIST(batch_size=arguments.batch_size)
    data.setup("fit")
    pgd = AdversarialTraining(PGD(eps=EPS, steps=PGD_STEPS, step_size=STEP_SIZE))
    print(f"SmallCNN, batch {arguments.batch_size}, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    print(f"{'objective':<12}{'no logger ms':>13}{'W&B ms':>9}{'ratio median (min - max)':>28}{'start + end s':>15}")
    for name, objective in (("standard", Standard()), ("PGD-7", pgd)):
        steps = arguments.steps if name == "standard" else max(100, arguments.steps // 4)

        def run(logger: Logger | None, objective: Objective = objective, steps: int = steps) -> float:
            return time_lightning(SmallCNN(), objective, data, steps, arguments.skip, logger=logger)

        pairs, once = [], []
        for number in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                # The order alternates, so that a machine that warms up or is shared favours neither.
                bare = run(None) if number % 2 == 0 else 0.0
                with_wandb, around = logged(run, folder)
                pairs.append((bare or run(None), with_wandb))
                once.append(around)
        ratios = [with_wandb / bare for bare, with_wandb in pairs]
        bare_ms, wandb_ms = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})"
        print(f"{name:<12}{bare_ms:>13.2f}{wandb_ms:>9.2f}{spread:>28}{statistics.median(once):>15.2f}", flush=True)


if __name__ == "__main__":
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    main()
