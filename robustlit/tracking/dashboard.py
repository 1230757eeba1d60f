"""The W&B view in which runs rank and overlay: its panels, from the names that runs log.

Needs the extra `dashboard` (wandb-workspaces, https://docs.wandb.ai/ref/wandb_workspaces/). The names are those of
`robustlit.callbacks` and of the training modules, which this library does not import; tests hold the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

WORST = "worst_case"
MANY = 200  # runs or bars in a panel; W&B's own limit is 10
# Of a curve: distance -> name of its accuracy, and what its axis is called.
_CURVES = {"l2": ("accuracy", "L2 distance, pixel units"), "linf": ("accuracy_linf", "L-inf distance, pixel units")}
_NORMS = {"l2": "L2", "linf": "L-inf"}
_AT = re.compile(r"robust/(?P<label>.+)@(?P<norm>l2|linf)=(?P<eps>[^@=/]+)")
_OF_CURVE = re.compile(r"robust/(?P<label>.+)/auc_(?:l2|linf)")
_LESS_THAN_ALL = ("greybox", "blackbox")
# What may explain a run's worst case; W&B leaves out the runs that lack one.
_CAUSES = ("eps", "objective.attack.steps", "trainer.max_epochs", "optimizer.lr", "defense.kappa", "seed")


@dataclass(frozen=True)
class Logged:
    """What runs logged, read off the names in their summaries.

    Args:
        labels: of the sweeps' attacks, as in `attack/LABEL/l2`: the attack, and what it knew unless everything.
        budgets: (label, norm, eps as written), the worst case's label among them.
        quoted: (norm, eps as written) of the budget to rank by.
    """

    labels: tuple[str, ...]
    budgets: tuple[tuple[str, str, str], ...]
    quoted: tuple[str, str]

    @classmethod
    def of_names(cls, names: Iterable[str], quoted: tuple[str, float] | None = None) -> Logged:
        """Reads summary names; `quoted` (norm, eps) is taken for the ranking where a worst case was logged there.

        Raises:
            ValueError: no worst case among the names.
        """
        labels: dict[str, None] = {}
        budgets: dict[tuple[str, str, str], None] = {}
        for name in names:
            if found := _AT.fullmatch(name):
                budgets[found["label"], found["norm"], found["eps"]] = None
            elif found := _OF_CURVE.fullmatch(name):
                labels[found["label"]] = None
        worst = [(norm, eps) for label, norm, eps in budgets if label == WORST]
        if not worst:
            raise ValueError("no worst case was logged at any budget")
        wanted = None if quoted is None else (quoted[0], f"{quoted[1]:g}")
        best = wanted if wanted in worst else worst[len(worst) // 2]
        return cls(tuple(labels), tuple(sorted(budgets, key=lambda b: (b[1], float(b[2])))), best)

    @property
    def attacks(self) -> dict[str, list[str]]:
        """Attack -> its labels, from the least knowledge to all of it."""
        found: dict[str, list[str]] = {}
        for label in self.labels:
            found.setdefault(_attack(label), []).append(label)
        return {attack: sorted(labels, key=len, reverse=True) for attack, labels in found.items()}

    @property
    def ordered(self) -> list[str]:
        """The labels by attack, that of all knowledge first."""
        return [label for labels in self.attacks.values() for label in reversed(labels)]

    def only(self, attacks: Sequence[str]) -> Logged:
        """The same with these attacks alone; worst cases stay.

        Raises:
            ValueError: an attack that was not logged.
        """
        for attack in attacks:
            if attack not in self.attacks:
                raise ValueError(f"no run has an attack named {attack!r}; there are {', '.join(self.attacks)}")
        kept = tuple(label for label in self.labels if _attack(label) in attacks)
        return replace(
            self, labels=kept, budgets=tuple(b for b in self.budgets if _attack(b[0]) == WORST or b[0] in kept)
        )

    @property
    def rank(self) -> str:
        """The summary that runs are ranked by."""
        return robust(WORST, *self.quoted)


def _attack(label: str) -> str:
    attack, _, knowledge = label.rpartition("-")
    return attack if knowledge in _LESS_THAN_ALL else label


def robust(label: str, norm: str, eps: str) -> str:
    """The name of an accuracy under attack in a run's summary."""
    return f"robust/{label}@{norm}={eps}"


def curve(label: str, distance: str) -> tuple[str, str]:
    """The names of a curve's distance and accuracy in a run's history."""
    return f"attack/{label}/{distance}", f"attack/{label}/{_CURVES[distance][0]}"


def view(logged: Logged, *, entity: str, project: str, name: str) -> ws.Workspace:
    """A new view of a project."""
    import wandb_workspaces.workspaces as ws

    columns = ["run:displayName", "run:jobType", f"summary:{logged.rank}", "summary:clean/accuracy", "summary:verdict"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections(logged),
        settings=ws.WorkspaceSettings(max_runs=MANY),
        runset_settings=ws.RunsetSettings(
            filters="Metric('JobType') in ['train', 'eval']",
            # A run and the evaluations of its checkpoints stand together, but are not averaged with one another.
            groupby=[ws.Metric("Group"), ws.Metric("JobType")],
            order=[ws.Ordering(ws.Summary(logged.rank), ascending=False)],
            pinned_columns=columns,
        ),
    )


