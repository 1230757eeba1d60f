"""The figures of run folders: all of one run, or several runs side by side."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from robustlit.figures.curves import save_figure
from robustlit.figures.lines import check_style
from robustlit.figures.run import file_name, run_figures, run_folder, run_name
from robustlit.figures.several import (
    UNDEFENDED,
    check_same_examples,
    labels_of,
    lost_classes,
    models_figure,
    on_common_examples,
)
from robustlit.figures.training_time import TrainedRun, training_time_figure
from robustlit.figures.verdict import verdict_figure
from robustlit.results.evaluation import Evaluation, EvaluationError
from robustlit.results.stored_verdict import stored_verdict
from robustlit.results.table import DISTANCES, rename
from robustlit.results.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = Iterator[tuple[str, "Figure"]]
Note = Callable[[str], None]
_WITHOUT_STYLE = ("training_time", "verdict")


@dataclass(frozen=True)
class Wanted:
    """What to draw."""

    distances: Sequence[str] = ("l2", "linf")  # any of "l0", "l1", "l2", "linf"
    style: str = "curve"  # or "report" for the axes of the 2019 report
    attack: str | None = None  # only this attack; None draws all, and the worst case of several runs
    undefended: Path | None = None  # run folder of the net without a defense, drawn with the others
    intersect: bool = False  # draw runs on different test images on those that all share
    out: Path | None = None  # folder for the figures; None is evaluation/ of a single run, figures/ of several


@dataclass
class _Runs:
    """Evaluated runs by name, on the same test images, and the net without a defense."""

    folders: dict[str, Path]
    evaluations: dict[str, Evaluation]
    verdicts: dict[str, Verdict]
    undefended: Evaluation | None


def draw_folders(runs: Sequence[Path], wanted: Wanted, *, note: Note, judge: Callable[[Path], str]) -> Iterator[Path]:
    """Draw the figures of run folders and yield their files.

    Args:
        runs: Run folders that were evaluated.
        note: Called with a line on what is left out or uncertain.
        judge: Returns the command that gives a run folder its verdict.

    Raises:
        EvaluationError: The runs cannot be drawn together, or do not hold what is wanted.
        ValueError: A damaged verdict.json.
    """
    check_style(wanted.style)
    for distance in wanted.distances:
        if distance not in DISTANCES:
            raise EvaluationError(f"there is no distance {distance!r}; there are {', '.join(DISTANCES)}")
    read = _read(_named(runs, wanted.undefended), wanted, note, judge)
    if wanted.attack is not None:
        wanted = replace(wanted, attack=_checked(wanted.attack, read.evaluations))
    if len(read.evaluations) == 1:
        (run,), figures = read.folders.values(), _of_one(read, wanted)
        folder = run / "evaluation" if (run / "evaluation").is_dir() else run
    else:
        folder, figures = Path("figures"), _of_several(read, wanted, note)
    if wanted.out is None:
        _check_links(folder)
    folder = wanted.out or folder
    for stem, figure in figures:
        report = wanted.style == "report" and stem not in _WITHOUT_STYLE
        yield from save_figure(figure, folder / (f"{stem}_report" if report else stem))


def _check_links(folder: Path) -> None:
    """Raise an EvaluationError for a folder with links, through which figures would be written elsewhere."""
    for place in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if place.is_symlink():
            raise EvaluationError(f"{place} is a link, and a figure would be written where it leads; give --out FOLDER")


def _named(runs: Sequence[Path], undefended: Path | None) -> dict[str, Path]:
    """Return run folders by name, or by path where two have one name, without the undefended run."""
    runs = [run for run in runs if run.name != "multirun.yaml"]  # Hydra leaves one in runs/
    folders = [run_folder(run) for run in runs]
    names = [run_name(folder) for folder in folders]
    labels = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
    named = dict(zip(labels, folders, strict=True))
    if undefended is not None:
        bare = os.path.realpath(run_folder(undefended))
        named = {name: folder for name, folder in named.items() if os.path.realpath(folder) != bare}
        if not named:
            raise EvaluationError(f"--undefended {undefended} is drawn beside other runs; name at least one")
    return named


def _read(folders: dict[str, Path], wanted: Wanted, note: Note, judge: Callable[[Path], str]) -> _Runs:
    evaluations: dict[str, Evaluation] = {}
    verdicts: dict[str, Verdict] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        undefended = None if wanted.undefended is None else Evaluation.load(wanted.undefended)
        for name, folder in folders.items():
            try:
                evaluation = Evaluation.load(folder)
                verdict, caveat = stored_verdict(folder, evaluation)
            except (EvaluationError, ValueError, OSError) as error:
                if len(folders) == 1:
                    raise
                note(f"left out {name}: {error}")  # `runs/*` may name what is no run, has no results or is damaged
                continue
            evaluations[name] = evaluation
            if verdict is not None:
                verdicts[name] = verdict
            if caveat:
                what = "it is not shown" if verdict is None else "nothing ties it to these figures"
                note(f"{name}: verdict.json {caveat}; {what}. Judge it again: {judge(folder)}")
    for warning in caught:
        note(f"warning: {warning.message}")
    if not evaluations:
        raise EvaluationError(
            f"none of these {len(folders)} folders can be drawn; give run folders that were evaluated"
        )
    folders = {name: folder for name, folder in folders.items() if name in evaluations}
    together = evaluations | ({} if undefended is None else {UNDEFENDED: undefended})
    if wanted.intersect:
        common = on_common_examples(together)
        if any(common[name].n < evaluation.n for name, evaluation in together.items()):
            note(f"drawn on the {next(iter(common.values())).n} test images that all have in common")
        before, after = (pd.concat([labels_of(e) for e in each.values()]) for each in (together, common))
        if lost := lost_classes(before, after, next(iter(together.values()))):
            note(lost)
        evaluations, undefended = {name: common[name] for name in folders}, common.get(UNDEFENDED)
    else:
        check_same_examples(together)
    return _Runs(folders, evaluations, verdicts, undefended)


def _checked(attack: str, evaluations: Mapping[str, Evaluation]) -> str:
    """Return the current name of an attack; raise an EvaluationError if a run lacks it."""
    if not any(attack in evaluation.attacks for evaluation in evaluations.values()):
        attack = rename(attack)
    for name, evaluation in evaluations.items():
        if attack not in evaluation.attacks:
            there = ", ".join(evaluation.attacks)
            raise EvaluationError(f"{name}: no attack named {attack!r} was run; there are {there}")
    return attack


def _of_one(runs: _Runs, wanted: Wanted) -> Figures:
    """Yield the verdict, the model under many attacks, and each attack by what the attacker knew."""
    ((name, evaluation),) = runs.evaluations.items()
    verdict = runs.verdicts.get(name)
    if verdict is not None and wanted.attack is None:
        yield "verdict", verdict_figure(verdict, name=name, n=evaluation.n)
    yield from run_figures(
        evaluation, wanted.distances, verdict=verdict, undefended=runs.undefended, attack=wanted.attack,
        style=wanted.style, name=name,
    )  # fmt: skip


def _of_several(runs: _Runs, wanted: Wanted, note: Note) -> Figures:
    """Yield the models under the worst case and under each attack that all have in common, and their training times."""
    each = [_adaptive(evaluation) for evaluation in runs.evaluations.values()]
    attacks = [a for a in each[0] if all(a in other for other in each) and wanted.attack in (None, a)]
    if wanted.attack is not None and not attacks:
        raise EvaluationError(f"{wanted.attack} was not run adaptively on every one of {', '.join(runs.evaluations)}")
    over_all = wanted.attack is None and wanted.style != "report" and all(each)
    bare = [] if runs.undefended is None else _adaptive(runs.undefended)
    if missed := [attack for attack in attacks if runs.undefended is not None and attack not in bare]:
        note(f"{UNDEFENDED} is not in the figures of {', '.join(missed)}: not run on it")
    for distance in wanted.distances:
        for attack in [*[None] * over_all, *attacks]:
            figure = models_figure(
                runs.evaluations, distance, attack=attack, style=wanted.style, verdicts=runs.verdicts,
                undefended=runs.undefended if (bare if attack is None else attack in bare) else None,
            )  # fmt: skip
            yield f"models_{_stem(attack)}_{distance}", figure
    if wanted.attack is None:
        yield from _training_times(runs.folders, wanted.undefended, note)


def _adaptive(evaluation: Evaluation) -> list[str]:
    return [attack for attack, knowledge in evaluation.runs if knowledge == "adaptive"]


def _stem(attack: str | None) -> str:
    """Return the part of a file's name for an attack, or for the worst case over all (None)."""
    if attack is None:
        return "worst_case"
    return "attack_worst_case" if attack == "worst_case" else file_name(attack)


def _training_times(folders: Mapping[str, Path], undefended: Path | None, note: Note) -> Figures:
    """Yield the cost of robustness of the runs with a results.json, if there are several."""
    places = dict(folders)
    if undefended is not None:
        places["undefended" if "undefended" not in folders else UNDEFENDED] = run_folder(undefended)
    trained: list[TrainedRun] = []
    for name, folder in places.items():
        try:
            found = TrainedRun.read(folder)
            trained.append(found if name in folders else replace(found, name=name))
        except EvaluationError as error:
            note(f"not in the figure of training times: {name}: {error}")
    if len(trained) > 1:
        try:
            yield "training_time", training_time_figure(trained)
        except EvaluationError as error:
            note(f"no figure of training times: {error}")
