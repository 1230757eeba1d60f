"""What robustness costs: accuracy in the worst case against the time that training took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlit.figures.panel import NORMS, Look, by_attacks, finish, spread
from robustlit.results.evaluation import EvaluationError
from robustlit.results.intervals import Accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TrainedRun:
    """What a run's results.json says of its cost and its worst case.

    Args:
        name: of the run.
        seconds: of training.
        accuracy: in the worst case.
        clean: accuracy without an attack.
        norm, eps: the budget of the worst case, in pixel units.
        rests_on: the attacks that the worst case is over; empty where the file does not say.
        device: the hardware, in words.
    """

    name: str
    seconds: float
    accuracy: Accuracy
    clean: Accuracy
    norm: str
    eps: float
    rests_on: tuple[str, ...] = ()
    device: str = ""

    @classmethod
    def read(cls, run: str | Path) -> TrainedRun:
        """Reads a run folder; the time of an evaluation run is that of the training run that it attacked.

        Raises:
            EvaluationError: no results.json, one without a worst case, or no training time to be found.
        """
        run = Path(run)
        results = _read(run)
        worst = results.get("worst_case")
        if worst is None:
            raise EvaluationError(f"{run}/results.json has no worst case: nothing was attacked at the recipe's eps")
        trained = results if "train" in results["seconds"] else _trained(run)
        if trained is None:
            raise EvaluationError(f"{run} was not trained, and the run that it attacked is not beside it")
        n = results["n"]
        return cls(
            name=run.resolve().name,
            seconds=float(trained["seconds"]["train"]),
            accuracy=Accuracy(round(worst["accuracy"] * n), n),
            clean=Accuracy(round(results["clean"]["accuracy"] * n), n),
            norm=worst["norm"],
            eps=float(worst["eps"]),
            rests_on=tuple(worst.get("rests_on", results.get("attacks", ()))),
            device=trained.get("device", ""),
        )


def _read(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "results.json").read_text())
        found["n"], found["seconds"], found["clean"]["accuracy"]
    except FileNotFoundError:
        raise EvaluationError(f"there is no results.json in {run}; give a run folder (runs/NAME)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"cannot read {run}/results.json: {error!r}") from error
    return dict(found)


def _trained(run: Path) -> dict[str, Any] | None:
    """The results of the training run whose checkpoint an evaluation run attacked."""
    from omegaconf import OmegaConf

    if not (run / "config.yaml").is_file():
        return None
    given = OmegaConf.select(OmegaConf.load(run / "config.yaml"), "ckpt_path")
    if not given:
        return None
    path = Path(given)
    names = (path, *list(path.parents)[:2])  # a run folder, or a checkpoint in its checkpoints/
    for folder in (*names, *(run.resolve().parent / p.name for p in names if p.name)):
        if (folder / "results.json").is_file() and "train" in (found := _read(folder))["seconds"]:
            return found
    return None


def training_time_figure(runs: Sequence[TrainedRun]) -> Figure:
    """Robust accuracy against training time: a point a run, named, with its Wilson 95 % interval; hollow is clean.

    Args:
        runs: see `TrainedRun.read`; all with the same budget.

    Raises:
        EvaluationError: no run, or worst cases at different budgets.
    """
    from matplotlib.figure import Figure

    if not runs:
        raise EvaluationError("a figure of training times needs at least one run")
    if len({(run.norm, run.eps) for run in runs}) > 1:
        each = ", ".join(f"{run.name} at {run.norm} {run.eps:g}" for run in runs)
        raise EvaluationError(f"worst cases at different budgets are not to be compared: {each}")
    height = max(4.4, 0.8 + 0.21 * len(runs))
    figure = Figure(figsize=(7.2, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    seconds = [run.seconds for run in runs]
    logarithmic = min(seconds) > 0 and max(seconds) > 8 * min(seconds)
    unit, factor = next(((u, f) for u, f in (("h", 3600.0), ("min", 60.0)) if max(seconds) > 3 * f), ("s", 1.0))
    for number, run in enumerate(runs):
        x, y = run.seconds / factor, 100 * float(run.accuracy)
        low, high = (100 * bound for bound in run.accuracy.interval)
        look = Look.number(number)
        marker = look.marker or "o"
        axes.errorbar(x, y, [[y - low], [high - y]], fmt=marker, color=look.colour, markersize=6, capsize=3)
        axes.plot(x, 100 * float(run.clean), marker, markersize=5, color=look.colour, fillstyle="none")
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, 1.08 * max(seconds) / factor or 1.0)
    axes.set(xlabel=f"training time ({unit})", ylabel="accuracy (%)", ylim=(-3, 103))
    _name_points(axes, runs, factor)
    sizes = sorted({run.accuracy.n for run in runs})
    first = runs[0]
    finish(
        figure,
        axes,
        f"Worst case at {NORMS[first.norm]} {first.eps:g} against training time, "
        f"n = {' to '.join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1])))}",
        _notes(runs),
    )
    return figure


def _name_points(axes: Any, runs: Sequence[TrainedRun], factor: float) -> None:
    """Names in a column beside the axes, each tied to its point, in the order of the points' heights."""
    from matplotlib.patches import ConnectionPatch

    places = spread([100 * float(run.accuracy) for run in runs], 5.0)
    beside = axes.get_yaxis_transform()
    for number, (run, place) in enumerate(zip(runs, places, strict=True)):
        colour = Look.number(number).colour
        point = (run.seconds / factor, 100 * float(run.accuracy))
        tie = ConnectionPatch(
            point, (1.02, place), axes.transData, beside, color=colour, alpha=0.7, linewidth=0.6, linestyle=(0, (1, 3))
        )  # fmt: skip
        tie.set_in_layout(False)
        tie.set_clip_on(False)
        axes.add_artist(tie)
        text = f"{run.name}  {100 * run.accuracy:.1f} %"
        axes.text(
            1.03, place, text, transform=beside, va="center", color="#222222", fontsize=9, parse_math=False
        )  # fmt: skip


def _notes(runs: Sequence[TrainedRun]) -> list[str]:
    notes = ["Filled: worst case, Wilson 95 %. Hollow: clean."]
    over = {", ".join(run.rests_on) for run in runs}
    if len(over) == 1:
        notes.append(f"Worst case over {over.pop()}.")
    else:
        each = by_attacks({run.name: ", ".join(run.rests_on) for run in runs})
        notes.append(f"The worst cases rest on different attacks, so that points differ by those too. {each}.")
    devices = {run.device for run in runs}
    if len(devices) == 1:
        notes.append(f"Trained on {devices.pop() or 'unknown hardware'}.")
    else:
        notes.append("Trained on different hardware: times are not to be compared.")
    return notes
