"""JumpReLU from kappa = 0 to 1: clean accuracy, and under grey-box and adaptive attacks.

    python benchmarks/jumprelu.py --model runs/standard                    # the table
    python benchmarks/jumprelu.py --model runs/standard --surrogates       # all four, not the two strongest
    python benchmarks/jumprelu.py --model runs/standard --random --kappas 0.0645 --attacks bim,pgd_l2
    python benchmarks/jumprelu.py --model runs/standard --frozen           # units that no attack can move

Figures 17 and 18 of the 2019 report (its kappa is 0.0645): `robustlit report 17 18`. The adaptive attack uses
every surrogate asked for, and the grey-box images too: an image is broken at the least distance that any of them finds.
The signed number is the gap: the largest difference, over all distances, between the adaptive curve and the undefended
net's, in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import nets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import BIM, DDN, PGD, Attack, NearestL2, NewtonFool, WorstCase
from robustlit.defenses import JumpReLUDefense, RandomJumpReLUDefense
from robustlit.defenses.jumprelu import SURROGATES
from robustlit.results import Evaluation

ATTACKS: dict[str, Attack] = {
    "bim": BIM(eps=0.2, steps=10),
    "newtonfool": NewtonFool(),
    "pgd": PGD(eps=0.2, steps=20),
    "pgd_l2": PGD(eps=1.5, steps=20, norm="l2"),
    "ddn": DDN(steps=60),
    "nearest_l2": NearestL2(),
    "worst_case": WorstCase(eps=0.2),
}
GRID = {"linf": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3], "l2": [0.5, 1.0, 1.5, 2.0, 2.5]}
# Distances of the table: the undefended net is broken on some images there, not on all.
AT = {"linf": 0.15, "l2": 1.5}
Reach = dict[str, np.ndarray]  # attack -> least distance of an adversarial example per image, in the attack's norm


class Subject:
    """The images, the attacks, and the undefended net under them.

    Args:
        net: The undefended classifier.
        x, y: Images (n, C, H, W) in [0, 1] and their classes.
        attacks: Attacks by name.
        surrogates: Surrogates that the adaptive attack differentiates.
    """

    def __init__(
        self, net: nn.Module, x: Tensor, y: Tensor, attacks: Mapping[str, Attack], surrogates: list[str]
    ) -> None:
        self.net, self.data, self.attacks, self.surrogates = net, (x, y), attacks, surrogates
        self.undefended = self.run(net, "adaptive")

    def run(self, model: nn.Module, knowledge: str) -> Evaluation:
        """Return all attacks on a model."""
        return evaluate(model, self.data, self.attacks, grid=GRID, knowledge=[knowledge], batch_size=100)

    def reach(self, found: Evaluation) -> Reach:
        """Return least distances in each attack's own norm."""
        (knowledge,) = {known for _, known in found.runs}
        return {
            name: found.least_distances(name, distance=attack.norm, knowledge=knowledge)
            for name, attack in self.attacks.items()
        }


def defended(net: nn.Module, kappa: float, random: bool, surrogate: str) -> nn.Module:
    """Return the net with jumps; random ones between 0.6 kappa and kappa."""
    if random:
        return RandomJumpReLUDefense(net, 0.6 * kappa, kappa, surrogate=surrogate)
    return JumpReLUDefense(net, kappa, surrogate=surrogate)


def nearest(reaches: list[Reach]) -> Reach:
    """Return the least distance that any surrogate found."""
    return {name: np.minimum.reduce([reach[name] for reach in reaches]) for name in reaches[0]}


def accuracy(reach: np.ndarray, at: float) -> float:
    """Return the share not broken within a distance, in per cent."""
    return 100 * float((reach > at + 1e-6).mean())


def gap(ours: np.ndarray, undefended: np.ndarray) -> float:
    """Return by how many points the first curve lies above the second at most, over all distances."""
    distances = np.unique(np.concatenate([ours, undefended, [0.0]]))
    return max(accuracy(ours, d) - accuracy(undefended, d) for d in distances[np.isfinite(distances)])


def row(name: str, clean: float, reach: Reach, subject: Subject, against: Reach | None) -> None:
    """Print one line: accuracy at a middle distance, and the gap."""
    cells = []
    for attack, distances in reach.items():
        cell = f"{accuracy(distances, AT[subject.attacks[attack].norm]):6.1f}"
        cells.append(cell + (f" {gap(distances, against[attack]):+6.1f}" if against else 7 * " "))
    print(f"{name:<30}{100 * clean:6.1f}  " + "   ".join(cells), flush=True)


