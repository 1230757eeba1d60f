"""Compare label embedding with one-hot labels: is the gain robustness, or a weaker attack?

    python benchmarks/label_embedding.py                      # 3 seeds of every method, the table and the figure
    python benchmarks/label_embedding.py --floor 0.5 --seeds 5 --n 500 --figure out.png

Every method trains the same SmallCNN on MNIST in the same way; only the targets differ. Soft targets leave the same
probability, `--floor`, to the true class, the rest being spread evenly (label smoothing) or by one of three sources of
similarity. All are attacked on the first test images, in L-inf, by
- pgd: PGD, 40 steps up the cross-entropy, whose gradient soft targets weaken;
- apgd-t: APGD on the difference-of-logits ratio, which no scale of the logits can mask, towards 5 classes in turn;
- transfer: PGD images of a one-hot net of another seed, which the defense's gradients cannot mislead;
- worst: the share of examples that are robust to all three.

The tables have the mean over the seeds and, in brackets, the least and the greatest, in per cent.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustlit import Evaluation, evaluate
from robustlit.attacks import APGD, PGD, Attack, Transfer
from robustlit.data import MNIST, load_mnist
from robustlit.models import EmbeddingClassifier, SmallCNN
from robustlit.objectives import EmbeddingRegression, LabelSmoothing, Objective, SoftLabelEmbedding, Standard

BUDGETS = (0.1, 0.15, 0.2, 0.3)
ATTACKS = ("pgd", "apgd-t", "transfer", "worst")
REFERENCE_IMAGES = 10_000
BATCH = 128


@dataclass(frozen=True)
class Method:
    """How a net is trained: its objective, and the module that wraps it."""

    name: str
    objective: Callable[[], Objective]
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net


def methods(floor: float) -> list[Method]:
    """Return one-hot first, then the control, the three sources of similarity, and regression."""
    spread = (1 - floor) * 10 / 9  # label smoothing gives a share of it back to the true class
    return [
        Method("one-hot", Standard),
        Method("smoothing", lambda: LabelSmoothing(spread)),
        # A classifier is sure of its training images: its confusion needs a temperature to reach the floor.
        Method("confusion", lambda: SoftLabelEmbedding("confusion", temperature=4.0, floor=floor)),
        Method("logits", lambda: SoftLabelEmbedding("logits", floor=floor)),
        Method("pixels", lambda: SoftLabelEmbedding("pixels", floor=floor)),
        Method("regression", EmbeddingRegression, EmbeddingClassifier),
    ]


def train(objective: Objective, wrap: Callable[[nn.Module], nn.Module], seed: int, epochs: int) -> nn.Module:
    """Return a SmallCNN trained on MNIST with Adam and a one-cycle schedule, the same for every objective."""
    images, labels, _, _ = load_mnist()
    kept = MNIST().train_val_indices[0]
    torch.manual_seed(seed)
    net = wrap(SmallCNN()).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    steps = epochs * (len(kept) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in kept[torch.randperm(len(kept))].split(BATCH)[: steps // epochs]:
            optimizer.zero_grad()
            objective(net, images[batch].float().div_(255), labels[batch])["loss"].backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def prepared(objective: Objective, reference: nn.Module) -> Objective:
    """Return the objective, with similarities computed from training images where it needs them."""
    if isinstance(objective, SoftLabelEmbedding):
        x, y, _ = MNIST().tensors("train", REFERENCE_IMAGES)
        objective.prepare(reference, x, y)
    return objective


def attacked(net: nn.Module, source: nn.Module, x: Tensor, y: Tensor) -> Evaluation:
    """Run every attack at every budget; `source` is the net that images are transferred from."""
    top = BUDGETS[-1]
    attacks: dict[str, Attack] = {
        "pgd": PGD(eps=top),
        "apgd-t": APGD(eps=top, loss="dlr", targets=5, steps=50),
        "transfer": Transfer(PGD(eps=top), source),
    }
    return evaluate(net, (x, y), attacks, grid={"linf": BUDGETS})


def kept(folder: Path) -> Evaluation | None:
    """Return the stored result of an earlier run, if there is one."""
    return Evaluation.load(folder) if folder.is_dir() else None


def accuracies(found: Evaluation) -> dict[tuple[str, float], float]:
    """Return (attack, budget) -> accuracy; "worst" is under all attacks, budget 0 on clean images."""
    table = {("worst", eps): float(found.worst_case(norm="linf", eps=eps)) for eps in BUDGETS}
    table |= {(a, eps): float(found.accuracy(attack=a, norm="linf", eps=eps)) for a in ATTACKS[:-1] for eps in BUDGETS}
    return table | {(a, 0.0): float(found.clean_accuracy) for a in ATTACKS}


def shown(values: Sequence[float]) -> str:
    """Return mean and range over the seeds, in per cent."""
    return f"{100 * statistics.fmean(values):.1f} ({100 * min(values):.1f}-{100 * max(values):.1f})"


def draw(results: dict[str, list[dict[tuple[str, float], float]]], floor: float, n: int, path: Path) -> None:
    """Draw a panel per attack and a line per method: mean and range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    budgets = (0.0, *BUDGETS)
    figure, panels = plt.subplots(1, len(ATTACKS), figsize=(14, 3.6), sharey=True, layout="constrained")
    for attack, panel in zip(ATTACKS, panels, strict=True):
        for number, (method, seeds) in enumerate(results.items()):
            lines = [[100 * seed[attack, eps] for eps in budgets] for seed in seeds]
            columns = list(zip(*lines, strict=True))
            style = "--" if method in ("one-hot", "smoothing") else "-"
            panel.plot(budgets, [statistics.fmean(c) for c in columns], style, color=f"C{number}", label=method)
            panel.fill_between(
                budgets, [min(c) for c in columns], [max(c) for c in columns], color=f"C{number}", alpha=0.15, lw=0
            )
        panel.set(title=attack, xlabel="L-inf budget", ylim=(0, 100))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"accuracy on {n} images, %")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"SmallCNN on MNIST, true class at {floor:g}: mean and range of {len(seeds)} seeds", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floor", type=float, default=0.9, help="probability of the true class in soft targets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--n", type=int, default=1000, help="test digits")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, help="folder for results, so that a run that stopped can continue")
    parser.add_argument("--figure", type=Path, help="where to draw the figure")
    return parser.parse_args()


