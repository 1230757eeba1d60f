"""Steps of training and of attacks on a device: images a second, memory, host synchronisations. Used by `gpu.py`."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from training_step import bare_pgd, time_bare, time_lightning

from robustlit.attacks import APGD, FGSM, MIM, PGD, Attack, Square
from robustlit.data.modules import InMemoryDataModule
from robustlit.models import PreActResNet, WideResNet
from robustlit.objectives import NFGSM, TRADES, AdversarialTraining, Objective
from robustlit.training import AveragedWeights, RobustClassifier

EPS, STEPS, STEP_SIZE = 8 / 255, 10, 2 / 255
SWITCHES = ("float32", "bf16", "bf16 + channels_last", "bf16 + channels_last + compile")
QUIET = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero")


class Noise(InMemoryDataModule):
    """Random pictures of CIFAR-10's shape: throughput does not depend on what they show."""

    name, num_classes, in_chans, image_size = "noise", 10, 3, 32

    def read(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (6000, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.arange(6000) % 10
        return images, labels, images[:100], labels[:100]


def throughput(device: torch.device, quick: bool) -> dict[str, Any]:
    """Return images a second of PGD-10 training, bare and by Lightning, for each net and switch."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    batch = 8 if quick else 128
    data = Noise(batch_size=batch, val_size=100)
    data.setup("fit")
    nets: dict[str, Callable[[], nn.Module]] = {"PreActResNet-18": PreActResNet, "WRN-28-10": WideResNet}
    if quick:
        nets = {"PreActResNet, width 8": partial(PreActResNet, width=8)}
    result: dict[str, Any] = {"batch": batch, "attack": f"PGD-{STEPS}"}
    for name, build in nets.items():
        wide = name.startswith("WRN")
        # Compiling the wide net takes minutes.
        for switches in SWITCHES[: 3 if wide else 4]:
            if quick and switches not in SWITCHES[:2]:
                continue
            steps, rounds = (2, 1) if quick else (8, 2) if wide else (25, 3)
            pairs = [_pair(build, switches, data, steps, device) for _ in range(rounds)]
            best = [min(column) for column in zip(*(pair[:2] for pair in pairs), strict=True)]
            row = {"bare": batch / best[0], "Lightning": batch / best[1]}
            row["ratio of Lightning to bare"] = sorted(pair[0] / pair[1] for pair in pairs)[len(pairs) // 2]
            row |= {"bare MiB": pairs[-1][2], "Lightning MiB": pairs[-1][3]} if device.type == "cuda" else {}
            result[f"{name}, {switches}"] = row
            print(f"{name}, {switches}: {row}", flush=True)
    return result


def _pair(
    build: Callable[[], nn.Module], switches: str, data: InMemoryDataModule, steps: int, device: torch.device
) -> tuple[float, float, float, float]:
    """Return the seconds of a step, bare and by Lightning, and the most memory of each in MiB."""

    def net() -> nn.Module:
        return build().to(memory_format=torch.channels_last) if "channels_last" in switches else build()

    low, compiles, skip = "bf16" in switches, "compile" in switches, 3
    loss = partial(bare_pgd, eps=EPS, steps=STEPS, step_size=STEP_SIZE)
    objective = AdversarialTraining(PGD(eps=EPS, steps=STEPS, step_size=STEP_SIZE))
    _reset(device)

    def bare_net() -> Any:
        return torch.compile(net()) if compiles else net()

    # Nothing here keeps the net: its weights would count as memory of the other loop.
    bare = time_bare(bare_net(), loss, data, steps, skip, torch.bfloat16 if low else None, device)
    bare_memory = _reset(device)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    precision = "bf16-mixed" if low else "32-true"
    lightning = time_lightning(
        net(), objective, data, steps, skip, precision, accelerator=accelerator, compile_net=compiles
    )
    return bare, lightning, bare_memory, _reset(device)


def _reset(device: torch.device) -> float:
    """Return the most memory taken since the last call, in MiB, and forget it."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    gc.collect()  # a Trainer and what it trained refer to each other
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def synchronisations(device: torch.device) -> dict[str, Any]:
    """Return how often the host waits for the device in one more step of each attack, and of each training attack."""
    torch.manual_seed(0)
    net = PreActResNet(width=16).to(device).eval()
    x = torch.rand(64, 3, 32, 32, device=device)
    y = net(x).argmax(1)
    tiny = 1e-6  # so small that no example becomes adversarial: each takes every step
    kinds: dict[str, Callable[[int], Attack]] = {
        "PGD": lambda n: PGD(eps=tiny, steps=n), "MIM": lambda n: MIM(eps=tiny, steps=n),
        "APGD": lambda n: APGD(eps=tiny, steps=n), "Square": lambda n: Square(eps=tiny, queries=n),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, attack in kinds.items():
        counts = [_waits(partial(attack(steps).run, net, x, y, seed=0)) for steps in (20, 40)]
        found[f"{name}, a step"] = (counts[1] - counts[0]) / 20
    for name, objective in {
        "AdversarialTraining": lambda n: AdversarialTraining(PGD(eps=EPS, steps=n)),
        "TRADES": lambda n: TRADES(PGD(eps=EPS, steps=n)),
    }.items():
        counts = [_waits(partial(_step, objective(steps), net, x, y)) for steps in (2, 12)]
        found[f"{name}, a step of its attack"] = (counts[1] - counts[0]) / 10
        found[f"{name}, a whole call"] = counts[0]
    found["NFGSM, a whole call"] = _waits(partial(_step, NFGSM(FGSM(eps=EPS)), net, x, y))
    found["a step of Trainer.fit"] = _waits_in_training(device)
    return found


class _Counting(pl.Callback):
    """Waits between the end of one training batch and that of a later one."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.catching = first, last, ExitStack()
        self.caught: list[warnings.WarningMessage] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.first:
            caught = self.catching.enter_context(warnings.catch_warnings(record=True))
            assert caught is not None
            self.caught = caught
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.global_step == self.last:
            torch.cuda.set_sync_debug_mode("default")
            self.catching.close()


def _waits_in_training(device: torch.device) -> float:
    """Return the waits of a step of N-FGSM, with crops, flips and averaged weights, as `recipe=cifar10_fast` trains."""
    data, counting = Noise(batch_size=64, val_size=100, augment=True), _Counting(10, 40)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    module = RobustClassifier(PreActResNet(width=16), NFGSM(FGSM(eps=EPS)), optimizer, num_classes=10)
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_steps=41, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        inference_mode=False, use_distributed_sampler=False, log_every_n_steps=50,
        callbacks=[AveragedWeights(0.999), counting],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    for place in {f"{wait.filename}:{wait.lineno}" for wait in counting.caught if "synchroniz" in str(wait.message)}:
        print(f"waits at {place}", flush=True)
    return sum("synchroniz" in str(wait.message) for wait in counting.caught) / (counting.last - counting.first)


def _step(objective: Objective, net: nn.Module, x: Tensor, y: Tensor) -> None:
    objective(net.train(), x, y)["loss"].backward()


def _waits(call: Callable[[], Any]) -> int:
    call()  # what happens once is not counted
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
