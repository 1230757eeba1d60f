"""The cost of robustness: accuracy in the worst case against training time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlit.checks import budget_text
from robustlit.figures.names import names_in_full, short_names
from robustlit.figures.panel import NORMS, Look, finish, name_beside, panel_axes, spread, tie, worst_case_note
from robustlit.results.evaluation import Evaluation, EvaluationError
from robustlit.results.files import read_json, read_yaml
from robustlit.results.intervals import Accuracy
from robustlit.results.table import TABLE, rename

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TrainedRun:
    """The cost of a run, from its results.json, and its accuracies, from its table where there is one."""

    name: str
    seconds: float  # of training
    accuracy: Accuracy  # in the worst case
    clean: Accuracy
    norm: str  # the budget of the worst case
    eps: float  # in pixel units
    rests_on: tuple[str, ...] = ()  # the attacks that the worst case is taken over; empty if they are not known
    device: str = ""  # the hardware

    @classmethod
    def read(cls, run: str | Path) -> TrainedRun:
        """Read a run folder; an evaluation run takes its training time from the run that it attacked.

        Raises:
            EvaluationError: There is no results.json, no worst case in it, or no training time.
        """
        run = Path(run)
        results = _read(run)
        try:
            return cls._of(run, results)
        except (AttributeError, ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{run}/results.json is damaged, or of another version: {error!r}") from error

    @classmethod
    def _of(cls, run: Path, results: dict[str, Any]) -> TrainedRun:
        worst = results.get("worst_case")
        if worst is None:
            raise EvaluationError(f"{run}/results.json has no worst case: nothing was attacked at the recipe's eps")
        trained = results if "train" in results["seconds"] else _trained(run)
        if trained is None:
            raise EvaluationError(f"{run} was not trained, and the run that it attacked is not beside it")
        norm, eps = str(worst["norm"]), float(worst["eps"])
        if (run / TABLE).is_file() or (run / "evaluation" / TABLE).is_file():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # who opens the table itself gets its warnings
                table = Evaluation.load(run)
            accuracy, clean = table.worst_case(norm=norm, eps=eps), table.clean_accuracy
            attacks = tuple(table.rests_on(norm=norm, eps=eps))
        else:
            n = results["n"]
            accuracy, clean = (Accuracy(round(found["accuracy"] * n), n) for found in (worst, results["clean"]))
            attacks = tuple(map(rename, worst.get("rests_on", results.get("attacks", ()))))
        name, seconds, device = run.resolve().name, float(trained["seconds"]["train"]), trained.get("device", "")
        return cls(name, seconds, accuracy, clean, norm, eps, attacks, device)


def _read(run: Path) -> dict[str, Any]:
    try:
        found = read_json(run / "results.json")
        found["n"], found["seconds"], found["clean"]["accuracy"]
    except FileNotFoundError:
        raise EvaluationError(f"there is no results.json in {run}; give a run folder (runs/NAME)") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(f"cannot read {run}/results.json: {error!r}") from error
    return dict(found)


def _trained(run: Path) -> dict[str, Any] | None:
    """Return the results of the training run whose checkpoint an evaluation run attacked, or None."""
    if not (run / "config.yaml").is_file():
        return None
    try:
        config = read_yaml(run / "config.yaml")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read {run}/config.yaml: {error}") from error
    given = config.get("ckpt_path") if isinstance(config, dict) else None
    if not given or not isinstance(given, str):
        return None
    names = (Path(given), *list(Path(given).parents)[:2])  # a run folder, or a checkpoint in its checkpoints/
    for folder in (*names, *(run.resolve().parent / p.name for p in names if p.name)):
        if (folder / "results.json").is_file() and "train" in (found := _read(folder))["seconds"]:
            return found
    return None


def training_time_figure(runs: Sequence[TrainedRun]) -> Figure:
    """Draw robust accuracy against training time: a named point a run, with its Wilson 95 % interval; hollow is clean.

    Raises:
        EvaluationError: There is no run, or worst cases are at different budgets.
    """
    if not runs:
        raise EvaluationError("a figure of training times needs at least one run")
    if len({(run.norm, run.eps) for run in runs}) > 1:
        each = ", ".join(f"{run.name} at {run.norm} {budget_text(run.eps)}" for run in runs)
        raise EvaluationError(f"worst cases at different budgets are not to be compared: {each}")
    short = short_names(run.name for run in runs)
    runs = [replace(run, name=short[run.name]) for run in runs]
    figure, axes, _ = panel_axes(len(runs))
    longest, shortest = max(run.seconds for run in runs), min(run.seconds for run in runs)
    unit, factor = next(((u, f) for u, f in (("h", 3600.0), ("min", 60.0)) if longest > 3 * f), ("s", 1.0))
    places = spread([100 * float(run.accuracy) for run in runs], 5.0)
    for number, (run, place) in enumerate(zip(runs, places, strict=True)):
        x, y = run.seconds / factor, 100 * float(run.accuracy)
        low, high = (100 * bound for bound in run.accuracy.interval)
        look = Look.number(number)
        marker = look.marker or "o"
        axes.errorbar(x, y, [[y - low], [high - y]], fmt=marker, color=look.colour, markersize=6, capsize=3)
        axes.plot(x, 100 * float(run.clean), marker, markersize=5, color=look.colour, fillstyle="none")
        tie(axes, (x, y), (1.02, place), look.colour)
        name_beside(axes, (1.03, place), f"{run.name}  {100 * run.accuracy:.1f} %")
    if 0 < 8 * shortest < longest:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, 1.08 * longest / factor or 1.0)
    axes.set(xlabel=f"training time ({unit})", ylabel="accuracy (%)", ylim=(-3, 103))
    n = " to ".join(str(n) for n in sorted({bound(run.accuracy.n for run in runs) for bound in (min, max)}))
    title = f"Worst case at {NORMS[runs[0].norm]} {budget_text(runs[0].eps)} against training time, n = {n}"
    devices = {run.device for run in runs}
    alone = f"Trained on {runs[0].device or 'unknown hardware'}."
    notes = [
        "Filled: worst case, Wilson 95 %. Hollow: clean.",
        worst_case_note({run.name: ", ".join(run.rests_on) for run in runs}, "points"),
        alone if len(devices) == 1 else "Trained on different hardware: times are not to be compared.",
        *names_in_full(short),
    ]
    finish(figure, axes, title, notes)
    return figure