def main() -> None:
    """Train, attack, print a table per attack, and draw the figure."""
    wanted = arguments()
    torch.set_num_threads(wanted.threads)
    console = Console(width=150, highlight=False)
    _, _, images, labels = load_mnist()
    x, y = images[: wanted.n].float() / 255, labels[: wanted.n].clone()
    # Independent of every net under attack: another seed, other weights.
    reference = train(Standard(), lambda net: net, seed=1000, epochs=wanted.epochs)
    results: dict[str, list[dict[tuple[str, float], float]]] = {}
    for method in methods(wanted.floor):
        for seed in range(wanted.seeds):
            name = f"{method.name}-{seed}-{wanted.floor:g}-{wanted.epochs}-{wanted.n}"
            found = None if wanted.cache is None else kept(wanted.cache / name)
            if found is None:
                net = train(prepared(method.objective(), reference), method.wrap, seed, wanted.epochs)
                found = attacked(net, reference, x, y)
                if wanted.cache is not None:
                    found.save(wanted.cache / name)
            results.setdefault(method.name, []).append(accuracies(found))
        latest = results[method.name]
        line = ", ".join(f"{a} {shown([seed[a, 0.1] for seed in latest])}" for a in ATTACKS)
        console.print(f"{method.name}: at .1 {line}")
    for attack in ATTACKS:
        title = f"{attack}: accuracy on {wanted.n} images, true class at {wanted.floor:g}, {wanted.seeds} seeds"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for head in ("L-inf", "clean", *(f"{eps:g}" for eps in BUDGETS)):
            table.add_column(head, justify="left" if head == "L-inf" else "right")
        for name, seeds in results.items():
            table.add_row(name, *(shown([seed[attack, eps] for seed in seeds]) for eps in (0.0, *BUDGETS)))
        console.print(table, "")
    if wanted.figure is not None:
        draw(results, wanted.floor, wanted.n, wanted.figure)


if __name__ == "__main__":
    main()