@torch.no_grad()
def frozen(conv: nn.Conv2d, x: Tensor, eps: float, kappa: float) -> tuple[float, float]:
    """Return what no attack within eps in L-inf can move, by interval arithmetic.

    Returns:
        Share of the first layer's units that are 0 at every point of the ball, and share of the pixels that only such
        units see.
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    padding = conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)
    spread = F.conv2d((high - low) / 2, conv.weight.abs(), None, conv.stride, padding)
    closed = (conv((low + high) / 2) + spread <= kappa).double()
    ones = torch.ones_like(conv.weight, dtype=torch.float64)
    pixels = x.double().requires_grad_(True)  # a pixel's gradient comes from the units that see it
    with torch.enable_grad():
        seen = (F.conv2d(pixels, ones, None, conv.stride, padding) * (1 - closed)).sum()
        (open_units,) = torch.autograd.grad(seen, pixels)
    return float(closed.mean()), float((open_units == 0).double().mean())


def print_frozen(net: nn.Module, x: Tensor, kappas: list[float]) -> None:
    """Print a line per threshold: shares of units and pixels at each eps."""
    conv = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None or net.get_submodule("features")[0] is not conv:  # type: ignore[index]
        raise SystemExit("--frozen reads the first convolution, features[0], of a net such as BaseCNN")
    budgets = (0.05, 0.1, 0.15)
    print(f"{len(x)} test digits; share of the first layer's units / of the pixels that nothing within eps can move")
    print(f"{'':<14}" + "".join(f"{f'eps {eps:g}':>18}" for eps in budgets))
    for kappa in kappas:
        shares = [frozen(conv, x, eps, kappa) for eps in budgets]
        cells = [f"{100 * units:.1f} % / {100 * pixels:.1f} %" for units, pixels in shares]
        print(f"{f'kappa {kappa:g}':<14}" + "".join(f"{cell:>18}" for cell in cells))


def main() -> None:
    """Print a line per threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint or run folder of an undefended classifier")
    parser.add_argument("--n", type=int, default=100, help="test digits")
    parser.add_argument("--kappas", default="0,0.0645,0.1,0.2,0.3,0.4,0.5,1")
    parser.add_argument("--attacks", default="bim,newtonfool,pgd,ddn", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument(
        "--surrogates",
        nargs="?",
        default="smooth,activation",
        const=",".join(SURROGATES),
        help="a line for each beside the union",
    )
    parser.add_argument("--random", action="store_true", help="kappa drawn from U(0.6 kappa, kappa)")
    parser.add_argument("--frozen", action="store_true", help="only count the units that no attack can move")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    names = wanted.attacks.split(",")
    if unknown := [name for name in names if name not in ATTACKS]:
        raise SystemExit(f"there is no attack called {', '.join(unknown)} here; there are {', '.join(ATTACKS)}")
    surrogates = wanted.surrogates.split(",")
    x, y = nets.test_digits(wanted.n)
    kappas = [float(value) for value in wanted.kappas.split(",")]
    if wanted.frozen:
        print_frozen(nets.given(wanted.model), x, kappas)
        return
    subject = Subject(nets.given(wanted.model), x, y, {name: ATTACKS[name] for name in names}, surrogates)
    plain = subject.reach(subject.undefended)
    heads = "   ".join(f"{f'{name}@{AT[ATTACKS[name].norm]}':>13}" for name in names)
    print(f"{wanted.n} test digits; accuracy in %, gap to the undefended net's curve in points")
    print(f"{'':<30}{'clean':>6}  {heads}")
    row("undefended", float(subject.undefended.clean_accuracy), plain, subject, None)
    for kappa in kappas:
        label = f"kappa {kappa:g}" + (" random" if wanted.random else "")
        torch.manual_seed(0)
        grey = subject.run(defended(subject.net, kappa, wanted.random, "smooth"), "greybox")
        clean = float(grey.clean_accuracy)
        row(f"{label} grey-box", clean, subject.reach(grey), subject, None)
        informed = []
        for surrogate in surrogates:
            found = subject.run(defended(subject.net, kappa, wanted.random, surrogate), "adaptive")
            informed.append(found)
            row(f"{label} {surrogate}", clean, subject.reach(found), subject, plain)
        informed.append(grey)  # an adaptive attacker can also run the grey-box attack
        row(f"{label} adaptive", clean, nearest([subject.reach(e) for e in informed]), subject, plain)


if __name__ == "__main__":
    main()
