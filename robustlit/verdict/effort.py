"""What a verdict may cost, and how many examples that pays for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from robustlit.attacks import BudgetAttack
from robustlit.attacks.victim import VOTES
from robustlit.classifier import attack_view, draws_of, is_stochastic
from robustlit.results.evaluation import Evaluation
from robustlit.verdict.spec import FEW, HARD, ROWS, SHORT, WIDE, CheckSpec

SHARE = 0.1  # of the evaluation's passes: the most that a quick verdict costs
# Where that is less: passes for each image of the evaluation, and the smallest and largest total. A tenth of the passes
# over one or two hundred images, or over a net that every attack breaks at once, pays for no check.
LEAST_EACH, LEAST_OF_FEW, LEAST = 120, 2400, 12_000
PLANNED, SPENT = 0.8, 0.95  # shares of these passes: planned, and what the last check may use up
# Shares of the planned passes for each sample, and Square's queries in the two profiles: with these, `robustlit
# evaluate runs/NAME data.test_size=1000 --verdict` fails PGD-40's figures and passes WorstCase's (docs/evaluation.md).
PARTS = {WIDE: 0.33, FEW: 0.2, HARD: 0.32, SHORT: 0.12, ROWS: 0.03}
MOST_ROWS = 10  # that are made again in the quick profile
QUICK_QUERIES, QUERIES = 50, 1000
QUICK_SHARE_IN_L2 = 3  # one example in so many is attacked in L2 (checks 5 and 29) in the quick profile
# Number of examples in each sample of the full profile.
FULL = {WIDE: 500, FEW: 200, HARD: 200, SHORT: 200, ROWS: 30}


@dataclass(frozen=True)
class Price:
    """What the cost of a check on one example depends on."""

    attack: float  # passes that the evaluation's attack spent on an example that it did not break
    steps: int  # of that attack, 0 where it has none of its own, such as an ensemble
    draws: int  # gradients that are averaged for one step
    votes: int  # forwards that judge one point
    has_view: bool  # the model has an attack view
    minimal_in_l2: bool  # the table answers check 5
    norm: str  # that is judged


def price_of(model: nn.Module, attack: BudgetAttack, evaluation: Evaluation, eps: float) -> Price:
    """Return what one more probe of an example costs, from the evaluation's table."""
    rows = evaluation.table
    rows = rows[(rows["norm"] == attack.norm) & ((rows["eps"] - eps).abs() < 1e-9) & ~rows["success"]]
    own = rows[rows["attack"] == attack.name] if attack.name in rows["attack"].values else rows
    return Price(
        attack=float((own["forwards"] + own["backwards"]).mean()) if len(own) else 2.0 * (steps_of(attack) or 40),
        steps=steps_of(attack), draws=draws_of(model), votes=votes_of(model), has_view=attack_view(model) is not model,
        minimal_in_l2=minimal_in_l2(evaluation), norm=attack.norm,
    )  # fmt: skip


def affordable(passes: float, checks: Iterable[CheckSpec], price: Price) -> dict[str, int]:
    """Return how many examples of each sample cost about so many passes."""
    specs = list(checks)
    each = {sample: sum(spec.cost(price) for spec in specs if spec.sample == sample) for sample in PARTS}
    sizes = {sample: min(FULL[sample], int(part * passes / max(1.0, each[sample]))) for sample, part in PARTS.items()}
    return sizes | {ROWS: min(MOST_ROWS, sizes[ROWS])}


def least(price: Price, n: int) -> int:
    """Return the passes that a quick verdict on `n` examples may cost where a tenth of the evaluation's is less.

    Of a random model every gradient and every judgement costs as many times more as it takes draws.
    """
    return min(max(LEAST_EACH * n, LEAST_OF_FEW), LEAST) * max(price.draws, price.votes)


def steps_of(attack: BudgetAttack) -> int:
    """Return the attack's `steps`; 0 for one without this setting, such as an ensemble or FGSM."""
    return int(vars(attack).get("steps", 0))  # a field: a class attribute is no setting


def votes_of(model: nn.Module) -> int:
    """Return the forwards that judge one point."""
    return VOTES if is_stochastic(model) else 1


def several_budgets(evaluation: Evaluation) -> bool:
    """Return whether an attack ran at more than one budget."""
    return any(len(evaluation.budgets(attack, known)) > 1 for attack, known in evaluation.runs)


def minimal_in_l2(evaluation: Evaluation) -> bool:
    """Return whether an adaptive attack looked for the nearest adversarial example in L2."""
    return any(evaluation.norm_of(a) == "l2" and not evaluation.budgets(a) for a in evaluation.named(None, "adaptive"))
