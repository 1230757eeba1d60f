"""Explore why adversarial examples exist around the nets of runs, side by side: section 10 of the 2019 report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from robustlit.attacks import NearestL2
from robustlit.classifier import answer_on_a_copy, can_reject, predicted
from robustlit.evaluation.geometry import (
    Report,
    nearest_adversarials,
    neighbours,
    pairs,
    random_slice,
    slice_through,
)
from robustlit.experiment.composition import overridden
from robustlit.experiment.migration import migrated
from robustlit.experiment.preflight import check_classes
from robustlit.experiment.recipes import ConfigError, check_complete, read_fractions
from robustlit.experiment.stored_recipe import ALLOWED, sanitized_recipe
from robustlit.figures.geometry import Seen, neighbours_figure, pairs_figure, slices_figure
from robustlit.files import write_file
from robustlit.training.checkpoint import CheckpointError, classifier_of, read_checkpoint
from robustlit.training.stored import check_names, one_line, plain_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = "explore.json"
_CLASSES = 10  # of the matrices: the first ones
_MOST_VALUES = 2**27  # of all training images that are held: half a gigabyte
_CANDIDATES = 200  # test images among which one that all nets classify correctly is looked for


@dataclass(frozen=True)
class Exploration:
    """What to explore.

    Args:
        example: Number of the example in the test split; None takes the first that all nets classify correctly.
        n: Test images whose nearest adversarial examples and training images are measured; 0 measures none.
        per_pair: Images of each class for each ordered pair of classes; 0 leaves the pairs out.
        side: Points along each side of a slice.
        seed: Of the random directions.
    """

    example: int | None = None
    n: int = 50
    per_pair: int = 2
    side: int = 81
    seed: int = 0


@dataclass(frozen=True)
class _Data:
    x: Tensor
    y: Tensor
    index: Tensor
    training: tuple[Tensor, Tensor]
    name: str
    class_names: Sequence[str]


def explore(
    runs: Sequence[str], folder: Path, wanted: Exploration, overrides: Sequence[str] = (), *,
    trusted: Sequence[str] = (), report: Report | None = None,
) -> Iterator[Path]:  # fmt: skip
    """Explore the nets of runs on the data of the first, and yield each file as soon as it is written.

    Args:
        runs: Run folders or checkpoints, of nets with the same classes and images.
        folder: Where the numbers (explore.json) and the figures go; it is created.
        wanted: What to explore.
        overrides: Values of the first run's recipe, such as data.root=PATH.
        trusted: Packages of your own that the recipes may name classes from.
        report: Called with what is computed, and the share of it done.

    Raises:
        ConfigError, CheckpointError, DataError, ValueError: Runs that cannot be read or do not fit each other.
    """
    read = {name: read_checkpoint(run) for name, run in zip(_names(runs), runs, strict=True)}
    nets = {name: classifier_of(each, name, trusted=trusted)[0].eval() for name, each in read.items()}
    folder.mkdir(parents=True, exist_ok=True)
    data = _load_data(next(iter(read.values())), runs[0], wanted, overrides, trusted)
    for name, each in read.items():
        check_classes(each["robustlit"]["config"] or {}, data, name)
    _check_fit(nets, data)
    found: dict[str, Any] = {
        "runs": dict(zip(nets, map(str, runs), strict=True)),
        "training_images": len(data.training[0]),
    }
    figure, found["slices"] = _slices(nets, data, wanted, report)
    yield _written(folder, "slices", figure, found)
    if wanted.n:
        measured = {name: _neighbours(net, name, data, wanted.n, report) for name, net in nets.items()}
        found["neighbours"] = {name: each.summary() for name, each in measured.items()}
        title = "How near the nearest adversarial examples lie to training images"
        yield _written(folder, "neighbours", neighbours_figure(measured, title), found)
    if wanted.per_pair:
        classes = list(range(min(_CLASSES, len(data.class_names))))
        each_pair = {
            name: pairs(net, data.x, data.y, data.training, classes, wanted.per_pair, _named(report, name))
            for name, net in nets.items()
        }
        found["pairs"] = {name: _plain(asdict(each)) for name, each in each_pair.items()}
        of = "" if len(classes) == len(data.class_names) else f", the first {len(classes)} of {len(data.class_names)}"
        title = f"Pairs of classes{of}, by {wanted.per_pair} image{'s' * (wanted.per_pair > 1)} each"
        yield _written(folder, "pairs", pairs_figure(each_pair, title, names=data.class_names), found)
    yield folder / NUMBERS


def _named(report: Report | None, name: str) -> Report | None:
    return None if report is None else lambda what, share: report(f"{name}: {what}", share)


def _names(runs: Sequence[str]) -> list[str]:
    """Return the names of runs, or their paths where two have one name."""
    names = [Path(run).name if Path(run).is_dir() else Path(run).stem for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def _load_data(
    read: dict[str, Any], run: str, wanted: Exploration, overrides: Sequence[str], trusted: Sequence[str]
) -> _Data:
    recipe = read["robustlit"]["config"]
    if recipe is None:
        raise ConfigError(f"{run} holds no recipe, so its data are not known (it was trained from Python)")
    config = overridden(sanitized_recipe(migrated(recipe), run), overrides)
    check_complete(config)
    try:
        section: Any = plain_values(read_fractions(OmegaConf.to_container(config.data, resolve=True)))
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the recipe in {run} cannot be resolved: {one_line(error)}") from error
    check_names(section, ALLOWED["data"], trusted, section="data")
    module = instantiate(section, _convert_="all")
    size = None if wanted.example is not None else max(_CANDIDATES, wanted.n)
    x, y, index = module.tensors("test", size)
    most = max(1, _MOST_VALUES // x[0].numel())
    training = module.tensors("train", most)[:2]
    return _Data(x, y, index, training, module.name, module.class_names)


def _check_fit(nets: Mapping[str, nn.Module], data: _Data) -> None:
    for name, net in nets.items():
        try:
            with torch.no_grad():
                classes = answer_on_a_copy(net, data.x[:1]).shape[1] - can_reject(net)
        except RuntimeError as error:
            shape = "x".join(map(str, data.x.shape[1:]))
            raise ConfigError(
                f"{name} does not take the first run's images ({shape}): {one_line(error)[:120]}"
            ) from error
        if classes != len(data.class_names):
            raise ConfigError(
                f"{name} has {classes} classes, the first run's data {len(data.class_names)}: explore it by itself"
            )


def _chosen(nets: Mapping[str, nn.Module], data: _Data, example: int | None) -> int:
    """Return the place of the example among the test images."""
    if example is not None:
        places = torch.nonzero(data.index == example).flatten()
        if not len(places):
            raise ConfigError(f"--example {example}: the test split has no image of that number ({len(data.x)} images)")
        return int(places[0])
    x, y = data.x[:_CANDIDATES], data.y[:_CANDIDATES]
    with torch.no_grad():
        right = torch.stack([predicted(net(x)) == y for net in nets.values()]).all(0)
    if not right.any():
        raise ConfigError(f"no net-wide correct image among the first {len(x)}; name one: --example NUMBER")
    return int(torch.nonzero(right)[0])


def _slices(
    nets: Mapping[str, nn.Module], data: _Data, wanted: Exploration, report: Report | None
) -> tuple[Figure, dict[str, Any]]:
    place = _chosen(nets, data, wanted.example)
    x, y, index = (part[place : place + 1] for part in (data.x, data.y, data.index))
    label, seen, numbers = int(y), [], {}
    for done, (name, net) in enumerate(nets.items()):
        if report is not None:
            report(f"{name}: slices", done / len(nets))
        result = NearestL2().run(net, x, y, index=index, seed=wanted.seed)
        taken, distance = int(result.prediction), float(result.distance)
        if not bool(result.success) or distance == 0:
            why = "is misclassified without an attack" if distance == 0 else "has no known adversarial example"
            raise ConfigError(f"test image {int(index)} {why} on {name}; choose another: --example NUMBER")
        theirs = data.training[0][
            data.training[1] == (taken if 0 <= taken < len(data.class_names) else (label + 1) % len(data.class_names))
        ]
        gaps = (theirs - x).flatten(1).norm(dim=1)
        other, gap = theirs[gaps.argmin()], float(gaps.min())
        names = [_class(data, c) for c in (label, taken)]
        images = {
            f"test image {int(index)}: {names[0]}": x[0],
            f"nearest adversarial: {names[1]}, L2 {distance:.2f}": result.x_adv[0],
            f"nearest training image\nof {names[1]}, L2 {gap:.2f}": other,
        }
        plane = slice_through(net, list(images.items()), wanted.side)
        first = next(iter(images.items()))
        around = random_slice(net, first, gap, wanted.side, wanted.seed)
        seen.append(Seen(name, {words: image.numpy() for words, image in images.items()}, plane, around))
        numbers[name] = {
            "example": int(index), "label": label, "taken": taken, "distance": distance, "other_distance": gap,
            "plane_share_of_own_class": float((plane.classes == label).mean()),
            "random_share_of_own_class": float((around.classes == label).mean()),
        }  # fmt: skip
    title = f"Decision regions around a test image of class {_class(data, label)}"
    return slices_figure(seen, title, names=data.class_names), numbers


def _class(data: _Data, label: int) -> str:
    return str(data.class_names[label]) if 0 <= label < len(data.class_names) else "no class"


def _neighbours(net: nn.Module, name: str, data: _Data, n: int, report: Report | None) -> Any:
    x, y, index = data.x[:n], data.y[:n], data.index[:n]
    adversarial, taken, which = nearest_adversarials(net, x, y, index, _named(report, name))
    if not len(which):
        raise ConfigError(f"{name}: none of {len(x)} test images has a known adversarial example; give a larger --n")
    return neighbours(x[which], y[which], adversarial, taken, data.training)


def _plain(value: Any) -> Any:
    """Return arrays as lists, rounded, NaN as None."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, np.ndarray)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4) if math.isfinite(value) else None
    return value


def _written(folder: Path, stem: str, figure: Figure, found: Mapping[str, Any]) -> Path:
    """Write the numbers so far and a figure; return the figure's file."""
    from robustlit.figures import write_figure

    write_file(folder / NUMBERS, json.dumps(_plain(dict(found)), indent=1) + "\n")
    return write_figure(figure, folder / f"{stem}.png")
