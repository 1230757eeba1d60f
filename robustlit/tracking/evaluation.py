"""Log an evaluation and its verdict so that runs rank and overlay: scalars, curves by distance, tables, figures."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from robustlit.figures import attacked_to, curves_figure, distance_grid, known_at, verdict_figure
from robustlit.figures.sandwich import has_sandwich, sandwich_figure
from robustlit.results import Evaluation, Verdict
from robustlit.results.text import attacked_budgets
from robustlit.tracking import metrics

_COLUMNS: list[str | int] = ["attack", "knowledge", "norm", "eps", "accuracy", "low", "high", "n", "median_l2"]
_CHECK_COLUMNS: list[str | int] = ["number", "check", "status", "finding", "figure", "threshold", "source"]


def log_evaluation(
    logger: Logger, evaluation: Evaluation, ends: Mapping[str, float], all_images: Evaluation | None = None
) -> None:  # fmt: skip
    """Log the scalars; to W&B also the curves by distance, one long-form table and the figures. Failures are warnings.

    Args:
        logger: A Trainer's logger.
        evaluation: What to log.
        ends: Distance ("l2", "linf") -> where its curve ends, in pixel units. Runs overlay only with equal ends.
        all_images: What a few of the attacks found on all images, where `evaluation` is of some: further scalars.
    """
    scalars = summary_scalars(evaluation)
    if all_images is not None:  # without a worst case, which would rest on few of the attacks
        found = {name: value for name, value in summary_scalars(all_images).items() if not metrics.is_worst(name)}
        scalars |= {metrics.of_all_images(name): value for name, value in found.items()}
    for attack, knowledge in evaluation.runs:
        for distance, end in ends.items():
            name = metrics.area(evaluation.label(attack, knowledge), distance)
            scalars[name] = area_under_curve(evaluation, attack, distance, end, knowledge)
    with _failure_is_warning(logger, "evaluation"):
        if not isinstance(logger, WandbLogger):
            logger.log_metrics(scalars)
            return
        import wandb

        run = logger.experiment
        _log_curves(run, evaluation, ends)
        # The table comes last and alone: W&B can refuse it when the server is gone.
        run.summary.update(dict(scalars))
        run.log({metrics.curves_figure(d): wandb.Image(curves_figure(evaluation, d)) for d in ends})
        pairs = {d: sandwich_figure(evaluation, d) for d in ends if has_sandwich(evaluation, d)}
        if pairs:
            run.log({metrics.sandwich_figure(d): wandb.Image(figure) for d, figure in pairs.items()})
        run.log({metrics.ROBUST_TABLE: wandb.Table(columns=_COLUMNS, data=_table_rows(evaluation))})


def log_verdict(logger: Logger, verdict: Verdict, n: int) -> None:
    """Log the judged accuracy and the counts of checks, of `n` images; to W&B also the status, a figure and a table."""
    counts = {metrics.verdict_count(status): float(count) for status, count in verdict.counts.items()}
    with _failure_is_warning(logger, "verdict"):
        if not isinstance(logger, WandbLogger):
            logger.log_metrics(counts | _judged(verdict))
            return
        import wandb

        run = logger.experiment
        share = None if verdict.accuracy is None else float(verdict.accuracy)
        rows: list[list[Any]] = [[0, "the figure is", verdict.status, verdict.headline, share, None, ""]]
        rows += [[c.number, c.name, c.status, c.finding, c.figure, c.threshold, c.source] for c in verdict.checks]
        run.summary.update({metrics.VERDICT: verdict.status, **counts} | _judged(verdict))
        run.log({metrics.VERDICT_FIGURE: wandb.Image(verdict_figure(verdict, n=n))})
        run.log({metrics.VERDICT_TABLE: wandb.Table(columns=_CHECK_COLUMNS, data=rows)})


def _judged(verdict: Verdict) -> dict[str, float]:
    return {} if verdict.accuracy is None else {metrics.VERDICT_ACCURACY: float(verdict.accuracy)}


@contextmanager
def _failure_is_warning(logger: Logger, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # loggers raise many kinds, none worth losing a result for
        rank_zero_warn(f"{type(logger).__name__} did not take the {what}: {type(error).__name__}: {error}")


def summary_scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers that rank runs: clean accuracy, each attack and the worst case by budget, median distances."""
    scalars: dict[str, float] = {metrics.CLEAN: float(evaluation.clean_accuracy)}
    for attack, knowledge in evaluation.runs:
        norm, label = evaluation.norm_of(attack), evaluation.label(attack, knowledge)
        worst = evaluation.label(metrics.WORST, knowledge)
        for eps in evaluation.budgets(attack, knowledge):
            accuracy = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
            scalars[metrics.robust(label, norm, eps)] = float(accuracy)
            # Also in place of the attack `WorstCase` alone, whose label is the same: this is at most its accuracy.
            worst_case = evaluation.worst_case(norm=norm, eps=eps, knowledge=knowledge)
            scalars[metrics.robust(worst, norm, eps)] = float(worst_case)
        median = evaluation.median_distance(attack, knowledge=knowledge)
        if np.isfinite(median):  # there is none when more than half of the examples are not broken
            scalars[metrics.median(label)] = median
    if (proven := evaluation.certificates) is not None:
        for norm in proven.norms:
            for eps in attacked_budgets(evaluation, norm):
                scalars[metrics.certified(norm, eps)] = float(proven.accuracy(norm=norm, eps=eps))
    return scalars


