"""How the cost of our attacks grows: with the images, with the size of one, and over a sweep of budgets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
from typing import Any

import nets
import torch
from matches import Match, matches
from measure import Passes, ours, timed
from rich.console import Console
from torch import nn

from robustlit import evaluate
from robustlit.attacks import BudgetAttack

Records = list[dict[str, Any]]


def _there(wanted: argparse.Namespace) -> list[Match]:
    """The matches whose attack of ours can be imported."""
    found = []
    for match in matches(wanted.attacks):
        try:
            match.ours(wanted.eps)
        except (ImportError, AttributeError):
            continue
        found.append(match)
    return found


def _net(wanted: argparse.Namespace) -> nn.Module:
    if wanted.model:
        return nets.given(wanted.model, wanted.weights).to(wanted.device)
    return nets.built_in(wanted.net.split(",")[0], wanted.cache).to(wanted.device)


def scaling(wanted: argparse.Namespace, console: Console) -> Records:
    """Time and passes per image for 250, 500, 1 000, 2 000 and 4 000 images in one batch: both should stay level."""
    net, records = _net(wanted), []
    console.print(f"{'attack':<16}{'images':>8}{'ms/image':>12}{'fwd':>9}{'bwd':>9}")
    for match in _there(wanted):
        for count in (250, 500, 1000, 2000, 4000):
            x, y = (part.to(wanted.device) for part in nets.test_digits(count))
            passes = Passes(net)
            timed(ours(match), passes, x, y, wanted.eps * match.scale)
            seconds = min(timed(ours(match), net, x, y, wanted.eps * match.scale)[1] for _ in range(wanted.rounds))
            forwards, backwards = passes.per_example(len(x))
            cost = f"{1e3 * seconds / len(x):>12.3f}{forwards:>9.1f}{backwards:>9.1f}"
            console.print(f"{match.name:<16}{len(x):>8}{cost}")
            figures = {"seconds": seconds, "forwards": forwards, "backwards": backwards}
            records.append({"attack": match.name, "images": len(x), **figures})
    return records


def sweep(wanted: argparse.Namespace, console: Console) -> Records:
    """Passes of `evaluate` over 20 budgets against those of one run at the largest."""
    net, records = _net(wanted), []
    x, y = (part.to(wanted.device) for part in nets.test_digits(wanted.n))
    console.print(f"{'attack':<16}{'one run, passes/image':>24}{'20 budgets, passes/image':>28}{'ratio':>8}")
    for match in _there(wanted):
        attack = match.ours(wanted.eps * match.scale)
        if not isinstance(attack, BudgetAttack):
            continue
        counts = []
        for grid in ([attack.eps], [attack.eps * (k + 1) / 20 for k in range(20)]):
            passes = Passes(net)
            evaluate(passes, (x, y), {match.name: attack}, grid={attack.norm: grid}, batch_size=len(x))
            counts.append(sum(passes.per_example(len(x))))
        console.print(f"{match.name:<16}{counts[0]:>24.1f}{counts[1]:>28.1f}{counts[1] / counts[0]:>8.2f}")
        records.append({"attack": match.name, "one": counts[0], "twenty": counts[1]})
    return records


class StandIn(nn.Sequential):
    """A small net from 3 x 224 x 224 to 1 000 classes, whose own memory does not hide the attack's."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(512, 1000))


def memory(wanted: argparse.Namespace, console: Console) -> Records:
    """Peak memory that one example of 3 x 224 x 224 with 1 000 classes costs beyond the net, a process an attack."""
    records = []
    console.print(f"{'attack':<16}{'extra peak MiB':>16}{'seconds':>10}")
    for match in _there(wanted):
        child = [sys.executable, __file__, match.name, str(wanted.eps * match.scale), wanted.device]
        answer = subprocess.run(child, capture_output=True, text=True)
        if answer.returncode:
            console.print(f"{match.name:<16}fails: {answer.stderr.strip().splitlines()[-1]}")
            continue
        figures = json.loads(answer.stdout.splitlines()[-1])
        console.print(f"{match.name:<16}{figures['mib']:>16.0f}{figures['seconds']:>10.1f}")
        records.append({"attack": match.name, **figures})
    return records


def _peak(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)


def _measure_one(name: str, eps: float, device: str) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, x = StandIn().eval().to(device), torch.rand(1, 3, 224, 224, device=device)
    leaf = x.clone().requires_grad_(True)
    (logits,) = net(leaf)
    torch.autograd.grad(logits.max(), leaf)  # what one pass takes is the net's
    match = dataclasses.replace(matches(name)[0], targeted=False)
    attack = match.ours(eps)
    target = None if attack.untargeted else logits.detach().topk(2).indices[1:]
    before = _peak(device)
    run = lambda net, x, y, eps: attack.run(net, x, y, target=target, seed=0).x_adv  # noqa: E731
    seconds = timed(run, net, x, logits.argmax(0, keepdim=True), eps)[1]
    return {"mib": _peak(device) - before, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(_measure_one(sys.argv[1], float(sys.argv[2]), sys.argv[3])))
