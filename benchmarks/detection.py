"""Logit detection and correction (the 2019 report, section 9.3): false alarms and detection rates.

    python benchmarks/detection.py --model runs/standard

The defense is fitted here on the clean training split and calibrated on the validation split. Adversarial images are
crafted on the undefended net to the end of every attack (grey-box), as in the report. Figures 7, 8 and 14, with
adaptive attacks: `robustlit report 7 8 14`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import nets
import torch
from rich.console import Console
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, CarliniWagner, NewtonFool, Transfer
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


def main() -> None:
    """Print the tables."""
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
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    torch.manual_seed(wanted.seed)
    console = Console(highlight=False, width=160)
    data = MNIST()
    defense = fitted(nets.given(wanted.model, wanted.weights), wanted, data)
    x, y, _ = data.tensors("test")
    if not wanted.attacks:
        false_alarms(defense, x, y, console)
    detection_rates(defense, x, y, wanted, console)


if __name__ == "__main__":
    main()