def area_under_curve(table: Evaluation, attack: str, distance: str, end: float, knowledge: str = "adaptive") -> float:
    """Return the area under a curve from 0 to `end`, divided by `end`: one number in [0, 1] for a whole curve.

    It equals the mean over examples of the distance up to which an example is known to be robust, as a share of `end`.
    Distances that were not attacked (see `attacked_to`) count as 0, so that a short sweep does not raise the area.
    """
    reach = table.least_distances(attack, distance=distance, knowledge=knowledge)
    farthest = min(end, attacked_to(table, attack, distance=distance, knowledge=knowledge))
    return float(np.minimum(reach, farthest).mean() / end)


def _log_curves(run: Any, evaluation: Evaluation, ends: Mapping[str, float]) -> None:
    # One record holds a point of every curve: a record for each point would take W&B seconds.
    points: list[dict[str, float]] = [{} for _ in distance_grid(1.0)]
    for distance, end in ends.items():
        for attack, knowledge in evaluation.runs:
            at, accuracy = metrics.curve(evaluation.label(attack, knowledge), distance)
            # Exact names: a glob would lose to the "*" that Lightning defines. A curve's points are not training
            # steps, hence no `step=`, and none of them is a summary of the run.
            run.define_metric(at, hidden=True, summary="none")
            run.define_metric(accuracy, step_metric=at, step_sync=False, summary="none")
            curve = evaluation.curve(attack, distance=distance, knowledge=knowledge, at=distance_grid(end))
            known = known_at(evaluation, attack, distance=distance, knowledge=knowledge, at=curve["distance"])
            for point, d, a, there in zip(points, curve["distance"], curve["accuracy"], known, strict=True):
                point |= {at: float(d), accuracy: float(a)} if there else {}
    for point in filter(None, points):  # empty past the largest distance that any attack searched
        run.log(point)


def _table_rows(evaluation: Evaluation) -> list[list[Any]]:
    """Return a row for each attack and budget; a minimal attack has one row, without a budget."""
    rows: list[list[Any]] = []
    for attack, knowledge in evaluation.runs:
        norm, budgets = evaluation.norm_of(attack), evaluation.budgets(attack, knowledge)
        median = evaluation.median_distance(attack, knowledge=knowledge)
        distance = median if np.isfinite(median) else None
        for eps in budgets:
            reached = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
            rows.append([attack, knowledge, norm, eps, float(reached), *reached.interval, reached.n, distance])
        if not budgets:
            rows.append([attack, knowledge, norm, None, None, None, None, evaluation.n, distance])
    return rows
