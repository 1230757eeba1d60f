"""Our minimal attacks in L2 beside those of AttackBench, by AttackBench's own harness: local optimality.

    pip install -e ".[peers]"                                    # or attackbenchlib and, for its FMN, foolbox
    python benchmarks/optimality.py                              # on a built-in net and test digits
    python benchmarks/optimality.py --model nets_of_mine:build --weights FILE --images FOLDER --n 50

Cinà, Rony, Pintor, Demetrio, Demontis, Biggio, Ben Ayed, Roli: AttackBench: evaluating gradient-based attacks for
adversarial examples, 2025, arXiv:2404.19460. Each attack may ask 2 000 forwards and backwards for an image; the harness
takes the nearest adversarial example that it saw in any of them. Local optimality is 1 where an attack's curve of
accuracy against distance is that of the nearest examples of all attacks of the table. FOLDER holds one folder of
pictures for each class, in the order of their names.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks import DDN, FAB, Attack, CarliniWagner, DeepFool, NearestL2

BUDGET = 2000  # forwards and backwards of an image, the benchmark's own
OURS: dict[str, Attack] = {
    # 3 walks of 60 steps, 8 of FAB of 30, 2 refinements of 120, 200 at the end: 1 100 forwards and 860 backwards.
    "NearestL2": NearestL2(explore=60, refine=120, finish=200),
    "DDN": DDN(steps=990),
    "CarliniWagner": CarliniWagner(searches=9, steps=110),
    "FAB": FAB(norm="l2", steps=100),
    "DeepFool": DeepFool(),
}
PEERS = ("fab", "fmn", "deepfool", "superdeepfool", "trust_region")  # of attackbench.preconfigured


def ours(attack: Attack) -> Callable[..., Tensor]:
    """Return an attack of ours as the harness calls it."""

    def call(model: nn.Module, inputs: Tensor, labels: Tensor, **_: Any) -> Tensor:
        return attack.run(model, inputs, labels, seed=0).x_adv

    return call


def pictures(folder: str, count: int) -> tuple[Tensor, Tensor]:
    """Return about `count` images in [0, 1] and their classes: as many of each class folder."""
    from torchvision.io import read_image

    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    files = [
        (file, k) for k, path in enumerate(classes) for file in sorted(path.iterdir())[: -(-count // len(classes))]
    ]
    images = torch.stack([read_image(str(file)).float() / 255 for file, _ in files])
    return images, torch.tensor([k for _, k in files])


def measure(net: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> dict[str, Any]:
    """Run the attacks `names` through the harness; one that fails here is left out with its error."""
    harness, preconfigured = (importlib.import_module(f"attackbench{part}") for part in ("", ".preconfigured"))
    found: dict[str, Any] = {}
    for name in names:
        attack = ours(OURS[name]) if name in OURS else getattr(preconfigured, name, None)
        try:
            loader = DataLoader(TensorDataset(x, y), batch_size=50)
            found[name] = harness.run_attack(net, loader, attack, "l2", torch.device("cpu"), BUDGET, debug=True)
        except Exception as error:
            print(f"{name} fails here, left out ({type(error).__name__}: {error})", file=sys.stderr)
    return found


def main() -> None:
    """Print the table, best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="undefended", help=f"a built-in net: {','.join(nets.RECIPES)}")
    parser.add_argument("--model", help="a checkpoint or run folder of robustlit, or module:function returning a net")
    parser.add_argument("--weights", help="state dict for the net of module:function")
    parser.add_argument("--images", help="folder of class folders of pictures; default: MNIST test digits")
    parser.add_argument("--n", type=int, default=50, help="images")
    parser.add_argument("--attacks", default=",".join([*OURS, *PEERS]), help="names with commas between")
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = nets.given(given.model, given.weights) if given.model else nets.built_in(given.net)
    x, y = pictures(given.images, given.n) if given.images else nets.test_digits(given.n)
    found = measure(net, x, y, given.attacks.split(","))
    scores = importlib.import_module("attackbench").compare_attacks_optimality(list(found.values()), "l2", list(found))[
        "optimality_scores"
    ]
    table = Table("attack", "local optimality", "success, %", "median L2", "passes", "seconds")
    for name in sorted(found, key=lambda each: -scores[each]):
        result = found[name]
        distances = torch.tensor([d for d in result["distances"]["l2"] if d > 0])
        passes = max(f + b for f, b in zip(result["num_forwards"], result["num_backwards"], strict=True))
        broken = 100 * sum(math.isfinite(d) for d in distances.tolist()) / max(len(distances), 1)
        median = distances.quantile(0.5, interpolation="higher")
        label = name if name in OURS else f"{name} (AttackBench)"
        table.add_row(
            label, f"{scores[name]:.4f}", f"{broken:.0f}", f"{median:.4f}", str(passes), f"{sum(result['times']):.0f}"
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
