"""What bf16, channels_last and torch.compile cost or save in a training step, as ratios to float32 without them.

    OMP_NUM_THREADS=1 python benchmarks/switches.py --width 16
    OMP_NUM_THREADS=1 python benchmarks/switches.py --model efficientnet_b3 --steps 0 --cases bf16 channels_last

All cases take their steps in turn within one process and the ratio is taken within a round, so that a drift of the
machine's speed cancels. Times are of the process, so other programs count little. The first steps of each case, in
which torch.compile compiles, are not counted; their duration is shown. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.models import PreActResNet, TimmNet
from robustlit.objectives import AdversarialTraining, Objective, Standard

EPS = 8 / 255


@dataclass
class Case:
    """A net trained in one way."""

    name: str
    step: Callable[[], None]
    first: float = 0.0  # seconds of the steps that are not counted
    rounds: list[float] = field(default_factory=list)  # seconds of a step in each


def build_net(model: str | None, width: int) -> nn.Module:
    """Return a net for colour images of 32 pixels: `model` of timm, or PreActResNet-18 of that width."""
    if model is None:
        return PreActResNet(width=width)
    return TimmNet(model, in_chans=3, image_size=32)


def case(name: str, arguments: argparse.Namespace, device: torch.device, x: Tensor, y: Tensor) -> Case:
    """Return a case by the names of its switches, joined by " + "."""
    torch.manual_seed(0)
    net = build_net(arguments.model, arguments.width).to(device)
    if "channels_last" in name:
        net = net.to(memory_format=torch.channels_last)
    trained = torch.compile(net) if "compile" in name else net
    steps = arguments.steps
    objective: Objective = AdversarialTraining(PGD(eps=EPS, steps=steps)) if steps else Standard()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in name):
            loss = objective(trained, x, y)["loss"]  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Case(name, step)


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of a call: of the process on a CPU, of the clock on a GPU."""
    clock = time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
        clock = time.perf_counter
    started = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    """Run the rounds and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a net of timm, without pretrained weights; default: PreActResNet-18")
    parser.add_argument("--width", type=int, default=64, help="of PreActResNet-18")
    parser.add_argument("--steps", type=int, default=3, help="of PGD; 0 is training without an attack")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=["bf16", "channels_last", "compile", "channels_last + compile"])
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    x = torch.rand(arguments.batch_size, 3, 32, 32, device=device)
    y = torch.randint(10, (arguments.batch_size,), device=device)
    cases = [case(name, arguments, device, x, y) for name in ("float32", *arguments.cases)]
    for each in cases:
        each.first = timed(each.step, device) + timed(each.step, device)
    for _ in range(arguments.rounds):
        for each in cases:
            each.rounds.append(timed(each.step, device))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    model = arguments.model or f"PreActResNet-18, width {arguments.width}"
    settings = f"{model}, {f'PGD-{arguments.steps}' if arguments.steps else 'no attack'}, batch {arguments.batch_size}"
    print(f"{settings}, {where}, torch {torch.__version__}")
    print(f"{'case':<26}{'first two s':>12}{'step ms':>10}{'ratio median (min - max)':>28}")
    for each in cases:
        ratios = [mine / plain for mine, plain in zip(each.rounds, cases[0].rounds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"{each.name:<26}{each.first:>12.1f}{1000 * statistics.median(each.rounds):>10.0f}{spread:>28}")


if __name__ == "__main__":
    main()
