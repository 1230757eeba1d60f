"""Compare runs of recipe=denoiser, and draw their images and curves.

    python benchmarks/denoiser.py runs/denoiser runs/noise_only ...             # the table
    python benchmarks/denoiser.py runs/denoiser --undefended runs/standard-eval --folder docs     # and two pictures

The table and the curves are read from the evaluation of each run. A column is an attack at a budget, in per cent of the
test images that stay robust: "grey" crafted on the classifier alone to the end of the attack, "adaptive" through the
autoencoder. A minimal attack (NewtonFool, DDN, C&W) has no budget: a grey column is the share of its nearest examples
that the denoiser undoes, an adaptive one the median L2 distance.

The images are the first test digits: clean and denoised, then with the two attacks at `--eps` before and after
denoising. The curves are accuracy against L2 distance under all attacks of a kind together.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from robustlit import Evaluation
from robustlit.attacks import PGD, Transfer
from robustlit.classifier import undefended
from robustlit.data import load_mnist
from robustlit.defenses import Denoiser
from robustlit.training import load_classifier

GREY, ADAPTIVE = "greybox", "adaptive"
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#000000"


def row(run: Evaluation, budgets: list[float]) -> dict[str, str]:
    """Return the columns of one run: name -> text."""
    cells = {"n": str(run.n), "clean": f"{100 * float(run.clean_accuracy):.1f}"}
    for known, short in ((GREY, "grey"), (ADAPTIVE, "adaptive")):
        for attack in run.attacks:
            if (attack, known) not in run.runs:
                continue
            held = run.budgets(attack, known)
            for eps in [e for e in budgets if any(math.isclose(e, b) for b in held)]:
                accuracy = run.accuracy(attack=attack, eps=eps, norm=run.norm_of(attack), knowledge=known)
                cells[f"{short} {attack} {eps:g}"] = f"{100 * float(accuracy):.1f}"
            if not held and known == GREY:
                robust = np.isinf(run.least_distances(attack, knowledge=known)).mean()
                cells[f"{short} {attack}"] = f"{100 * robust:.1f}"
            elif not held:
                cells[f"{short} {attack} L2"] = f"{run.median_distance(attack, knowledge=known):.2f}"
    return cells


def print_table(runs: dict[str, Evaluation], budgets: list[float]) -> None:
    """Print a table with a column per run, as there are more attacks than runs."""
    rows = {name: row(run, budgets) for name, run in runs.items()}
    table = Table(box=None)
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for column in dict.fromkeys(column for cells in rows.values() for column in cells):
        table.add_row(column, *[cells.get(column, "") for cells in rows.values()])
    Console(width=200).print(table)


def curves(run: Evaluation, plain: Evaluation, end: float = 6.0) -> Figure:
    """Draw accuracy against L2: undefended, grey-box, adaptive, each the worst case over the run's attacks."""
    figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for found, known, name, colour, style in (
        (run, GREY, "denoiser, grey-box", BLUE, "-"),
        (run, ADAPTIVE, "denoiser, adaptive", ORANGE, "--"),
        (plain, ADAPTIVE, "undefended", BLACK, ":"),
    ):
        curve = found.curve(distance="l2", knowledge=known, at=np.linspace(0, end, 121))
        axes.plot(curve["distance"], 100 * curve["accuracy"], style, color=colour, label=name, linewidth=1.8)
        axes.fill_between(curve["distance"], 100 * curve["low"], 100 * curve["high"], color=colour, alpha=0.12, lw=0)
    axes.set(xlabel="L2 distance (pixel units)", ylabel="accuracy (%)", xlim=(0, end), ylim=(-2, 102))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.set_title(f"Worst case over {', '.join(run.attacks)}; {run.n} test images", fontsize=9)
    return figure


def images(defense: Denoiser, eps: float, count: int) -> Figure:
    """Draw clean, grey-box and adaptive images in rows, each above the denoised image."""
    _, _, digits, labels = load_mnist()
    x, y = digits[:count].float() / 255, labels[:count]
    attack, index = PGD(eps=eps), torch.arange(count)
    grey = Transfer(attack, undefended(defense)).run(defense, x, y, index=index, seed=0).x_adv
    adaptive = attack.run(defense, x, y, index=index, seed=0).x_adv
    rows = []
    with torch.no_grad():
        for name, shown in (("clean", x), ("grey-box", grey), ("adaptive", adaptive)):
            rows.append((name, shown, undefended(defense)(shown).argmax(1)))
            rows.append(("denoised", defense.denoise(shown), defense(shown).argmax(1)))
    figure = Figure(figsize=(0.95 * count + 0.6, 6.7), dpi=72, layout="constrained")
    panels = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, shown, predicted) in zip(panels, rows, strict=True):
        for axis, image, answer, label in zip(line, shown, predicted.tolist(), y.tolist(), strict=True):
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{label} → {answer}", fontsize=9, color="black" if answer == label else "#C00000", pad=3)
        line[0].set_ylabel(name, fontsize=10)
    figure.suptitle(
        f"PGD, L∞ {eps:g}; true → predicted, by the classifier alone and, under “denoised”, behind it", fontsize=10
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; pictures are of the first")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.1, 0.2, 0.3], help="columns of the table")
    parser.add_argument("--undefended", type=Path, help="the evaluation of the classifier alone under the same attacks")
    parser.add_argument("--eps", type=float, default=0.2, help="L-inf budget of the images")
    parser.add_argument("--count", type=int, default=8, help="how many images")
    parser.add_argument("--folder", type=Path, help="where denoiser_images.png and denoiser_l2.png are written")
    args = parser.parse_args()
    found = {path.name: Evaluation.load(path) for path in args.runs}
    plain = None if args.undefended is None else Evaluation.load(args.undefended)
    print_table(({} if plain is None else {args.undefended.name: plain}) | found, args.budgets)
    if args.folder is None:
        return
    defense, _ = load_classifier(args.runs[0])
    if not isinstance(defense, Denoiser):
        parser.error(f"{args.runs[0]} holds a {type(defense).__name__}, not a denoiser")
    args.folder.mkdir(parents=True, exist_ok=True)
    images(defense, args.eps, args.count).savefig(args.folder / "denoiser_images.png")
    if plain is not None:
        curves(found[args.runs[0].name], plain).savefig(args.folder / "denoiser_l2.png")


if __name__ == "__main__":
    main()
