"""The gate of `--min-robust`: an exit code of its own where the quoted robust accuracy is below what was asked for.

The point value is compared, as in every table that quotes an accuracy; its interval is printed beside it. To be sure at
95 %, ask for more, or attack more images: with 1 000 of them the lower end is about 3 points below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from robustlit.checks import TOLERANCE, budget_text
from robustlit.experiment.recipes import ConfigError, read_fractions, read_only, stored
from robustlit.results import Evaluation, EvaluationError
from robustlit.tracking.console import say

BELOW = 4  # exit code
_ATTACKS = "robustlit.attacks."


def read_share(value: object, name: str = "min_robust") -> float:
    """Return a share in (0, 1] that may come from a command line.

    Raises:
        ConfigError: Anything else; 40 and "40%" get a hint at 0.4.
    """
    text = str(value).strip()
    try:
        share = float(text.rstrip("% ")) if not isinstance(value, bool) else math.nan
    except ValueError:
        share = math.nan
    if 0 < share <= 1 and "%" not in text:
        return share
    hint = "it is the least share of images that must be robust"
    if 0 < share <= 100:
        hint = f"did you mean {share / 100:g}?"
    elif share == 0:
        hint = "0 asks for nothing: leave it out"
    raise ConfigError(f"{name} must be a share in (0, 1], got {text}; {hint}")


def check_gate(config: DictConfig) -> None:
    """Raise a ConfigError where `min_robust` is no share, or the sweep attacks nothing at the recipe's budget."""
    asked = config.get("min_robust")
    if asked is None:
        return
    read_share(asked)
    sweep, budget = config.sweep, f"{config.norm} {budget_text(config.eps)}"
    known = sweep.get("knowledge")
    if not sweep.get("_target_"):
        why = "and with sweep=none nothing is attacked: choose sweep=linf, worst_case, ..."
    elif isinstance(known, ListConfig) and "adaptive" not in known:
        why = f"by attacks that know the defense, and sweep.knowledge=[{', '.join(map(str, known))}] runs none"
    elif isinstance(sweep.get("attacks"), Mapping) and not _at_budget(config):
        names = ", ".join(map(str, sweep.attacks))
        why = f"and no attack of the sweep ({names}) runs at that budget: add one that does, such as sweep=worst_case"
    else:
        return
    raise ConfigError(f"min_robust={asked} (--min-robust) needs a robust accuracy at {budget}, {why}")


def warn_of_another_norm(config: DictConfig) -> None:
    """Print a warning where all attacks of the sweep have budgets, and in another norm than the recipe's."""
    attacks = config.sweep.get("attacks")
    found = list(_budgets(config)) if isinstance(attacks, Mapping) else []
    if found and all(budgets and norm != config.norm for norm, budgets in found):
        names, norm = ", ".join(map(str, attacks)), config.norm
        say(f"warning: norm={norm}, but the sweep attacks ({names}) in {found[0][0]} alone: take sweep={norm}")


def _at_budget(config: DictConfig) -> bool:
    """Return whether an attack runs at the recipe's budget, as far as the recipe says."""
    for norm, budgets in _budgets(config):
        if norm is None:  # it may
            return True
        if norm == config.norm and any(abs(float(budget) - float(config.eps)) <= TOLERANCE for budget in budgets):
            return True
    return False


def _budgets(config: DictConfig) -> Iterator[tuple[str | None, list[Any]]]:
    """Yield the norm and the budgets of each attack of the sweep.

    An attack for the nearest adversarial example has no budget; of one that is not ours, nothing is known: None, [].
    """
    from robustlit import attacks

    grid = config.sweep.get("grid") or {}
    for attack in config.sweep.attacks.values():
        if not isinstance(attack, Mapping):  # refused where the sweep is made
            continue
        kind = getattr(attacks, str(attack.get("_target_")).removeprefix(_ATTACKS), None)
        if kind is None:
            yield None, []
            continue
        norm, budgets = attack.get("norm", getattr(kind, "norm", "linf")), []
        if issubclass(kind, attacks.BudgetAttack):
            budgets = [attack.get("eps", getattr(kind, "eps", math.nan)), *(grid.get(norm) or ())]
        yield norm, budgets


def gate(evaluation: Evaluation | None, config: Mapping[Any, Any] | DictConfig) -> int:
    """Print whether the robust accuracy at the recipe's budget reaches `min_robust`, if that is set.

    Returns:
        0 where it does or nothing is asked for, `BELOW` where it does not, 1 where there is no such accuracy.
    """
    if config.get("min_robust") is None:
        return 0
    asked, norm, eps = read_share(config["min_robust"]), str(config["norm"]), float(config["eps"])
    try:
        if evaluation is None:
            raise EvaluationError("nothing was attacked")
        found = evaluation.worst_case(norm=norm, eps=eps)
    except EvaluationError as error:
        say(f"error: --min-robust, but there is no robust accuracy at {norm} {budget_text(eps)}: {error}")
        return 1
    where = f"{norm} {budget_text(eps)}"
    text = f"{found} of {found.n} images are robust at {where}; --min-robust asks for {100 * asked:g} %"
    say(f"error: only {text}" if found < asked else text)
    return BELOW if found < asked else 0


def gate_of_finished(run: Path, config: DictConfig) -> int:
    """Return `gate` for a finished run, from the table in its folder; `config` is the composed recipe."""
    if config.get("min_robust") is None:
        return 0
    return gate(Evaluation.load(run), read_only(read_fractions(stored(config))))
