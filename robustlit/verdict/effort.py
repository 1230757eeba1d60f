"""How many examples a verdict looks at, and by how much work: what its profile may cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robustlit.attacks import BudgetAttack
from robustlit.attacks.victim import VOTES
from robustlit.classifier import attack_view, draws_of, is_stochastic
from robustlit.results.evaluation import Evaluation
from robustlit.verdict import growth

SHARE = 0.1  # of the evaluation's passes, which a quick verdict may cost
# Passes that it may cost where the tenth is less, for each image of the evaluation and in all: of one or two hundred
# images, or of a net that fell at once, a tenth pays for no look at all.
LEAST_EACH, LEAST = 100, 10_000
QUICK_QUERIES, QUERIES = 50, 1000  # of Square, at least and at most
FEWEST = 5  # examples below which a look says nothing
LONG = 300  # passes of the look for the nearest adversarial in L2
SHARE_NEAREST = 3  # of the few, in the quick profile one in so many gets it


@dataclass(frozen=True)
class Sizes:
    """How many examples are looked at: `wide` cheaply, `few` by an attack, the `hard`est of as many by much more."""

    wide: int
    few: int
    hard: int


FULL = Sizes(wide=500, few=200, hard=200)


def spent(evaluation: Evaluation) -> int:
    """Forward and backward passes that an evaluation cost, of one example each."""
    return int((evaluation.table["forwards"] + evaluation.table["backwards"]).sum())


def quick(evaluation: Evaluation) -> int:
    """The passes that a quick verdict on an evaluation may cost."""
    return max(int(SHARE * spent(evaluation)), min(LEAST_EACH * evaluation.n, LEAST))


def affordable(passes: float, model: nn.Module, attack: BudgetAttack, evaluation: Evaluation, eps: float) -> Sizes:
    """The sizes that cost about so many passes, from what an example that stood has cost in the evaluation."""
    rows = evaluation.table
    rows = rows[(rows["norm"] == attack.norm) & ((rows["eps"] - eps).abs() < 1e-9) & ~rows["success"]]
    own = rows[rows["attack"] == attack.name] if attack.name in rows["attack"].values else rows
    steps = steps_of(attack) or 40
    once = float((own["forwards"] + own["backwards"]).mean()) if len(own) else 2.0 * steps
    judged = VOTES if is_stochastic(model) else 1
    wide = 40.0 * judged
    runs = 0.3 + (steps_of(attack) > 0) + (attack_view(model) is not model)  # of the attack, for each of the few
    few = 2.0 * steps * draws_of(model) + once * runs
    if not growth.several_budgets(evaluation):
        few += 80.0 * draws_of(model)
    if not growth.minimal_in_l2(evaluation):
        few += LONG / SHARE_NEAREST * draws_of(model)
    hard = (3 * once if steps_of(attack) else 200.0 * draws_of(model)) + (2 * QUICK_QUERIES + 90.0) * judged
    return Sizes(int(0.35 * passes / wide), int(0.25 * passes / few), int(0.4 * passes / hard))


def steps_of(attack: BudgetAttack) -> int:
    """The attack's steps; 0 for an ensemble, which has none of its own."""
    return int(getattr(attack, "steps", 0))
