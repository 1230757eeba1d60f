"""`robustlit figures`: draws every figure of one run, or of several side by side, from their tables alone."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustlit.results import Evaluation, Verdict

_OF_NO_STYLE = ("training_time", "verdict")
_UNDEFENDED = "the undefended net"


def figures(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        EvaluationError: a folder without an evaluation, different test images in one figure, an attack that was not
            run, an unknown style, only the undefended run.
        ValueError: a damaged verdict.json.
    """
    given = _parser().parse_args(list(arguments))
    from robustlit.figures import check_same_examples, on_common_examples, save_figure
    from robustlit.figures.knob import check_style
    from robustlit.results import Evaluation, EvaluationError
    from robustlit.results.evaluation import DISTANCES

    check_style(given.style)
    for distance in given.distance:
        if distance not in DISTANCES:
            raise EvaluationError(f"there is no distance {distance!r}; there are {', '.join(DISTANCES)}")
    # After -m a file lies among the runs, so that runs/* has it.
    paths = _named([run for run in given.runs if run.name != "multirun.yaml"])
    if given.undefended is not None:  # runs/* has that, too: it is drawn once
        without = _run_folder(given.undefended).resolve()
        paths = {name: path for name, path in paths.items() if path.resolve() != without}
        if not paths:
            raise EvaluationError(f"--undefended {given.undefended} goes beside another run; name that, too")
    with _said():
        evaluations = {name: Evaluation.load(path) for name, path in paths.items()}
        undefended = None if given.undefended is None else Evaluation.load(given.undefended)
    verdicts = _verdicts(paths, evaluations)
    together = evaluations | ({} if undefended is None else {_UNDEFENDED: undefended})
    if given.intersect:
        before = {e.n for e in together.values()}
        together = on_common_examples(together)
        n = next(iter(together.values())).n
        if before != {n}:
            print(f"drawn on the {n} test images that all have in common", file=sys.stderr)
        undefended = together.get(_UNDEFENDED)
        evaluations = {name: together[name] for name in evaluations}
    else:
        check_same_examples(together)
    if given.attack is not None:
        for name, evaluation in evaluations.items():
            if given.attack not in evaluation.attacks:
                there = ", ".join(evaluation.attacks)
                raise EvaluationError(f"{name}: no attack named {given.attack!r} was run; there are {there}")
    if len(evaluations) == 1:
        name, evaluation = next(iter(evaluations.items()))
        drawn = _of_one(name, evaluation, verdicts.get(name), undefended, given)
        folder = given.out or _evaluation_folder(paths[name])
    else:
        drawn = _of_several(evaluations, paths, verdicts, undefended, given)
        folder = given.out or Path("figures")
    ending = "_report" if given.style == "report" else ""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, figure in drawn:
        for file in save_figure(figure, folder / (stem if stem in _OF_NO_STYLE else f"{stem}{ending}")):
            print(file)
    return 0


def _verdicts(paths: dict[str, Path], evaluations: dict[str, Evaluation]) -> dict[str, Verdict]:
    """The verdicts on these very tables; of any other, or of one that nothing ties to its table, a line is said."""
    from robustlit.results.stored_verdict import stored_verdict

    verdicts: dict[str, Verdict] = {}
    for name, path in paths.items():
        found, told = stored_verdict(path, evaluations[name])
        if found is not None:
            verdicts[name] = found
        if told:
            what = "nothing ties it to these figures" if found is not None else "it is not shown"
            print(f"{name}: verdict.json {told}; {what}. Judge it again: {_to_judge(path)}", file=sys.stderr)
    return verdicts


def _to_judge(path: Path) -> str:
    """The command that gives a run its verdict."""
    from robustlit.comparison.again import Again, again
    from robustlit.comparison.runs import ComparisonError, read_run

    try:
        return again(read_run(path)).said
    except ComparisonError:  # of files that no figure needs
        return Again(None).said


