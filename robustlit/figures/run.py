"""Every figure that one run's table gives: what a training run writes, and what `robustlit figures` draws again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustlit.figures.curves import curves_figure, save_figure
from robustlit.figures.several import knowledge_figure
from robustlit.results.evaluation import Evaluation
from robustlit.results.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_figures(
    evaluation: Evaluation,
    distances: Sequence[str] = ("l2", "linf"),
    *,
    verdict: Verdict | None = None,
    undefended: Evaluation | None = None,
    attack: str | None = None,
    style: str = "curve",
    name: str = "",
) -> Iterator[tuple[str, Figure]]:
    """One model under many attacks; where there were several kinds of knowledge, each attack by what was known.

    Args:
        evaluation: of the model.
        distances: any of l0, l1, l2, linf.
        verdict: on the evaluation, for a line below the titles.
        undefended: the same attacks on the net without its defense, drawn beside.
        attack: this attack alone.
        style: "curve", or "report" for the 2019 report's axes.
        name: of the run, for the titles.

    Yields:
        The stem of the figure's file, and the figure.

    Raises:
        EvaluationError: an attack that was not run, an unknown style or distance, other examples in `undefended`, a
            verdict on another table.
    """
    names = evaluation.attacks if undefended is None else [a for a in evaluation.attacks if a in undefended.attacks]
    if undefended is None:
        names = [a for a in names if len([known for other, known in evaluation.runs if other == a]) > 1]
    for distance in distances:
        if attack is None:
            yield f"curves_{distance}", curves_figure(evaluation, distance, style=style, name=name, verdict=verdict)
        for each in names if attack is None else [attack]:
            figure = knowledge_figure(
                evaluation, each, distance, undefended=undefended, style=style, name=name, verdict=verdict
            )
            yield f"knowledge_{file_name(each)}_{distance}", figure


def draw_run(
    evaluation: Evaluation, folder: Path, distances: Sequence[str], *, verdict: Verdict | None = None
) -> list[Path]:
    """Writes `run_figures` into an evaluation folder, which is made, named after the run; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = run_figures(evaluation, distances, verdict=verdict, name=run_name(folder))
    return [file for stem, figure in figures for file in save_figure(figure, folder / stem)]


def run_name(folder: str | Path) -> str:
    """The name of the run that a run folder, or its evaluation/, is of."""
    folder = Path(folder).resolve()
    return folder.parent.name if folder.name == "evaluation" else folder.name


def file_name(attack: str) -> str:
    """An attack's name, which a recipe may choose freely, as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in attack)
