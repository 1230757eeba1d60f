"""Where a run's net is from: by which recipe and method it was trained, and by which run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlit.comparison.runs import Run, text

# What the stored recipe of `robustlit evaluate --model` says of that net: nothing else in it is of the net.
_OF_AN_EVALUATION = ("data", "sweep", "eps", "norm", "seed", "ckpt_path", "verdict")
_ABOVE = 3  # folders in which a relative path of a training run is looked for


@dataclass(frozen=True)
class Origin:
    """What stands behind a run's net; None where the folder does not say.

    Args:
        recipe: by which it was trained.
        method: what training minimised, and the defense.
        net: the network, the one inside a defense.
        trained: of an evaluation, name of the run that trained it.
        seconds: of an evaluation, how long that training took.
        base: of a defense, name of the run that its net was taken from; its training is not in the run's seconds.
    """

    recipe: str | None
    method: str | None
    net: str | None
    trained: str | None = None
    seconds: object = None
    base: str | None = None


def origin(run: Run) -> Origin:
    """What a run's config.yaml and results.json say of its net, and the run that trained it where it is found."""
    config = run.config
    if is_own_net(config):
        return Origin(None, "own net", text(config["ckpt_path"]))
    recipe = text(run.results["recipe"]) if "recipe" in run.results else None
    base = config.get("base")
    base = _name_of(base) if isinstance(base, str) else None
    found = _training_run(run)
    name, seconds = (None, None) if found is None else found
    return Origin(recipe, _method(config, base), _net(config.get("model")), name, seconds, base)


def is_own_net(config: Mapping[str, Any]) -> bool:
    """Whether the run evaluates a net of a function of the user's (`robustlit evaluate --model module:function`)."""
    place = config.get("ckpt_path")
    return config.get("recipe") == "evaluate" and isinstance(place, str) and ":" in place


def of_the_net(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that have to do with the net: of an own net's, those of its evaluation."""
    return {k: v for k, v in config.items() if k in _OF_AN_EVALUATION} if is_own_net(config) else config


def attacked_run(run: Run) -> Path | None:
    """The folder of the run whose checkpoint an evaluation attacked, if it is there and is the one."""
    given = run.config.get("ckpt_path")
    seconds = run.results.get("seconds")
    if not isinstance(given, str) or (isinstance(seconds, Mapping) and "train" in seconds):
        return None
    for folder in _places(run.folder, given):
        try:
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            alike = all(results[key] == run.results[key] for key in ("recipe", "data", "parameters"))
            if alike and folder.resolve() != run.folder.resolve():
                return folder
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # another folder of that name
    return None


def _training_run(run: Run) -> tuple[str, object] | None:
    """Name and seconds of the run whose checkpoint an evaluation attacked."""
    folder = attacked_run(run)
    try:
        results = {} if folder is None else json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return text(str(results["name"])), results["seconds"]["train"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _places(folder: Path, given: str) -> Iterator[Path]:
    """Where the run of a checkpoint may lie: its path may be relative to where the evaluation was started."""
    try:
        path = Path(given)
        run = path.parent.parent if path.suffix == ".ckpt" else path
        for above in [*folder.resolve().parents[:_ABOVE], Path.cwd()]:
            yield above / run
    except (OSError, ValueError):  # no path at all
        return


def _name_of(checkpoint: str) -> str:
    """The run that a checkpoint is of: runs/NAME/checkpoints/best.ckpt or runs/NAME."""
    path = Path(checkpoint)
    inside = path.suffix == ".ckpt" and path.parent.name == "checkpoints"
    return text(path.parent.parent.name if inside else path.name)


def _method(config: Mapping[str, Any], base: str | None) -> str | None:
    objective, defense = config.get("objective"), _target(config.get("defense"))
    trained = _target(objective)
    attack = _target(objective.get("attack")) if isinstance(objective, Mapping) else None
    if trained and attack:
        trained = f"{trained} ({attack})"
    if defense is None:
        return trained
    return f"{defense} on {base}" if base else " + ".join(part for part in (trained, defense) if part)


def _net(model: object) -> str | None:
    if not isinstance(model, Mapping):
        return None
    if isinstance(model.get("net"), Mapping):  # a defense: what it defends
        return _net(model["net"])
    target, name = _target(model), model.get("name")
    return f"{target} {text(name)}" if target and isinstance(name, str) else target


def _target(section: object) -> str | None:
    target = section.get("_target_") if isinstance(section, Mapping) else None
    return None if target is None else text(str(target).rsplit(".", 1)[-1])
