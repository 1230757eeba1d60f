"""Logit detection and correction (the 2019 report, section 9.3): false alarms, detection rates, and figure 14.

    python benchmarks/detection.py --model runs/standard                     # the tables
    python benchmarks/detection.py --model runs/standard --figure PATH.png   # accuracy against L2 under BIM

The defense is fitted here on the clean training split and calibrated on the validation split. Adversarial images are
crafted on the undefended net to the end of every attack (grey-box), as in the report; the adaptive line of the figure
is PGD through the attack view, then a joint attack on the images that are still robust.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import nets
import torch
from rich.console import Console
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, CarliniWagner, JointAttack, NewtonFool, Transfer
from robustlit.attacks.attack import Attack, BudgetAttack
from robustlit.data import MNIST
from robustlit.data.base import ClassificationData
from robustlit.defenses import DetectAndCorrect, OddsTest
from robustlit.results.intervals import Accuracy

RATES = (0.01, 0.05)
OF_THE_REPORT = 1.28  # its threshold for every class pair
ATTACKS: tuple[tuple[str, Attack], ...] = (
    *((f"FGSM {eps:g}", FGSM(eps=eps)) for eps in (0.1, 0.2, 0.3)),
    *((f"BIM-10 {eps:g}", BIM(eps=eps, steps=10)) for eps in (0.1, 0.2, 0.3)),
    *((f"PGD-40 {eps:g}", PGD(eps=eps)) for eps in (0.1, 0.2, 0.3)),
    ("NewtonFool", NewtonFool()),
    ("C&W", CarliniWagner()),
)
GRID = (0.02, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5)
ADAPTIVE_GRID = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def fitted(net: nn.Module, wanted: argparse.Namespace, data: ClassificationData) -> DetectAndCorrect:
    """Return the defense, fitted on the clean training split and calibrated on the validation split."""
    test = OddsTest(RATES[0], wanted.noises, wanted.scales, wanted.samples, wanted.fresh)
    defense = DetectAndCorrect(net, test).eval()
    if wanted.cache is not None and wanted.cache.is_file():
        defense.load_state_dict(torch.load(wanted.cache, weights_only=True))
        return defense
    defense.fit(clean=data.tensors("train")[:2], held_out=data.tensors("val")[:2], seed=wanted.seed)
    if wanted.cache is not None:
        torch.save(defense.state_dict(), wanted.cache)
    return defense


def flags(defense: DetectAndCorrect, x: Tensor) -> list[Tensor]:
    """Return which images are flagged at each of RATES, and at the report's threshold: (N,) bool each."""
    scores = defense.excess(x) + defense.test.threshold
    found = []
    for rate in RATES:
        defense.calibrate(rate)
        found.append(scores >= defense.test.threshold)
    defense.calibrate(RATES[0])
    return [*found, scores >= OF_THE_REPORT]


