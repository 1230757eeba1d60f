"""What an evaluation looks like in a logger, so that runs overlay and rank without hand work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from robustlit.figures import attacked_to, curves_figure, distance_grid, known_at
from robustlit.results import Evaluation


def summary_scalars(evaluation: Evaluation) -> dict[str, float]:
    """The numbers to rank runs by: clean accuracy, each attack at its budgets, worst cases, distances."""
    scalars: dict[str, float] = {"clean/accuracy": float(evaluation.clean_accuracy)}
    for attack, knowledge in evaluation.runs:
        norm, name = evaluation.norm_of(attack), evaluation.label(attack, knowledge)
        worst = evaluation.label("worst_case", knowledge)
        for eps in evaluation.budgets(attack, knowledge):
            accuracy = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
            scalars[f"robust/{name}@{norm}={eps:g}"] = float(accuracy)
            scalars[f"robust/{worst}@{norm}={eps:g}"] = float(
                evaluation.worst_case(norm=norm, eps=eps, knowledge=knowledge)
            )
        median = evaluation.median_distance(attack, knowledge=knowledge)
        if np.isfinite(median):  # no median exists when most examples were not broken at all
            scalars[f"robust/{name}/median_l2"] = median
    return scalars


def area_under_curve(
    evaluation: Evaluation, attack: str, distance: str, end: float, knowledge: str = "adaptive"
) -> float:
    """Area under a curve from 0 to `end`, over `end`: one number in [0, 1] for a whole curve.

    It is the mean over examples of how far each is known to stand, as a share of `end`. Distances that nobody attacked
    count nothing (see `attacked_to`): as if unbroken, they would make a short sweep look like a sturdy model.
    """
    reach = evaluation.least_distances(attack, distance=distance, knowledge=knowledge)
    farthest = min(end, attacked_to(evaluation, attack, distance=distance, knowledge=knowledge))
    return float(np.minimum(reach, farthest).mean() / end)


def log_evaluation(logger: Logger, evaluation: Evaluation, ends: Mapping[str, float]) -> None:
    """Logs the curves by distance, the summary, one long-form table and the figures.

    A failure of the logger is a warning: it must not cost the evaluation.

    Args:
        logger: of a Trainer; W&B gets everything, any other the scalars.
        evaluation: what to log.
        ends: distance ("l2", "linf") -> where its curve ends; the same in every run, or runs do not overlay.
    """
    scalars = summary_scalars(evaluation)
    for attack, knowledge in evaluation.runs:
        for distance, end in ends.items():
            name = f"robust/{evaluation.label(attack, knowledge)}/auc_{distance}"
            scalars[name] = area_under_curve(evaluation, attack, distance, end, knowledge)
    try:
        if isinstance(logger, WandbLogger):
            _log_to_wandb(logger.experiment, evaluation, ends, scalars)
        else:
            logger.log_metrics(scalars)
    except Exception as error:  # loggers raise many kinds, none worth losing a sweep for
        rank_zero_warn(f"{type(logger).__name__} did not take the evaluation: {type(error).__name__}: {error}")


def curve_names(run: str, distance: str) -> tuple[str, str]:
    """Names of a curve's distance and accuracy; L2, the distance that all are compared by, has the short one."""
    accuracy = "accuracy" if distance == "l2" else f"accuracy_{distance}"
    return f"attack/{run}/{distance}", f"attack/{run}/{accuracy}"


def _log_to_wandb(run: Any, evaluation: Evaluation, ends: Mapping[str, float], scalars: Mapping[str, float]) -> None:
    import wandb

    # One record holds a point of every curve: a record a point would take W&B seconds.
    points: list[dict[str, float]] = [{} for _ in distance_grid(1.0)]
    for distance, end in ends.items():
        for attack, knowledge in evaluation.runs:
            at, accuracy = curve_names(evaluation.label(attack, knowledge), distance)
            # By exact name: a glob would lose to the "*" that Lightning defines. A curve's points are no steps of
            # training, hence no `step=`, and none of them is a summary of the run.
            run.define_metric(at, hidden=True, summary="none")
            run.define_metric(accuracy, step_metric=at, step_sync=False, summary="none")
            curve = evaluation.curve(attack, distance=distance, knowledge=knowledge, at=distance_grid(end))
            known = known_at(evaluation, attack, distance=distance, knowledge=knowledge, at=curve["distance"])
            for point, d, a, there in zip(points, curve["distance"], curve["accuracy"], known, strict=True):
                point |= {at: float(d), accuracy: float(a)} if there else {}
    for point in points:
        if point:  # none is known farther away than any attack looked
            run.log(point)
    columns: list[str | int] = ["attack", "knowledge", "norm", "eps", "accuracy", "low", "high", "n", "median_l2"]
    # A table can be refused where the server is gone; so it comes last, and alone.
    run.summary.update(dict(scalars))
    run.log({f"figures/curves_{d}": wandb.Image(curves_figure(evaluation, d)) for d in ends})
    run.log({"robust/table": wandb.Table(columns=columns, data=_table_rows(evaluation))})


def _table_rows(evaluation: Evaluation) -> list[list[Any]]:
    """A row a run and budget; a minimal attack has one row, without a budget. None where there is no number."""
    rows: list[list[Any]] = []
    for attack, knowledge in evaluation.runs:
        norm = evaluation.norm_of(attack)
        median = evaluation.median_distance(attack, knowledge=knowledge)
        distance = median if np.isfinite(median) else None
        for eps in evaluation.budgets(attack, knowledge):
            reached = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
            rows.append([attack, knowledge, norm, eps, float(reached), *reached.interval, reached.n, distance])
        if not evaluation.budgets(attack, knowledge):
            rows.append([attack, knowledge, norm, None, None, None, None, evaluation.n, distance])
    return rows
