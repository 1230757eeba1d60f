"""Lightning's training step against a bare PyTorch loop with the same maths.

    python benchmarks/training_step.py

Both train the same net on the same batches, in turn within one process, for several rounds. The ratio is taken within a
round, so that a drift of the machine's speed cancels. Times are per step, without set-up. Prints a table.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.callbacks import Progress, SaveOnInterrupt
from robustlit.data import MNIST
from robustlit.data.modules import InMemoryDataModule
from robustlit.models import BaseCNN, SmallCNN
from robustlit.objectives import AdversarialTraining, Objective, Standard
from robustlit.training import RobustClassifier

EPS, PGD_STEPS, STEP_SIZE = 0.3, 7, 0.1
CPU = torch.device("cpu")


def now(device: torch.device) -> float:
    """Return the time in seconds, once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch(pl.Callback):
    """Seconds per step between the end of the first `skip` steps and the end of `steps` more."""

    def __init__(self, skip: int, steps: int) -> None:
        self.skip, self.steps, self.count, self.started, self.seconds = skip, steps, 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Read the clock after the first and the last step that count."""
        self.count += 1
        if self.count == self.skip:
            self.started = now(pl_module.device)
        if self.count == self.skip + self.steps:
            self.seconds = now(pl_module.device) - self.started

    @property
    def per_step(self) -> float:
        """Seconds."""
        return self.seconds / self.steps


def bare_standard(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy."""
    return F.cross_entropy(net(x), y)


def bare_pgd(
    net: nn.Module, x: Tensor, y: Tensor, eps: float = EPS, steps: int = PGD_STEPS, step_size: float = STEP_SIZE
) -> Tensor:
    """Return the loss of PGD adversarial training."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = torch.clamp(x + (torch.rand_like(x) * 2 - 1) * eps, low, high)
    net.eval()
    for _ in range(steps):
        x_adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y, reduction="sum"), x_adv)
        x_adv = torch.clamp(x_adv.detach() + step_size * gradient.sign(), low, high)
    net.train()
    return F.cross_entropy(net(x_adv), y)


def time_bare(
    net: nn.Module, loss: Callable[..., Tensor], data: InMemoryDataModule, steps: int, skip: int, dtype: Any,
    device: torch.device = CPU,
) -> float:  # fmt: skip
    """Return the seconds per step of a plain PyTorch loop, over images that are on the device."""
    images, labels = (part.to(device) for part in data.read()[:2])
    net.to(device)
    indices = data.train_val_indices[0][torch.randperm(len(data.train_val_indices[0]))]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=skip + steps)
    started = 0.0
    for step in range(skip + steps):
        if step == skip:
            started = now(device)
        start = step * data.batch_size % (len(indices) - data.batch_size)
        batch = indices[start : start + data.batch_size].to(device)
        x, y = images[batch].float().div_(255), labels[batch]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            value = loss(net, x, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return (now(device) - started) / steps


def time_lightning(
    net: nn.Module,
    objective: Objective,
    data: InMemoryDataModule,
    steps: int,
    skip: int,
    precision: str = "32-true",
    logger: Logger | None = None,
    accelerator: str = "cpu",
    compile_net: bool = False,
) -> float:
    """Return the seconds per step of `Trainer.fit` with the callbacks that every recipe has."""
    stopwatch = Stopwatch(skip, steps)
    module = RobustClassifier(
        net,
        objective,
        partial(torch.optim.Adam, lr=1e-3),
        num_classes=10,
        schedule=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3),
        compile_net=compile_net,
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=skip + steps,
        limit_val_batches=0,
        logger=logger or False,
        log_every_n_steps=50,  # as recipes/trainer/default.yaml
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Progress(console=Console(file=io.StringIO())), SaveOnInterrupt("unused.ckpt"), stopwatch],
        inference_mode=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    return stopwatch.per_step


def main() -> None:
    """Run the rounds and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150, help="timed steps a round (PGD: a quarter of it)")
    parser.add_argument("--skip", type=int, default=15, help="steps before the clock starts")
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    data = MNIST(batch_size=arguments.batch_size)
    data.setup("fit")
    pgd = AdversarialTraining(PGD(eps=EPS, steps=PGD_STEPS, step_size=STEP_SIZE))
    nets: dict[str, Callable[[], nn.Module]] = {
        "SmallCNN": SmallCNN,
        "SmallCNN wide": partial(SmallCNN, width=2, hidden=256),
        "BaseCNN": BaseCNN,
    }
    print(f"batch {arguments.batch_size}, {torch.get_num_threads()} threads, {arguments.rounds} rounds, torch ", end="")
    print(torch.__version__)
    heads = f"{'net':<14}{'objective':<10}{'precision':<11}{'bare ms':>9}{'Lightning ms':>14}"
    print(f"{heads}{'ratio median (min - max)':>28}")
    for name, build in nets.items():
        for kind, precision in (("standard", "32-true"), ("PGD-7", "32-true"), ("PGD-7", "bf16-mixed")):
            steps = arguments.steps if kind == "standard" else max(20, arguments.steps // 4)
            loss, objective = (bare_standard, Standard()) if kind == "standard" else (bare_pgd, pgd)
            dtype = torch.bfloat16 if precision == "bf16-mixed" else None
            pairs = []
            for _ in range(arguments.rounds):
                bare = time_bare(build(), loss, data, steps, arguments.skip, dtype)
                pairs.append((bare, time_lightning(build(), objective, data, steps, arguments.skip, precision)))
            ratios = [lightning / bare for bare, lightning in pairs]
            medians = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})"
            print(f"{name:<14}{kind:<10}{precision:<11}{medians[0]:>9.2f}{medians[1]:>14.2f}{spread:>28}", flush=True)


if __name__ == "__main__":
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    main()
