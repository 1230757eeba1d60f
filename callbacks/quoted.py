"""Which attack a figure of images shows, and of which examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, BudgetAttack
from robustlit.attacks.victim import Victim
from robustlit.checks import budget_text, rounded_up
from robustlit.classifier import predicted
from robustlit.evaluation import Sweep
from robustlit.figures.panel import NORMS
from robustlit.results import Evaluation
from robustlit.verdict.judge import quoted_budget

_TRIED = 5  # examples that are attacked for each one shown, where no sweep has attacked them


@dataclass(frozen=True)
class Shown:
    """The examples that a figure shows and the attack on them.

    Args:
        name, attack: Name of the attack in the table, and the attack as it ran.
        eps: Its budget in pixel units; None for a minimal attack.
        seed: Seed of its random draws.
        index: Numbers of the examples.
        broken, of: How many examples it broke, of how many that are classified correctly without it.
    """

    name: str
    attack: Attack
    eps: float | None
    seed: int
    index: tuple[int, ...]
    broken: int
    of: int

    @property
    def title(self) -> str:
        """One sentence: the attack, its budget, how many examples it broke, and how these were chosen."""
        budget = "" if self.eps is None else f" {budget_text(self.eps)}"
        start = f"{self.name}, {NORMS[self.attack.norm]}{budget}"
        right = f"{self.of} correctly classified test image{'s' * (self.of != 1)}"
        if not self.broken:
            return f"{start}: broke none of {right}; its best attempts on {len(self.index)} of them"
        which = "all that it broke" if self.broken == len(self.index) else f"{len(self.index)} of them, of many classes"
        return f"{start}: broke {self.broken} of {right}; shown: {which}"


def across_classes(labels: Sequence[int], count: int) -> list[int]:
    """Return at most `count` places in `labels`, ordered by class, for which the classes take turns.

    With more classes than `count`, those shown are spread evenly over them.
    """
    seen: Counter[int] = Counter()
    turns: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        turns.setdefault(seen[label], []).append(place)
        seen[label] += 1
    chosen: list[int] = []
    for turn in sorted(turns):
        places, left = sorted(turns[turn], key=lambda place: labels[place]), count - len(chosen)
        if len(places) > left:
            places = [places[k] for k in np.linspace(0, len(places) - 1, left).round().astype(int)] if left else []
        chosen += places
    return sorted(chosen, key=lambda place: (labels[place], place))


def quoted(
    evaluation: Evaluation, sweep: Sweep, net: nn.Module, count: int, norm: str | None, eps: float | None,
    *, with_budget: bool = False,
) -> Shown | None:  # fmt: skip
    """Return the strongest attack at the quoted budget and `count` examples that it broke, its best attempts else.

    Args:
        evaluation, sweep, net: The results, the sweep that they are of and the net that was attacked.
        norm, eps: The quoted budget; where no adaptive attack ran at it, the first budget attack's own.
        with_budget: Consider budget attacks alone; None where there is none.
    """
    known = "adaptive" if any(k == "adaptive" for _, k in evaluation.runs) else evaluation.runs[0][1]
    names = evaluation.named(None, known)
    budgeted = [name for name in names if isinstance(sweep.named[name], BudgetAttack)]
    norm, eps = quoted_budget(evaluation, norm, eps)
    if (norm is None or eps is None) and budgeted:
        first = sweep.named[budgeted[0]]
        norm, eps = first.norm, first.eps  # type: ignore[attr-defined]
    if norm is not None and eps is not None:
        names = evaluation.rests_on(norm=norm, eps=eps, knowledge=known)
    if with_budget:
        names = [name for name in names if name in budgeted]
    if not names:
        return None
    examples = evaluation.table.drop_duplicates("index").set_index("index").sort_index()
    clean, labels = examples["clean"].to_numpy(), examples["label"].to_numpy()
    broken = {}
    for name in names:
        within = np.inf if eps is None else rounded_up(eps, evaluation.norm_of(name))
        reach = evaluation.least_distances(name, distance=evaluation.norm_of(name), knowledge=known)
        broken[name] = clean & np.isfinite(reach) & (reach <= within)
    # Of attacks that broke as many, the one that tried harder.
    name = max(names, key=lambda each: (int(broken[each].sum()), evaluation.passes(each, knowledge=known)))
    from_these = next(mask for mask in (broken[name], clean, ~clean) if mask.any())
    numbers = examples.index.to_numpy()[from_these]
    places = across_classes(labels[from_these].tolist(), count)
    attack = sweep.informed(sweep.named[name], known, net)
    return Shown(
        evaluation.label(name, known), attack, eps if name in budgeted else None, sweep.seed,
        tuple(int(numbers[place]) for place in places), int(broken[name].sum()), int(clean.sum()),
    )  # fmt: skip


def tried(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, index: Tensor, count: int, seed: int) -> Shown:
    """Attack some images of every class of a batch (B, C, H, W) and return `count` of those that the attack broke."""
    right = torch.nonzero(clean_predictions(net, x) == y).squeeze(1)
    candidates = right if len(right) else torch.arange(len(y), device=y.device)
    candidates = candidates[across_classes(y[candidates].tolist(), _TRIED * count)]
    result = attack.run(net, x[candidates], y[candidates], index=index[candidates], seed=seed)
    broken = result.success & torch.isin(candidates, right)
    from_these = candidates[broken] if broken.any() else candidates
    chosen = from_these[across_classes(y[from_these].tolist(), count)]
    eps = attack.eps if isinstance(attack, BudgetAttack) else None
    of = len(candidates) if len(right) else 0
    return Shown(attack.name, attack, eps, seed, tuple(index[chosen].tolist()), int(broken.sum()), of)


def clean_predictions(net: nn.Module, x: Tensor) -> Tensor:
    """Return the predicted classes (B,) of images, as an attack judges them."""
    with Victim(net, x) as victim:
        return predicted(victim.logits(x))
