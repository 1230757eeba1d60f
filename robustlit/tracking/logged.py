"""What the runs of a project logged, read off the names in their summaries: the dashboard is made of these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from robustlit.tracking.metrics import WORST, area, budget_of, label_of_area, robust

NEWEST = 300  # how many runs of a project are read
_LESS_THAN_ALL = ("greybox", "blackbox")
Budget = tuple[str, float]  # norm, eps


@dataclass(frozen=True)
class Summary:
    """What one run logged.

    Args:
        names: The names in its summary.
        budget: The (norm, eps) that its recipe quotes; None where it names none.
    """

    names: Sequence[str]
    budget: Budget | None = None


@dataclass(frozen=True)
class Logged:
    """What runs logged together.

    Args:
        labels: Of the attacks, as in `attack/LABEL/l2`.
        budgets: (label, norm, eps), the worst case's label among them, by norm and eps.
        quoted: (norm, eps) to rank by.
    """

    labels: tuple[str, ...]
    budgets: tuple[tuple[str, str, float], ...]
    quoted: Budget

    @classmethod
    def of(cls, runs: Sequence[Summary]) -> "Logged":
        """Read the summaries of runs. The budget that most of them quote ranks, if a worst case was logged there.

        Raises:
            ValueError: No worst case among the names.
        """
        names = dict.fromkeys(name for run in runs for name in run.names)
        labels = dict.fromkeys(label for name in names if (label := label_of_area(name)))
        budgets = dict.fromkeys(found for name in names if (found := budget_of(name)))
        worst = [(norm, eps) for label, norm, eps in budgets if label == WORST]
        if not worst:
            raise ValueError("no worst case was logged at any budget")
        quoted = [run.budget for run in runs if run.budget is not None]
        most = max(dict.fromkeys(quoted), key=quoted.count, default=("", 0.0))
        wanted = most[0], float(f"{most[1]:g}")  # as it is written in a name
        best = wanted if wanted in worst else worst[len(worst) // 2]
        return cls(tuple(labels), tuple(sorted(budgets, key=lambda b: b[1:])), best)

    @property
    def attacks(self) -> dict[str, list[str]]:
        """Attack -> its labels, from the least knowledge to all of it."""
        found: dict[str, list[str]] = {}
        for label in sorted(self.labels, key=len, reverse=True):
            found.setdefault(_attack(label), []).append(label)
        return {attack: found[attack] for attack in map(_attack, self.labels)}

    @property
    def ordered(self) -> list[str]:
        """The labels by attack, the one with all knowledge first."""
        return [label for labels in self.attacks.values() for label in reversed(labels)]

    @property
    def rank(self) -> str:
        """The summary that runs are ranked by."""
        return robust(WORST, *self.quoted)

    def only(self, attacks: Sequence[str]) -> "Logged":
        """Return the same with these attacks alone; worst cases stay.

        Raises:
            ValueError: An attack that was not logged.
        """
        for attack in attacks:
            if attack not in self.attacks:
                raise ValueError(f"no run has an attack named {attack!r}; there are {', '.join(self.attacks)}")
        kept = tuple(label for label in self.labels if _attack(label) in attacks)
        budgets = tuple(b for b in self.budgets if _attack(b[0]) == WORST or b[0] in kept)
        return replace(self, labels=kept, budgets=budgets)


def _attack(label: str) -> str:
    attack, _, knowledge = label.rpartition("-")
    return attack if knowledge in _LESS_THAN_ALL else label


def of_sweep(config: Any) -> Summary:
    """Return what a run with the `norm`, `eps` and `sweep` of a config logs: each attack at every budget."""
    labels = [*map(str, config.sweep.attacks)]
    budgets = sorted({*config.sweep.grid[config.norm], config.eps})
    names = [robust(label, config.norm, eps) for eps in budgets for label in (*labels, WORST)]
    return Summary(names + [area(label, "l2") for label in labels], _budget(config))


def of_folders(folders: Sequence[Path]) -> list[Summary]:
    """Return what the runs in run folders log, from their tables and recipes.

    Raises:
        EvaluationError: A folder without an evaluation.
        ValueError: A config.yaml that cannot be read.
    """
    return [_of_folder(folder) for folder in folders if folder.name != "multirun.yaml"]  # lies in runs/ after -m


def _of_folder(folder: Path) -> Summary:
    from robustlit.results import Evaluation
    from robustlit.results.files import read_yaml

    file = folder / "config.yaml"
    try:
        config: Any = read_yaml(file) if file.is_file() else {}
        if not isinstance(config, dict):
            raise ValueError("it holds no names with values")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())}); leave the run out") from None
    evaluation, names = Evaluation.load(folder), []
    for attack, knowledge in evaluation.runs:
        label, worst = (evaluation.label(name, knowledge) for name in (attack, WORST))
        for eps in evaluation.budgets(attack, knowledge):
            names += [robust(name, evaluation.norm_of(attack), eps) for name in (label, worst)]
        names.append(area(label, "l2"))
    return Summary(names, _budget(config))


def of_project(api: Any, place: str) -> list[Summary]:
    """Return what the newest runs of a project, "ENTITY/PROJECT", logged; nothing where there is no such project."""
    # lazy=False: all summaries in a few requests, not one request for each run.
    runs = api.runs(place, order="-created_at", per_page=100, lazy=False)
    try:
        return [Summary(list(run.summary_metrics), _budget(run.config)) for run in islice(iter(runs), NEWEST)]
    except ValueError:  # how wandb says that there is no such project
        return []


def _budget(config: Any) -> Budget | None:
    """Return the budget that a recipe quotes, None where it names none."""
    norm, eps = config.get("norm"), config.get("eps")
    return (norm, float(eps)) if isinstance(norm, str) and isinstance(eps, (int, float)) else None