@contextmanager
def _said() -> Iterator[None]:
    """Warnings as lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustlit figures", description="Draws figures of runs again, without attacking them again."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders (runs/NAME) that were evaluated")
    parser.add_argument("--out", type=Path, help="folder; one run's own evaluation/, else figures/")
    parser.add_argument("--style", default="curve", help="curve, or report: the 2019 report's axes")
    parser.add_argument("--attack", help="this attack alone (several runs: else the worst case and each that all ran)")
    parser.add_argument("--distance", nargs="+", default=["l2", "linf"], help="any of l2, linf, l1, l0")
    parser.add_argument("--undefended", type=Path, metavar="RUN", help="the net without the defense, drawn beside")
    parser.add_argument("--intersect", action="store_true", help="on the test images that all runs share")
    return parser


def _of_one(
    name: str,
    evaluation: Evaluation,
    verdict: Verdict | None,
    undefended: Evaluation | None,
    given: argparse.Namespace,
) -> Iterator[tuple[str, Figure]]:
    """The verdict, one model under many attacks, and each attack by what the attacker knew."""
    from robustlit.figures import run_figures, verdict_figure

    if verdict is not None and given.attack is None:
        yield "verdict", verdict_figure(verdict, name=name, n=evaluation.n)
    yield from run_figures(
        evaluation, given.distance, verdict=verdict, undefended=undefended, attack=given.attack, style=given.style,
        name=name,
    )  # fmt: skip


def _of_several(
    evaluations: dict[str, Evaluation],
    paths: dict[str, Path],
    verdicts: dict[str, Verdict],
    undefended: Evaluation | None,
    given: argparse.Namespace,
) -> Iterator[tuple[str, Figure]]:
    """Many models under the worst case and under each attack that all have in common; their training times."""
    from robustlit.figures import file_name, models_figure
    from robustlit.results import EvaluationError

    runs = [set(e.runs) for e in evaluations.values()]
    shared = [run for run in next(iter(evaluations.values())).runs if all(run in other for other in runs)]
    attacks = [attack for attack, known in shared if known == "adaptive" and given.attack in (None, attack)]
    if given.attack is not None and not attacks:
        raise EvaluationError(f"{given.attack} was not run adaptively on every one of {', '.join(evaluations)}")
    met = [attack for attack, known in undefended.runs if known == "adaptive"] if undefended is not None else []
    if missed := [attack for attack in attacks if undefended is not None and attack not in met]:
        print(f"{_UNDEFENDED} is not in the figures of {', '.join(missed)}, which it did not meet", file=sys.stderr)
    for distance in given.distance:
        wanted: list[str | None] = [*attacks]
        adaptive = all(any(known == "adaptive" for _, known in e.runs) for e in evaluations.values())
        if given.attack is None and given.style != "report" and adaptive:
            wanted.insert(0, None)
        for attack in wanted:
            beside = undefended if attack in met or (attack is None and met) else None
            figure = models_figure(
                evaluations, distance, attack=attack, style=given.style, verdicts=verdicts, undefended=beside
            )
            yield f"models_{file_name(attack or 'worst_case')}_{distance}", figure
    if given.attack is None:
        yield from _of_training_times(paths, given)


def _of_training_times(paths: dict[str, Path], given: argparse.Namespace) -> Iterator[tuple[str, Figure]]:
    """What robustness costs, of the runs whose results say it."""
    from robustlit.figures import TrainedRun, training_time_figure
    from robustlit.results import EvaluationError

    places = dict(paths)
    if given.undefended is not None:
        places["undefended" if "undefended" not in paths else _UNDEFENDED] = _run_folder(given.undefended)
    trained: list[TrainedRun] = []
    for name, path in places.items():
        try:
            found = TrainedRun.read(path)
        except EvaluationError as error:
            print(f"not in the figure of training times: {name}: {error}", file=sys.stderr)
        else:
            trained.append(found if name in paths else replace(found, name=name))
    if len(trained) > 1:
        try:
            figure = training_time_figure(trained)
        except EvaluationError as error:
            print(f"no figure of training times: {error}", file=sys.stderr)
        else:
            yield "training_time", figure


def _evaluation_folder(run: Path) -> Path:
    return run / "evaluation" if (run / "evaluation").is_dir() else run


def _run_folder(path: Path) -> Path:
    return path.resolve().parent if path.resolve().name == "evaluation" else path


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by their folders' names; by the paths as given where two folders have one name."""
    folders = [_run_folder(path) for path in runs]
    names = [folder.resolve().name for folder in folders]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, runs, strict=True)]
    return dict(zip(labels, folders, strict=True))
