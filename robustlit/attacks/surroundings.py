"""PyTorch's state around an attack, changed for its duration and restored after it: modes, precision, RNG."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def is_training(module: nn.Module) -> bool:
    """Return whether a module is in training mode; a frozen TorchScript module has none."""
    return getattr(module, "training", False)


@contextmanager
def held_in_eval(*roots: nn.Module) -> Iterator[None]:
    """Hold every submodule of the given modules in eval mode, and restore each one's own mode afterwards.

    By the flag itself: `train(True)` may be overridden (to freeze a BatchNorm), and two roots may share layers.
    """
    training = list({id(module): module for root in roots for module in root.modules() if is_training(module)}.values())
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attack_precision(kind: str, *, keep: bool) -> Iterator[None]:
    """Switch the surrounding autocast region off; with `keep`, only where it computes in float16.

    No gradient scaler protects an attack's loss: in float16 its gradients underflow, and sign(0) = 0 makes the attack
    look weak. `kind` is the device type, e.g. "cuda"; training keeps a bfloat16 region.
    """
    if not torch.is_autocast_enabled(kind):
        yield
        return
    dtype = torch.get_autocast_dtype(kind)
    # Lightning switches the cache of cast weights off; the many passes of an attack use the same weights.
    with torch.autocast(kind, dtype=dtype, enabled=keep and dtype is not torch.float16, cache_enabled=True):
        yield


@contextmanager
def kept_generators(device: torch.device, *, python: bool) -> Iterator[None]:
    """Restore the generators of the CPU and of `device` afterwards; with `python` those of `random` and NumPy too."""
    states = (random.getstate(), np.random.get_state()) if python else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])


def seed_generators(number: int, device: torch.device) -> None:
    """Seed the generators that a stochastic model may draw from: `random`, NumPy, the CPU's and the device's own."""
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)  # torch.manual_seed would reset every GPU; only ours is restored
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)
