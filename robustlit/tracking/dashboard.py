"""The panels of the W&B view in which runs rank and overlay, made from the names that runs log.

Needs the extra `dashboard` (wandb-workspaces, https://docs.wandb.ai/ref/wandb_workspaces/).
"""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from robustlit.checks import budget_text
from robustlit.tracking import metrics
from robustlit.tracking.logged import Logged

MANY = 200  # runs or bars in a panel; W&B's own limit is 10
_NORMS = {"l2": "L2", "linf": "L-inf"}
# Values of a recipe that may explain the worst case; W&B leaves out the runs that lack one.
_CAUSES = ("eps", "objective.attack.steps", "trainer.max_epochs", "optimizer.lr", "defense.kappa", "seed")
_TRAINING = {
    "Loss": [metrics.TRAIN_LOSS],
    "Accuracy on what was trained on": [metrics.TRAIN_ACCURACY],
    "Validation, clean": [metrics.VAL_ACCURACY],
    "Validation, under attack": [metrics.VAL_ROBUST],
    "Catastrophic overfitting: one step against PGD": [metrics.GUARD_TRAIN_ATTACK, metrics.GUARD_PGD],
}
_IMAGES = {
    "Test images that the attack breaks": metrics.IMAGES,
    "Test images at growing eps": metrics.IMAGES_BY_EPS,
    **{f"Curves over {name}": metrics.curves_figure(distance) for distance, name in _NORMS.items()},
}
_CHECKS = {"fail": "Checks that fail", "inconclusive": "Checks that are undecided", "pass": "Checks that pass"}


def view(logged: Logged, entity: str, project: str, name: str) -> ws.Workspace:
    """Return a new view of a project."""
    summaries = (logged.rank, metrics.CLEAN, metrics.VERDICT, metrics.VERDICT_ACCURACY)
    settings = ws.WorkspaceSettings(max_runs=MANY)
    runs = ws.RunsetSettings(
        filters="Metric('JobType') in ['train', 'eval']",
        # A run and the evaluations of its checkpoints are listed together, but not averaged with one another.
        groupby=[ws.Metric("Group"), ws.Metric("JobType")],
        order=[ws.Ordering(ws.Summary(logged.rank), ascending=False)],
        pinned_columns=["run:displayName", "run:jobType", *(f"summary:{name}" for name in summaries)],
    )
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=sections(logged), settings=settings, runset_settings=runs
    )


def renew(workspace: ws.Workspace, logged: Logged) -> None:
    """Replace the sections of an earlier version; the user's own sections, filters and order stay."""
    new = sections(logged)
    ours = {section.name for section in new}
    workspace.sections = [*new, *(section for section in workspace.sections if section.name not in ours)]


def specification(workspace: ws.Workspace) -> dict[str, Any]:
    """Return what W&B stores of a view, as plain values."""
    # The library has no public way to it; tests/cli/test_dashboard.py reads every panel in it.
    return workspace._model.model_dump(mode="json", by_alias=True, exclude_none=True)  # wandb's own


def sections(logged: Logged) -> list[ws.Section]:
    """Return the sections of the view from top to bottom, without empty ones."""
    several = [labels for labels in logged.attacks.values() if len(labels) > 1]
    causes = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name) for name in _CAUSES]
    causes.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(logged.rank), display_name="worst case"))
    made = {
        **_rankings(logged),
        "Verdict": [
            _bars("The figure that was judged", metrics.VERDICT_ACCURACY),
            *(_bars(title, metrics.verdict_count(status), end=None) for status, title in _CHECKS.items()),
            wr.WeavePanelSummaryTable(table_name=metrics.VERDICT_TABLE),
            wr.MediaBrowser(title="Is the figure believable?", media_keys=[metrics.VERDICT_FIGURE]),
        ],
        **{
            f"Accuracy against {name} distance": [_lines([label], distance) for label in logged.ordered]
            for distance, name in _NORMS.items()
        },
        "What the attacker knows": [_lines(labels, distance) for labels in several for distance in _NORMS],
        "Training": [wr.LinePlot(title=t, x=metrics.STEP, y=[*y], max_runs_to_show=MANY) for t, y in _TRAINING.items()],
        "Images, figures, tables": [
            *(wr.MediaBrowser(title=title, media_keys=[name], num_columns=1) for title, name in _IMAGES.items()),
            *(wr.WeavePanelSummaryTable(table_name=name) for name in (metrics.ROBUST_TABLE, metrics.IMAGES_TABLE)),
        ],
        "What decides": [
            wr.ParallelCoordinatesPlot(title="Recipe and worst case", columns=causes),
            wr.ParameterImportancePlot(with_respect_to=logged.rank),
        ],
    }
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    return [ws.Section(name=n, panels=p, is_open=True, layout_settings=layout) for n, p in made.items() if p]


def _rankings(logged: Logged) -> dict[str, list[Any]]:
    clean, rank = wr.SummaryMetric(metrics.CLEAN), wr.SummaryMetric(logged.rank)
    seconds, quoted = wr.SummaryMetric(metrics.seconds("train")), logged.quoted
    there = [label for label in logged.ordered if (label, *quoted) in logged.budgets]
    others = [(n, eps) for label, n, eps in logged.budgets if label == metrics.WORST and (n, eps) != quoted]
    return {
        "Ranking": [
            _bars(f"Worst case {_within(*quoted)}", logged.rank),
            _bars("Clean accuracy", metrics.CLEAN),
            wr.ScatterPlot(title="Clean accuracy and worst case", x=clean, y=rank, range_x=(0, 1), range_y=(0, 1)),
            wr.ScatterPlot(title="Seconds of training and worst case", x=seconds, y=rank, log_x=True, range_y=(0, 1)),
            wr.RunComparer(diff_only="split"),
        ],
        "Ranking by attack": [
            *(_bars(f"{label} {_within(*quoted)}", metrics.robust(label, *quoted)) for label in there),
            *(_bars(f"{label}: median L2", metrics.median(label), end=None) for label in logged.ordered),
        ],
        "Ranking at other budgets": [
            _bars(f"Worst case {_within(*at)}", metrics.robust(metrics.WORST, *at)) for at in others
        ],
    }


def _within(norm: str, eps: float) -> str:
    return f"within {_NORMS[norm]} {budget_text(eps)}"


def _bars(title: str, name: str, *, end: float | None = 1.0) -> wr.BarPlot:
    return wr.BarPlot(title=title, metrics=[name], range_x=(0, end), max_bars_to_show=MANY, max_runs_to_show=MANY)


def _lines(labels: Sequence[str], distance: str) -> wr.LinePlot:
    """Return curves over distance; several share the last one's axis, as a record holds one distance of all curves."""
    return wr.LinePlot(
        title=", ".join(labels), x=metrics.curve(labels[-1], distance)[0],
        y=[metrics.curve(label, distance)[1] for label in labels], range_y=(0.0, 1.0),
        title_x=f"{_NORMS[distance]} distance, pixel units", title_y="accuracy",
        ignore_outliers=False, smoothing_type="none", max_runs_to_show=MANY,
    )  # fmt: skip
