"""What keeping freed memory (robustlit.processes.keep_freed_memory) saves and costs on a CPU.

    python benchmarks/freed_memory.py

A step of PGD-2 training of PreActResNet-18 (batches of 128 colour images of 32 pixels), and PGD-40 on 1 000 images
of 28 pixels with BaseCNN at half its width (batches of 500), on random images, each in processes of its own, with and
without, in turn. Prints seconds, page faults, and the most memory that the process held.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from robustlit.attacks import PGD
from robustlit.models import BaseCNN, PreActResNet
from robustlit.objectives import AdversarialTraining
from robustlit.processes import keep_freed_memory


def training() -> Callable[[], object]:
    """Return a training step."""
    net = PreActResNet().to(memory_format=torch.channels_last)
    x, y = torch.rand(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randint(10, (128,))
    objective, optimizer = AdversarialTraining(PGD(8 / 255, steps=2)), torch.optim.SGD(net.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        loss = objective(net, x, y)["loss"]
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()

    return step


def attack() -> Callable[[], object]:
    """Return an attack on two batches, which no step of it breaks."""
    net = BaseCNN(width=0.5).to(memory_format=torch.channels_last).eval()
    x = torch.rand(500, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    y = net(x).argmax(1)
    return lambda: [PGD(1e-6)(net, x, y, seed=0) for _ in range(2)]


CASES = {"training": training, "attack": attack}


def measure(case: str) -> str:
    """Return the least seconds of three repetitions after the first, page faults of the last, the most memory."""
    torch.manual_seed(0)
    work = CASES[case]()
    work()
    seconds, faults = [], 0
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{min(seconds):6.2f} s {faults:9,} page faults {most:5.2f} GiB"


def main() -> None:
    """Measure each case in processes of its own, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # of the processes: the case, kept or returned
    arguments = parser.parse_args()
    if arguments.one:
        case, how = arguments.one
        if how == "kept" and not keep_freed_memory():
            sys.exit("the C library is not glibc, or an allocator is set: nothing to compare")
        print(f"{case:9}{how:9}{measure(case)}", flush=True)
        return
    for _ in range(arguments.rounds):
        for case in CASES:
            for how in ("returned", "kept"):
                subprocess.run([sys.executable, __file__, "--one", case, how], check=True)


if __name__ == "__main__":
    main()
