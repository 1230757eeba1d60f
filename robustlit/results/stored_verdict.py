"""Keep a verdict with the table that it judged, and never show it with another."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from robustlit.results.table import EvaluationError
from robustlit.results.verdict import FILE, Verdict, place_of, table_in

if TYPE_CHECKING:
    from robustlit.results.evaluation import Evaluation

_EARLIER = "verdict_of_an_earlier_table"
_KINDS = (".json", ".png", ".svg")  # the verdict, and its figure


def stored_verdict(folder: str | Path, evaluation: Evaluation) -> tuple[Verdict | None, str]:
    """Read the verdict in a folder, if it judged this evaluation.

    Args:
        folder, evaluation: The evaluation's folder or the run folder above it, and the evaluation read from there.

    Returns:
        The verdict, or None; and a note that continues "the verdict.json of RUN", empty where there is none.

    Raises:
        ValueError: The verdict is damaged, edited or of another version.
    """
    place = place_of(folder)
    if place is None:
        return None, ""
    verdict = Verdict.read(place)
    judged = verdict.is_of(evaluation)
    if judged is None:
        return verdict, "does not say which table it judged, as it is of an older version"
    whole = evaluation.whole or evaluation
    if not judged:
        return None, verdict.other_table(whole.n)
    with suppress(EvaluationError):  # of a budget that was not attacked
        of_table = verdict.of(whole)
        if verdict.robust not in (None, of_table.robust):
            found = f"{verdict.robust} examples are robust in it, {of_table.robust} in the table that it judged"
            raise ValueError(f"{place} was damaged or edited: {found}; judge the checkpoint again")
        verdict = of_table
    return verdict, ""


def notes_beside(evaluation: Evaluation, verdict: Verdict | None, name: str = "") -> list[str]:
    """Return the notes of a figure that shows a verdict beside the evaluation of the model `name`.

    One sentence where only some of the judged examples are drawn, else nothing.

    Raises:
        EvaluationError: The verdict judged another table.
    """
    if verdict is None:
        return []
    if verdict.is_of(evaluation) is False:
        model, other = f"{name}: " if name else "", verdict.other_table((evaluation.whole or evaluation).n)
        raise EvaluationError(f"{model}the verdict {other}; give the verdict on this evaluation, or None")
    if evaluation.whole is None:
        return []
    return [f"The verdict{f' on {name}' if name else ''} is on all {evaluation.whole.n} examples."]


def set_aside(folder: Path, evaluation: Evaluation) -> None:
    """Rename the verdict in `folder`, and its figure, if it judged another table than `evaluation`'s.

    A verdict of an older version, which does not name its table, stays unless the table in the folder changes.
    """
    if not (folder / FILE).is_file():
        return
    judged = None
    with suppress(ValueError):
        judged = Verdict.read(folder / FILE).is_of(evaluation)
    if judged is None:
        beside = table_in(folder)
        judged = beside is None or beside[0] == evaluation.digest
    if judged:
        return
    names = (_EARLIER if number == 1 else f"{_EARLIER}-{number}" for number in count(1))
    name = next(name for name in names if not any((folder / f"{name}{kind}").exists() for kind in _KINDS))
    for kind in _KINDS:
        if (file := folder / f"verdict{kind}").is_file():
            file.rename(folder / f"{name}{kind}")
