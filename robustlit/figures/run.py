"""Every figure of one run's table: what training writes and `robustlit figures` draws again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustlit.figures.curves import curves_csv, curves_figure, distance_grid, save_figure
from robustlit.figures.sandwich import has_sandwich, sandwich_figure
from robustlit.figures.several import knowledge_figure
from robustlit.figures.verdict import verdict_figure
from robustlit.files import write_file
from robustlit.results.evaluation import Evaluation
from robustlit.results.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_figures(
    evaluation: Evaluation, distances: Sequence[str] = ("l2", "linf"), *, verdict: Verdict | None = None,
    undefended: Evaluation | None = None, attack: str | None = None, style: str = "curve", name: str = "",
) -> Iterator[tuple[str, Figure]]:  # fmt: skip
    """Draw one model under many attacks, and each attack that ran with several kinds of knowledge by what was known.

    Args:
        distances: Any of "l0", "l1", "l2", "linf".
        verdict, style, name: As in `curves_figure`.
        undefended: The same attacks on the net without its defense, drawn with each of them.
        attack: Draw only this attack.

    Yields:
        The stem of the figure's file, and the figure.
    """
    if attack is not None:
        names = [attack]
    elif undefended is not None:
        names = [a for a in evaluation.attacks if a in undefended.attacks]
    else:
        names = [a for a in evaluation.attacks if len([known for other, known in evaluation.runs if other == a]) > 1]
    for distance in distances:
        if attack is None:
            yield f"curves_{distance}", curves_figure(evaluation, distance, style=style, name=name, verdict=verdict)
            if style != "report" and has_sandwich(evaluation, distance):
                yield f"sandwich_{distance}", sandwich_figure(evaluation, distance, name=name, verdict=verdict)
        for each in names:
            figure = knowledge_figure(
                evaluation, each, distance, undefended=undefended, style=style, name=name, verdict=verdict
            )
            yield f"knowledge_{file_name(each)}_{distance}", figure


def draw_run(
    evaluation: Evaluation, folder: Path, distances: Sequence[str], *, verdict: Verdict | None = None
) -> list[Path]:
    """Write `run_figures`, named after the run, into an evaluation folder, which is created; return the files."""
    figures = run_figures(evaluation, distances, verdict=verdict, name=run_name(folder))
    return [file for stem, figure in figures for file in save_figure(figure, folder / stem)]


def write_evaluation(evaluation: Evaluation, folder: Path, ends: Mapping[str, float]) -> None:
    """Write the table, the curves as CSV and the figures; `ends` maps distances to the largest of each curve."""
    evaluation.save(folder)
    for distance, end in ends.items():
        curves = curves_csv(evaluation, distance, distance_grid(end))
        write_file(folder / f"curves_{distance}.csv", curves.to_csv(index=False))
    draw_run(evaluation, folder, list(ends))


def write_verdict(verdict: Verdict, folder: Path, n: int) -> None:
    """Write verdict.json and its figure; `n` is the number of evaluated images."""
    verdict.save(folder)
    save_figure(verdict_figure(verdict, name=run_name(folder), n=n), folder / "verdict")


def run_name(folder: str | Path) -> str:
    """Return the name of the run of a run folder, or of the evaluation/ in it."""
    return os.path.basename(os.path.realpath(run_folder(Path(folder))))


def run_folder(path: Path) -> Path:
    """Return the run folder of a run folder, or of the evaluation/ in it."""
    real = Path(os.path.realpath(path))  # `resolve` raises for a link to itself
    return real.parent if real.name == "evaluation" else path


def file_name(attack: str) -> str:
    """Return an attack's name, which a recipe may choose freely, as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in attack)
