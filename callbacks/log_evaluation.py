"""What an evaluation looks like in a logger, so that runs overlay and rank without hand work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from robustlit.evaluation import Evaluation
from robustlit.evaluation.figures import curves_csv, curves_figure, distance_grid


def summary_scalars(evaluation: Evaluation) -> dict[str, float]:
    """The numbers to rank runs by: clean accuracy, each attack at its budgets, worst cases, distances."""
    scalars: dict[str, float] = {"clean/accuracy": float(evaluation.clean_accuracy)}
    for attack in evaluation.attacks:
        norm = evaluation.norm_of(attack)
        for eps in evaluation.budgets(attack):
            accuracy = evaluation.accuracy(attack=attack, norm=norm, eps=eps)
            scalars[f"robust/{attack}@{norm}={eps:g}"] = float(accuracy)
            scalars[f"robust/worst_case@{norm}={eps:g}"] = float(evaluation.worst_case(norm=norm, eps=eps))
        median = evaluation.median_distance(attack)
        if np.isfinite(median):  # no median exists when most examples were not broken at all
            scalars[f"robust/{attack}/median_l2"] = median
    return scalars


def area_under_curve(evaluation: Evaluation, attack: str, distance: str, end: float) -> float:
    """Mean accuracy over distances from 0 to `end`, in [0, 1]; one number for a whole curve."""
    curve = evaluation.curve(attack, distance=distance, at=distance_grid(end))
    accuracy = curve["accuracy"].to_numpy()
    return float((accuracy[1:] + accuracy[:-1]).mean() / 2)  # trapezoids of equal width


def log_evaluation(logger: Logger, evaluation: Evaluation, ends: Mapping[str, float]) -> None:
    """Logs the curves by distance, the summary, one long-form table and the figures.

    A failure of the logger is a warning: it must not cost the evaluation.

    Args:
        logger: of a Trainer; W&B gets everything, any other the scalars.
        evaluation: what to log.
        ends: distance ("l2", "linf") -> where its curve ends; the same in every run, or runs do not overlay.
    """
    scalars = summary_scalars(evaluation)
    for attack in evaluation.attacks:
        for distance, end in ends.items():
            scalars[f"robust/{attack}/auc_{distance}"] = area_under_curve(evaluation, attack, distance, end)
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(scalars)
        return
    try:
        _log_to_wandb(logger.experiment, evaluation, ends, scalars)
    except Exception as error:  # wandb raises many kinds, none worth losing a sweep for
        rank_zero_warn(f"W&B did not take the evaluation: {type(error).__name__}: {error}")


def _log_to_wandb(run: Any, evaluation: Evaluation, ends: Mapping[str, float], scalars: Mapping[str, float]) -> None:
    import wandb

    rows: list[list[Any]] = []
    for distance, end in ends.items():
        curves = curves_csv(evaluation, distance, distance_grid(end))
        for attack, curve in curves.groupby("attack", sort=False):
            at, accuracy = f"attack/{attack}/{distance}", f"attack/{attack}/accuracy_{distance}"
            # By exact name: a glob would lose to the "*" that Lightning defines. A curve's points are no steps of
            # training, hence no `step=`, and none of them is a summary of the run.
            run.define_metric(at, hidden=True, summary="none")
            run.define_metric(accuracy, step_metric=at, step_sync=False, summary="none")
            for d, a in zip(curve["distance"], curve["accuracy"], strict=True):
                run.log({at: float(d), accuracy: float(a)})
    for attack in evaluation.attacks:
        norm = evaluation.norm_of(attack)
        for knowledge in evaluation.to_frame()["knowledge"].unique():
            for eps in evaluation.budgets(attack, knowledge):
                reached = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
                median = evaluation.median_distance(attack, knowledge=knowledge)
                rows.append([attack, knowledge, norm, eps, float(reached), *reached.interval, reached.n, median])
    columns = ["attack", "knowledge", "norm", "eps", "accuracy", "low", "high", "n", "median_l2"]
    run.log({"robust/table": wandb.Table(columns=columns, data=rows)})
    run.log({f"figures/curves_{d}": wandb.Image(curves_figure(evaluation, d)) for d in ends})
    for name, value in scalars.items():
        run.summary[name] = value
