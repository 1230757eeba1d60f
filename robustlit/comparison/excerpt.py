"""Whether runs were tested on the same images, and what they share where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlit.comparison.runs import ComparisonError, Run
from robustlit.results.evaluation import Evaluation


@dataclass(frozen=True)
class Excerpt:
    """The test images of a comparison.

    Args:
        index: (n,) numbers of the examples, ascending.
        labels: (n,) true classes.
        data: name of the data set, where a run says it.
        of: how many examples the runs held together, where they were intersected to fewer; else None.
    """

    index: np.ndarray
    labels: np.ndarray
    data: str | None
    of: int | None = None


def common_excerpt(runs: Sequence[Run], intersect: bool = False) -> tuple[list[Run], Excerpt]:
    """The test images that runs are compared on, and the runs restricted to them.

    A run that was cut short may hold fewer of the same examples; every other must hold exactly the same.

    Args:
        runs: at least one of them attacked.
        intersect: restrict all to the examples that every attacked run holds, where they differ.

    Raises:
        ComparisonError: none was attacked, other data sets, the same number for different images, different excerpts
            without `intersect`, or nothing in common.
    """
    attacked = [(run, run.evaluation) for run in runs if run.evaluation is not None]
    if not attacked:
        raise ComparisonError(
            f"none of these runs was attacked ({', '.join(r.name for r in runs)}); attack one: "
            f"robustlit evaluate {runs[0].folder}"
        )
    data = _one_data_set(runs)
    labels = [(run, _labels(evaluation)) for run, evaluation in attacked]
    together = _together(labels)
    whole = max((mine for _, mine in labels), key=len)
    differing = [
        (run, mine)
        for (run, mine), (_, evaluation) in zip(labels, attacked, strict=True)
        if not (mine.index.equals(whole.index) or (evaluation.complete is False and mine.index.isin(whole.index).all()))
    ]
    if not intersect:
        if differing:
            raise _differ(labels, differing[0], whole)
        return list(runs), Excerpt(whole.index.to_numpy(), whole.to_numpy(), data)
    shared = together.index
    for _, mine in labels:
        shared = shared.intersection(mine.index)
    if not len(shared):
        raise ComparisonError(
            "no example is in every one of these runs, so nothing can be intersected; compare runs that were "
            "evaluated with the same data.seed and data.test_size"
        )
    shared = shared.sort_values()
    kept = [_restricted(run, shared) for run in runs]
    of = len(together) if len(shared) < len(together) else None
    return kept, Excerpt(shared.to_numpy(), together.loc[shared].to_numpy(), data, of)


def _one_data_set(runs: Sequence[Run]) -> str | None:
    named: dict[str, Run] = {}
    for run in runs:
        if run.data is not None:
            named.setdefault(run.data, run)
    if len(named) > 1:
        (one, first), (other, second) = list(named.items())[:2]
        raise ComparisonError(
            f"the runs are of different data sets: {first.folder} of {one}, {second.folder} of {other}; compare those "
            "of one data set at a time"
        )
    return next(iter(named), None)


def _labels(evaluation: Evaluation) -> pd.Series:
    rows = evaluation.table.drop_duplicates("index")
    return pd.Series(rows["label"].to_numpy(), index=rows["index"].to_numpy()).sort_index()


def _together(labels: Sequence[tuple[Run, pd.Series]]) -> pd.Series:
    """Labels of all examples of all runs, once it is sure that a number means one image."""
    first_run, together = labels[0]
    for run, mine in labels[1:]:
        shared = together.index.intersection(mine.index)
        unlike = shared[together.loc[shared].to_numpy() != mine.loc[shared].to_numpy()]
        if len(unlike):
            at = unlike[0]
            raise ComparisonError(
                f"the runs were tested on different images: example {at} is of class {together.loc[at]} in "
                f"{first_run.folder} and of class {mine.loc[at]} in {run.folder}; compare runs of the same data"
            )
        together = pd.concat([together, mine.loc[mine.index.difference(together.index)]]).sort_index()
    return together


def _differ(
    labels: Sequence[tuple[Run, pd.Series]], differing: tuple[Run, pd.Series], whole: pd.Series
) -> ComparisonError:
    run, mine = differing
    largest = next(r for r, m in labels if m is whole)
    common = int(mine.index.isin(whole.index).sum())
    size = min(len(m) for _, m in labels)
    return ComparisonError(
        f"the runs were tested on different examples: {largest.folder} on {len(whole)}, {run.folder} on {len(mine)}, "
        f"{common} of them the same; add --intersect to compare on the examples that every run holds, or evaluate all "
        f"alike (robustlit evaluate RUN data.test_size={size})"
    )


def _restricted(run: Run, shared: pd.Index) -> Run:
    return run if run.evaluation is None else run.with_evaluation(run.evaluation.on(shared))


__all__ = ["ComparisonError", "Excerpt", "common_excerpt"]
