"""The test images that runs are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import pandas as pd

from robustlit.comparison.runs import ComparisonError, Run, text
from robustlit.figures.several import labels_of, lost_classes


@dataclass(frozen=True)
class Excerpt:
    """The test images of a comparison."""

    index: np.ndarray  # (n,) numbers of the examples, ascending
    labels: np.ndarray  # (n,) true classes
    data: str | None  # name of the data set, None where no run names it
    of: int | None = None  # number of examples of all runs together, where they were intersected to fewer
    lost: str = ""  # a sentence without its dot that names the classes which no example is left of


def common_excerpt(runs: Sequence[Run], intersect: bool = False) -> tuple[list[Run], Excerpt]:
    """Return the runs, restricted to the test images that they are compared on, and these images.

    A run that was cut short may have fewer of the same examples; every other run must have exactly the same.

    Args:
        runs: At least one of them attacked.
        intersect: Restrict all runs to the examples that every attacked run has, where they differ.

    Raises:
        ComparisonError: No run was attacked, the data sets or the names of their classes differ, one number stands for
            different images, the examples differ without `intersect`, or no example is in all runs.
    """
    tested = [(run, labels_of(run.evaluation)) for run in runs if run.evaluation is not None]
    if not tested:
        names = ", ".join(run.name for run in runs)
        way_out = f"attack one: robustlit evaluate {runs[0].folder}"
        raise ComparisonError(f"none of these runs was attacked ({names}); {way_out}")
    data = _one_data_set(runs)
    together = _together(tested)
    if not intersect:
        whole = _same_examples(tested)
        return list(runs), Excerpt(whole.index.to_numpy(), whole.to_numpy(), data)
    shared = reduce(pd.Index.intersection, [mine.index for _, mine in tested]).sort_values()
    if not len(shared):
        raise ComparisonError(
            "no example is in every one of these runs, so nothing can be intersected; compare runs that were "
            "evaluated with the same data.seed and data.test_size"
        )
    kept = [replace(run, evaluation=run.evaluation.on(shared)) if run.evaluation else run for run in runs]
    of = len(together) if len(shared) < len(together) else None
    lost = lost_classes(together, together.loc[shared], tested[0][0].evaluation)
    return kept, Excerpt(shared.to_numpy(), together.loc[shared].to_numpy(), data, of, lost)


def _one_data_set(runs: Sequence[Run]) -> str | None:
    named = {run.data: run for run in reversed(runs) if run.data is not None}
    if len(named) > 1:
        (one, first), (other, second) = list(named.items())[:-3:-1]
        raise ComparisonError(
            f"the runs are of different data sets: {first.folder} of {one}, {second.folder} of {other}; compare those "
            "of one data set at a time"
        )
    folders = [(run, names) for run in runs if (names := run.config.get("class_names")) is not None]
    for run, names in folders[1:]:
        first, others = folders[0]
        if names != others:
            raise ComparisonError(
                f"the runs are of different classes: {first.folder} of {text(others, 200)}, {run.folder} of "
                f"{text(names, 200)}; compare those of one data set at a time"
            )
    return next(iter(named), None)


def _together(tested: Sequence[tuple[Run, pd.Series]]) -> pd.Series:
    """Return the labels of all examples of all runs; raise where one number is that of different images."""
    first_run, together = tested[0]
    for run, mine in tested[1:]:
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


def _same_examples(tested: Sequence[tuple[Run, pd.Series]]) -> pd.Series:
    """Return the labels of the run with the most examples; raise where another run has others."""
    largest, whole = max(tested, key=lambda each: len(each[1]))
    for run, mine in tested:
        common = int(mine.index.isin(whole.index).sum())
        if mine.index.equals(whole.index) or (run.complete is False and common == len(mine)):
            continue
        raise ComparisonError(
            f"the runs were tested on different examples: {largest.folder} on {len(whole)}, {run.folder} on "
            f"{len(mine)}, {common} of them the same; add --intersect to compare on the examples that every run has, "
            f"or evaluate all alike (robustlit evaluate RUN data.test_size={min(len(m) for _, m in tested)})"
        )
    return whole