def crafted(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return grey-box images (N, ...), which of them mislead the net (N,), and their mean L2."""
    full = Transfer(attack, net) if isinstance(attack, BudgetAttack) else attack
    result = full.run(net, x, y, seed=seed)
    return result.x_adv, result.success, _mean_l2(result.x_adv, x)


def _mean_l2(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1).mean()


def false_alarms(defense: DetectAndCorrect, x: Tensor, y: Tensor, console: Console) -> None:
    """Print how many clean test images are flagged, and the accuracy that it costs."""
    net = defense.net
    console.print(str(defense.test))
    right = [_share(_predict(model, x) == y) for model in (net, defense)]
    console.print(f"clean, {len(x)} test images: net {100 * right[0]:.2f} % right, defended {100 * right[1]:.2f} %")
    for name, flagged in zip(
        (*(f"asked for {r:.0%}" for r in RATES), "threshold 1.28"), flags(defense, x), strict=True
    ):
        console.print(f"  {name}: {100 * float(flagged.double().mean()):.2f} % of the clean images are flagged")
    # The threshold is a quantile of the held-out images: more of them make it more certain.
    more, held = copy.deepcopy(defense), defense.test.held_out_scores
    scores = defense.excess(x) + defense.test.threshold
    more.test.held_out_scores = torch.cat([held, scores[::2]]).sort(descending=True).values
    for rate in RATES:
        more.calibrate(rate)
        share = 100 * float((scores[1::2] >= more.test.threshold).double().mean())
        counts = f"calibrated on {len(held) + len(scores[::2])} images (every second test image too)"
        console.print(f"  asked for {rate:.0%}, {counts}: {share:.2f} % of the other {len(scores[1::2])}")


def detection_rates(
    defense: DetectAndCorrect, x: Tensor, y: Tensor, wanted: argparse.Namespace, console: Console
) -> None:
    """Print which adversarial images are flagged, and the accuracy of the corrector on them."""
    net, n = defense.net, wanted.n
    clean = x[:n]
    columns = ("images", "fool net", "mean L2", "AUC", "at 1 %", "at 5 %", "at 1.28", "SVC right", "defended")
    console.print(f"{'detected of those that fool':<28}" + "".join(f"{c:>11}" for c in columns))
    for name, attack in ATTACKS:
        if wanted.attacks is not None and not any(name.startswith(a) for a in wanted.attacks):
            continue
        count = min(n, wanted.cw_n) if isinstance(attack, CarliniWagner) else n
        label = y[:count]
        x_adv, fools, length = crafted(attack, net, x[:count], label, wanted.seed)
        found = [100 * float(f.double().mean()) for f in flags(defense, x_adv[fools])]
        area = defense.roc(clean_x=clean, adversarial_x=x_adv[fools]).auc
        with torch.no_grad():
            read = torch.cat([defense.svc(net(part)).argmax(1) for part in x_adv[fools].split(500)])
        of_svc = 100 * float((read == label[fools]).double().mean())
        robust = 100 * float((_predict(defense, x_adv) == label).double().mean())
        line = f"{count:>11}{100 * float(fools.double().mean()):>11.1f}{float(length):>11.2f}{area:>11.3f}"
        console.print(f"{name:<28}{line}" + "".join(f"{v:>11.1f}" for v in (*found, of_svc, robust)))


def _share(right: Tensor) -> Accuracy:
    return Accuracy(int(right.sum()), len(right))


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(500)])


Line = list[tuple[float, float]]  # mean L2, accuracy in per cent


def under_bim(defense: DetectAndCorrect, x: Tensor, y: Tensor, seed: int) -> tuple[Line, Line]:
    """Return the lines of the undefended and the defended net on grey-box BIM images, a point for each eps."""
    start = [(0.0, 100 * float((_predict(m, x) == y).double().mean())) for m in (defense.net, defense)]
    lines: tuple[Line, Line] = ([start[0]], [start[1]])
    for eps in GRID:
        x_adv, _, length = crafted(BIM(eps=eps, steps=10), defense.net, x, y, seed)
        for line, model in zip(lines, (defense.net, defense), strict=True):
            line.append((float(length), 100 * float((_predict(model, x_adv) == y).double().mean())))
    return lines


def adaptive(defense: DetectAndCorrect, x: Tensor, y: Tensor, wanted: argparse.Namespace) -> tuple[Line, list[str]]:
    """Return the line of the defended net under adaptive attacks; images broken at a smaller eps stay broken."""
    x_adv, robust = x.clone(), _predict(defense, x) == y
    line: Line = [(0.0, 100 * float(robust.double().mean()))]
    notes = []
    for eps in ADAPTIVE_GRID:
        steps: tuple[Callable[[], BudgetAttack], ...] = (
            lambda eps=eps: PGD(eps=eps),  # type: ignore[misc]
            lambda eps=eps: JointAttack(eps=eps, searches=wanted.searches),  # type: ignore[misc]
        )
        for make in steps:
            rows = torch.nonzero(robust).squeeze(1)
            if len(rows):
                result = make().run(defense, x[rows], y[rows], index=rows, seed=wanted.seed)
                x_adv[rows] = result.x_adv
                robust[rows] = ~result.success
        share = _share(robust)
        line.append((float(_mean_l2(x_adv, x)), 100 * float(share)))
        notes.append(f"eps {eps:g}: {100 * share:.1f} % {[round(100 * b, 1) for b in share.interval]}")
    return line, notes


def draw(lines: dict[str, Line], path: Path, n: int, adaptive_n: int) -> None:
    """Draw figure 14 of the report, with an adaptive line."""
    from matplotlib.figure import Figure

    from robustlit.figures import COLOURS, STYLES

    figure = Figure(figsize=(6.4, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (name, line) in enumerate(lines.items()):
        x, y = zip(*line, strict=True)
        axes.plot(x, y, STYLES[number], marker="o", markersize=3.5, color=COLOURS[number], label=name)
    axes.set(
        xlabel="mean L2 distance (pixel units)",
        ylabel="accuracy (%)",
        ylim=(-3, 103),
        title=f"Logit detection and correction: n = {n}, adaptive {adaptive_n}",
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def main() -> None:
    """Print the tables, or draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="undefended net: run folder, checkpoint or module:function")
    parser.add_argument("--weights", help="state dict for the function's net")
    parser.add_argument("--n", type=int, default=1000, help="test images to attack")
    parser.add_argument("--attacks", nargs="*", help="only those whose names begin so; none: clean images only")
    parser.add_argument("--cache", type=Path, help="file to store the fitted defense in, and to load it from")
    parser.add_argument("--cw-n", type=int, default=300, help="of them for C&W, which is slow")
    parser.add_argument("--noises", nargs="+", default=["sign"])
    parser.add_argument("--scales", nargs="+", type=float, default=[0.03])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--fresh", action="store_true", help="fresh noise at every call, as in the paper")
    parser.add_argument("--figure", type=Path, help="draw figure 14 here instead of printing the tables")
    parser.add_argument("--adaptive-n", type=int, default=100, help="images for the adaptive line of the figure")
    parser.add_argument("--searches", type=int, default=4, help="of the joint attack")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    torch.manual_seed(wanted.seed)
    console = Console(highlight=False, width=160)
    data = MNIST()
    defense = fitted(nets.given(wanted.model, wanted.weights), wanted, data)
    x, y, _ = data.tensors("test")
    if wanted.figure is None:
        if not wanted.attacks:
            false_alarms(defense, x, y, console)
        detection_rates(defense, x, y, wanted, console)
        return
    n, few = wanted.n, wanted.adaptive_n
    undefended, grey = under_bim(defense, x[:n], y[:n], wanted.seed)
    known, notes = adaptive(defense, x[:few], y[:few], wanted)
    lines = {"undefended, BIM": undefended, "defended, grey-box BIM": grey, "defended, adaptive (PGD, joint)": known}
    for name, line in lines.items():
        console.print(name + ": " + ", ".join(f"L2 {length:.2f} {share:.1f} %" for length, share in line))
    console.print("adaptive, " + ", ".join(notes))
    draw(lines, wanted.figure, n, few)


if __name__ == "__main__":
    main()