def renew(workspace: ws.Workspace, logged: Logged) -> None:
    """Puts this module's sections in place of their earlier versions; a user's own sections, filters and order stay."""
    new = sections(logged)
    ours = {section.name for section in new}
    workspace.sections = [*new, *(section for section in workspace.sections if section.name not in ours)]


def sections(logged: Logged) -> list[ws.Section]:
    """The view from top to bottom."""
    import wandb_workspaces.workspaces as ws

    made = {
        "Ranking": _ranking(logged),
        "Ranking by attack": _ranking_by_attack(logged),
        "Ranking at other budgets": _ranking_elsewhere(logged),
        "Verdict": _verdict(),
        **{f"Accuracy against {_NORMS[d]} distance": _curves(logged, d) for d in _CURVES},
        "What the attacker knows": _knowledge(logged),
        "Training": _training(),
        "Images, figures, tables": _pictures(),
        "What decides": _causes(logged),
    }
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    return [
        ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)
        for name, panels in made.items()
        if panels
    ]


def _ranking(logged: Logged) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    clean, rank = wr.SummaryMetric("clean/accuracy"), wr.SummaryMetric(logged.rank)
    return [
        _bars(f"Worst case {_within(*logged.quoted)}", logged.rank),
        _bars("Clean accuracy", "clean/accuracy"),
        wr.ScatterPlot(title="Clean accuracy and worst case", x=clean, y=rank, range_x=(0, 1), range_y=(0, 1)),
        wr.ScatterPlot(
            title="Seconds of training and worst case",
            x=wr.SummaryMetric("seconds/train"), y=rank, log_x=True, range_y=(0, 1),
        ),
        wr.RunComparer(diff_only="split"),
    ]  # fmt: skip


def _ranking_by_attack(logged: Logged) -> list[Any]:
    there = [label for label in logged.ordered if (label, *logged.quoted) in logged.budgets]
    return [
        *(_bars(f"{label} {_within(*logged.quoted)}", robust(label, *logged.quoted)) for label in there),
        *(_bars(f"{label}: median L2", f"robust/{label}/median_l2", share=False) for label in logged.ordered),
    ]


def _ranking_elsewhere(logged: Logged) -> list[Any]:
    others = [at for label, *at in logged.budgets if label == WORST and tuple(at) != logged.quoted]
    return [_bars(f"Worst case {_within(*at)}", robust(WORST, *at)) for at in others]


def _within(norm: str, eps: str) -> str:
    return f"within {_NORMS[norm]} {eps}"


def _bars(title: str, name: str, *, share: bool = True) -> Any:
    import wandb_workspaces.reports.v2 as wr

    ends = (0.0, 1.0 if share else None)
    return wr.BarPlot(title=title, metrics=[name], range_x=ends, max_bars_to_show=MANY, max_runs_to_show=MANY)


def _verdict() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    checks = {"fail": "Checks that fail", "inconclusive": "Checks that are undecided", "pass": "Checks that pass"}
    return [
        *(_bars(title, f"verdict/{status}", share=False) for status, title in checks.items()),
        wr.WeavePanelSummaryTable(table_name="verdict/table"),
        wr.MediaBrowser(title="The checks", media_keys=["figures/verdict"]),
    ]


def _curves(logged: Logged, distance: str) -> list[Any]:
    return [_lines(label, [label], distance) for label in logged.ordered]


def _knowledge(logged: Logged) -> list[Any]:
    several = {attack: labels for attack, labels in logged.attacks.items() if len(labels) > 1}
    return [_lines(", ".join(labels), labels, distance) for labels in several.values() for distance in _CURVES]


def _lines(title: str, labels: Sequence[str], distance: str) -> Any:
    """Curves over distance; several share the last one's axis, as every record holds one distance of all curves."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=curve(labels[-1], distance)[0],
        y=[curve(label, distance)[1] for label in labels],
        range_y=(0.0, 1.0),
        title_x=_CURVES[distance][1],
        title_y="accuracy",
        ignore_outliers=False,
        smoothing_type="none",
        max_runs_to_show=MANY,
    )


def _training() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    shown = {
        "Loss": ["train/loss"],
        "Accuracy on what was trained on": ["train/accuracy"],
        "Validation, clean": ["val/accuracy"],
        "Validation, under attack": ["val/robust_accuracy"],
        "Catastrophic overfitting: one step against PGD": ["guard/train_attack_accuracy", "guard/pgd_accuracy"],
    }
    step = "trainer/global_step"
    return [wr.LinePlot(title=title, x=step, y=list(names), max_runs_to_show=MANY) for title, names in shown.items()]


def _pictures() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    shown = {
        "First test images under attack": "images/grid",
        "First test images at growing eps": "images/by_eps",
        "Curves over L2": "figures/curves_l2",
        "Curves over L-inf": "figures/curves_linf",
    }
    tables = ("robust/table", "images/table")
    return [
        *(wr.MediaBrowser(title=title, media_keys=[name], num_columns=1) for title, name in shown.items()),
        *(wr.WeavePanelSummaryTable(table_name=name) for name in tables),
    ]


def _causes(logged: Logged) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name) for name in _CAUSES]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(logged.rank), display_name="worst case"))
    return [
        wr.ParallelCoordinatesPlot(title="Recipe and worst case", columns=columns),
        wr.ParameterImportancePlot(with_respect_to=logged.rank),
    ]
