"""Where a run's network comes from (recipe, method, the run that trained it), and the command that attacks it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlit.comparison.runs import LONGEST_COMMAND, Run, section, text
from robustlit.results.files import read_json
from robustlit.results.text import repeatable

# Of the recipe that `robustlit evaluate --model` stores, these settings are about the network; the others are defaults.
_OF_AN_EVALUATION = ("data", "sweep", "eps", "norm", "seed", "ckpt_path", "verdict")
_ABOVE = 3  # folders in which a relative path of a training run is looked for
_EVALUATES = re.compile(r"([^\s=]+ ){1,3}evaluate\b")  # robustlit evaluate ..., python -m robustlit evaluate ...
_JUDGES = re.compile(r"\s--(verdict|strict)\b")
_NOT_STORED = "the folder does not say how it was evaluated, so the numbers may differ from those here"


@dataclass(frozen=True)
class Origin:
    """Where a network comes from; None where the folder does not say."""

    recipe: str | None  # of its training
    method: str | None  # the training objective, and the defense
    net: str | None  # the network, or the one inside a defense
    trained: str | None = None  # for an evaluation, name of the run that trained the network
    seconds: object = None  # for an evaluation, seconds of that training
    base: str | None = None  # for a defense, name of the run that the defended network was taken from


def origin(run: Run) -> Origin:
    """Return what config.yaml and results.json say about a run's network."""
    config = run.config
    if is_own_net(config):
        return Origin(None, "own net", text(config["ckpt_path"]))
    recipe = text(run.results["recipe"]) if "recipe" in run.results else None
    base = _run_name(config["base"]) if isinstance(config.get("base"), str) else None
    return Origin(recipe, _method(config, base), _net(section(config, "model")), *_training(run), base)


def is_own_net(config: Mapping[str, Any]) -> bool:
    """Whether the run evaluated a network of the user's (`robustlit evaluate --model module:function`)."""
    place = config.get("ckpt_path")
    return config.get("recipe") == "evaluate" and isinstance(place, str) and ":" in place


def of_the_net(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings that apply to the network: for a user's own one only those of its evaluation."""
    return {k: v for k, v in config.items() if k in _OF_AN_EVALUATION} if is_own_net(config) else config


def _training(run: Run) -> tuple[str | None, object]:
    """Return name and training seconds of the run that an evaluation attacked, None where it is not found."""
    given = run.config.get("ckpt_path")
    if not isinstance(given, str) or "train" in section(run.results, "seconds"):
        return None, None
    # The path may be relative to the folder in which the evaluation was started.
    for above in [*run.folder.resolve().parents[:_ABOVE], Path.cwd()]:
        try:
            folder = above / run_folder(given)
            results = read_json(folder / "results.json")
            same = all(results[key] == run.results[key] for key in ("recipe", "data", "parameters"))
            if same and folder.resolve() != run.folder.resolve():
                return text(str(results["name"])), results["seconds"]["train"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # no path, or another folder of that name
    return None, None


def run_folder(checkpoint: str) -> Path:
    """Return the run folder of runs/NAME/checkpoints/best.ckpt or runs/NAME."""
    path = Path(checkpoint)
    return path.parent.parent if path.suffix == ".ckpt" else path


def _run_name(checkpoint: str) -> str:
    path = Path(checkpoint)
    return text(run_folder(checkpoint).name if path.parent.name == "checkpoints" else path.name)


def _method(config: Mapping[str, Any], base: str | None) -> str | None:
    objective, defense = section(config, "objective"), _target(section(config, "defense"))
    trained, attack = _target(objective), _target(section(objective, "attack"))
    if trained and attack:
        trained = f"{trained} ({attack})"
    if defense and base:
        return f"{defense} on {base}"
    return " + ".join(part for part in (trained, defense) if part) or None


def _net(model: Mapping[Any, Any]) -> str | None:
    if defended := section(model, "net"):
        return _net(defended)
    target, name = _target(model), model.get("name")
    return f"{target} {text(name)}" if target and isinstance(name, str) else target


def _target(settings: Mapping[Any, Any]) -> str | None:
    target = settings.get("_target_")
    return None if target is None else text(str(target).rsplit(".", 1)[-1])


@dataclass(frozen=True)
class Again:
    """How to attack and judge a network again."""

    command: str | None  # None is printed as `robustlit evaluate CHECKPOINT --verdict`
    note: str = ""  # why its numbers may differ from the run's

    def __str__(self) -> str:
        command = self.command or "robustlit evaluate CHECKPOINT --verdict"
        return f"{command} ({self.note})" if self.note else command


def again(run: Run) -> Again:
    """Return the command that repeats a run's evaluation with a verdict.

    A training run is evaluated by the recipe in its checkpoint, an evaluation by the command line that it stored, in a
    new folder.
    """
    if (run.folder / "checkpoints").is_dir():
        return Again(_of(str(run.folder)))
    if command := _quoted(run.command):
        judged = "" if _JUDGES.search(command) else " --verdict"
        return Again(text(command + judged, LONGEST_COMMAND))
    attacked = run.config.get("ckpt_path")
    if not isinstance(attacked, str) or not attacked:  # evaluated from Python
        return Again(None)
    return Again(_of(*["--model"] * is_own_net(run.config), attacked), _NOT_STORED)


def _quoted(command: str) -> str:
    """Return a stored command line that evaluates, quoted anew so that a shell runs nothing else; "" for any other."""
    return repeatable(command) if _EVALUATES.match(command) else ""


def _of(*checkpoint: str) -> str:
    return text(shlex.join(["robustlit", "evaluate", *checkpoint, "--verdict"]), LONGEST_COMMAND)
