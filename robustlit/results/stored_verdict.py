"""A verdict belongs to the table that it judged: that of another one is never taken for this one's."""

from __future__ import annotations

import warnings
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from robustlit.results.digest import digest
from robustlit.results.table import TABLE, EvaluationError, read_table
from robustlit.results.verdict import FILE, Verdict, place_of

if TYPE_CHECKING:
    from robustlit.results.evaluation import Evaluation

_EARLIER = "verdict_of_an_earlier_table"
_DRAWN = (".json", ".png", ".svg")  # the verdict, and its figure


def stored_verdict(folder: str | Path, evaluation: Evaluation) -> tuple[Verdict | None, str]:
    """The verdict that lies in a folder, if it is on this evaluation.

    Args:
        folder: of the evaluation, or the run folder above it.
        evaluation: that lies there.

    Returns:
        The verdict, None where there is none or where it judged another table; and what a reader must be told of
        that: what follows on "the verdict.json of RUN", empty where all is well.

    Raises:
        ValueError: it is damaged or of another version.
    """
    place = place_of(folder)
    if place is None:
        return None, ""
    found = Verdict.read(place)
    tied = found.is_of(evaluation)
    if tied is None:
        return found, "does not say which table it judged, as it is of an older version"
    return (found, "") if tied else (None, another_table(found, evaluation))


def another_table(verdict: Verdict, evaluation: Evaluation) -> str:
    """In words, that a verdict judged another table than this evaluation's."""
    n = (evaluation.whole or evaluation).n
    if verdict.evaluated in (None, n):
        return "judged another table than the one here (of as many examples, with other results)"
    return f"judged another table than the one here (of {verdict.evaluated} examples; here are {n})"


def notes_beside(evaluation: Evaluation, verdict: Verdict | None, name: str = "") -> list[str]:
    """What a figure must say of the verdict that it shows; it is refused where it judged another evaluation.

    Args:
        evaluation: what is drawn.
        verdict: what is to stand beside it, if anything.
        name: of the model.

    Returns:
        A sentence where the evaluation was cut down to fewer examples than were judged.

    Raises:
        EvaluationError: the verdict judged another table.
    """
    if verdict is None:
        return []
    if verdict.is_of(evaluation) is False:
        raise EvaluationError(
            f"{f'{name}: ' if name else ''}the verdict {another_table(verdict, evaluation)}; give the verdict on this "
            "evaluation, or None"
        )
    if evaluation.whole is None:
        return []
    return [f"The verdict{f' on {name}' if name else ''} is on all {evaluation.whole.n} examples."]


def warn_of_another_table(verdict: Verdict, file: Path) -> None:
    """Warns where the table beside a verdict's file is not the one that it judged."""
    if verdict.table is None or not (file.parent / TABLE).is_file():
        return
    from robustlit.results.evaluation import Evaluation

    try:
        beside = Evaluation.load(file.parent)
    except EvaluationError:  # who reads the table will be told
        return
    if verdict.is_of(beside) is False:
        warnings.warn(
            f"{file} {another_table(verdict, beside)}; judge the checkpoint again (robustlit evaluate CHECKPOINT "
            "--verdict)",
            stacklevel=3,
        )


def set_aside(folder: Path, evaluation: Evaluation) -> None:
    """Renames a verdict, with its figure, that would come to lie beside a table which it did not judge.

    An older one, which does not say what it judged, stays unless it lay beside another table until now.

    Args:
        folder: where the evaluation is about to be written.
        evaluation: what is about to be written.
    """
    if not (folder / FILE).is_file():
        return
    try:
        tied = Verdict.read(folder / FILE).is_of(evaluation)
    except ValueError:
        tied = None
    if tied or (tied is None and _digest_in(folder) in (None, evaluation.digest)):
        return
    names = (_EARLIER if number == 1 else f"{_EARLIER}-{number}" for number in count(1))
    name = next(name for name in names if not any((folder / f"{name}{kind}").exists() for kind in _DRAWN))
    for kind in _DRAWN:
        if (file := folder / f"verdict{kind}").is_file():
            file.rename(folder / f"{name}{kind}")


def _digest_in(folder: Path) -> str | None:
    """Of the table that lies in a folder; None where there is none, or none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return digest(read_table(folder)[0])
    except EvaluationError:
        return None
