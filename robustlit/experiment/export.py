"""Export the classifier of a run to a file that other programs load, after comparing its logits with the net's."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.checks import check_choice
from robustlit.classifier import can_reject, check_logits, is_stochastic, undefended
from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.run_folder import check_trained
from robustlit.files import write_file
from robustlit.models import Normalize
from robustlit.results import Evaluation, EvaluationError
from robustlit.training.checkpoint import best_of, classifier_of, read_checkpoint
from robustlit.training.stored import one_line

FORMATS = {"state_dict": ".pt", "onnx": ".onnx", "pt2": ".pt2", "torchscript": ".torchscript.pt"}
_WITHIN = 1e-4  # of the largest logit: rounding of another order of the same sums
_BATCHES = (2, 1, 3)  # images; the graph is recorded with the first, and must take any number


@dataclass(frozen=True)
class Shape:
    """Of one image, in pixels."""

    channels: int
    height: int
    width: int

    def images(self, count: int) -> Tensor:
        """Return `count` random images (B, C, H, W) in [0, 1], the same every time."""
        draws = torch.Generator().manual_seed(count)
        return torch.rand(count, self.channels, self.height, self.width, generator=draws)


def export(
    run: str | Path, kind: str = "state_dict", out: str | Path | None = None, *, trusted: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write the classifier of a run in another format, and a JSON file beside it that says what it takes and gives.

    Args:
        run: The run folder (then its best checkpoint), or a .ckpt file.
        kind: "state_dict" (weights by name), "onnx", "pt2" (torch.export) or "torchscript" (deprecated by torch).
        out: The file; None takes the run folder, or the folder of the file.
        trusted: Packages of your own that the recipe may name classes from.

    Returns:
        The file, and the JSON file.

    Raises:
        CheckpointError: See `robustlit.load`.
        ConfigError: A format that the net cannot have, a package is missing, or the export answers otherwise.
        OSError: The file cannot be written.
    """
    check_choice(kind, "format", tuple(FORMATS))
    check_trained(Path(run))
    place = best_of(Path(run)) if Path(run).is_dir() else Path(run)
    read = read_checkpoint(place)
    net, recipe = classifier_of(read, str(place), trusted=trusted)
    shape = _shape(recipe or {}, place)
    file = (
        Path(out)
        if out is not None
        else (Path(run) if Path(run).is_dir() else place.parent) / f"{_name(run)}{FORMATS[kind]}"
    )
    if kind != "state_dict" and is_stochastic(net):
        raise ConfigError(
            f"{type(net).__name__} draws anew for every image, which a recorded graph would not: "
            "--format=state_dict keeps its weights"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        content, difference = _WRITERS[kind](net, shape)
    write_file(file, content)
    card = {
        "file": file.name,
        "format": kind,
        "checkpoint": str(place),
        **_card(net, recipe or {}, shape, _names(place)),
    }
    beside = file.with_name(f"{file.name}.json")
    write_file(beside, json.dumps({**card, "largest_difference_of_logits": difference}, indent=2) + "\n")
    return file, beside


def _state_dict(net: nn.Module, shape: Shape) -> tuple[bytes, float]:
    memory = io.BytesIO()
    torch.save(net.state_dict(), memory)
    memory.seek(0)
    back = torch.load(memory, weights_only=True)
    apart = [name for name, value in net.state_dict().items() if not torch.equal(back[name], value)]
    if apart or len(back) != len(net.state_dict()):
        raise ConfigError(f"the state dict of {type(net).__name__} does not come back as it was ({apart[:1]})")
    return memory.getvalue(), 0.0


def _onnx(net: nn.Module, shape: Shape) -> tuple[bytes, float]:
    try:
        import onnx
        import onnxscript  # noqa: F401  # of torch.onnx
    except ImportError as error:
        raise ConfigError(f"--format=onnx needs the package {error.name}: pip install onnx onnxscript") from error
    program = _recorded(
        net,
        "onnx",
        lambda: torch.onnx.export(
            net, (shape.images(_BATCHES[0]),), dynamo=True, input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        ),
    )  # fmt: skip
    content: bytes = program.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:  # slower, and a part of onnx
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(onnx.load_from_string(content))
    else:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, _compared(
        net, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), shape, "onnx"
    )


def _pt2(net: nn.Module, shape: Shape) -> tuple[bytes, float]:
    images, memory = shape.images(_BATCHES[0]), io.BytesIO()
    batch = ({0: torch.export.Dim("batch")},)
    program = _recorded(net, "pt2", lambda: torch.export.export(net, (images,), dynamic_shapes=batch))
    torch.export.save(program, memory)
    return memory.getvalue(), _compared(net, torch.export.load(io.BytesIO(memory.getvalue())).module(), shape, "pt2")


def _torchscript(net: nn.Module, shape: Shape) -> tuple[bytes, float]:
    images, memory = shape.images(_BATCHES[0]), io.BytesIO()
    program = _recorded(net, "torchscript", lambda: torch.jit.trace(net, images, check_trace=False))
    torch.jit.save(program, memory)
    return memory.getvalue(), _compared(net, torch.jit.load(io.BytesIO(memory.getvalue())), shape, "torchscript")


_WRITERS: dict[str, Callable[[nn.Module, Shape], tuple[bytes, float]]] = {
    "state_dict": _state_dict,
    "onnx": _onnx,
    "pt2": _pt2,
    "torchscript": _torchscript,
}


def _recorded(net: nn.Module, kind: str, record: Callable[[], Any]) -> Any:
    for parameter in net.parameters():
        parameter.requires_grad_(False)  # an export is for inference
    try:
        with torch.no_grad():
            return record()
    except Exception as error:  # the exporters raise their own kinds
        raise ConfigError(
            f"{type(net).__name__} cannot be exported as {kind} ({type(error).__name__}: {one_line(error)[:200]}); "
            "--format=state_dict keeps its weights"
        ) from error


def _compared(net: nn.Module, exported: Callable[[Tensor], Tensor], shape: Shape, kind: str) -> float:
    """Return the largest difference of logits on random images, black and white ones; raise where it is no rounding."""
    worst = 0.0
    images = [*(shape.images(count) for count in _BATCHES), shape.images(2).round(), torch.zeros_like(shape.images(1))]
    for x in images:
        with torch.no_grad():
            wanted = check_logits(net(x.clone()), len(x))
            found = exported(x)
        if found.shape != wanted.shape or not bool(torch.isfinite(found).eq(torch.isfinite(wanted)).all()):
            raise ConfigError(
                f"the {kind} export gives {tuple(found.shape)} for {tuple(wanted.shape)}: it is not written"
            )
        finite = wanted.isfinite()
        difference = float((found - wanted)[finite].abs().max()) if bool(finite.any()) else 0.0
        if difference > _WITHIN * max(1.0, float(wanted[finite].abs().max()) if bool(finite.any()) else 1.0):
            raise ConfigError(
                f"the {kind} export answers otherwise than {type(net).__name__} (by {difference:.2g}), so it is not "
                "written; --format=state_dict keeps its weights"
            )
        worst = max(worst, difference)
    return worst


def _shape(recipe: dict[str, Any], place: Path) -> Shape:
    """Return the shape of the images that a recipe's net takes, from the net's own arguments or the data's."""
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    while isinstance(model.get("net"), dict) and model.get("in_chans") is None:
        model = model["net"]
    channels, side = model.get("in_chans"), model.get("image_size")
    if channels is None or side is None:
        from robustlit import data as room

        known = getattr(room, str(data.get("_target_")).rpartition(".")[2], None)
        channels = channels or data.get("channels") or getattr(known, "in_chans", None)
        side = side or data.get("image_size") or getattr(known, "image_size", None)
    if not isinstance(channels, int) or not isinstance(side, int):
        raise ConfigError(f"the recipe in {place} does not say the size of its images; load it and export it by torch")
    return Shape(channels, side, side)


def _names(checkpoint: Path) -> list[str] | None:
    """Return the names of the classes that the run's evaluation has, None where there is none."""
    try:
        names = Evaluation.load(checkpoint.parents[1]).meta.get("class_names")
    except (EvaluationError, OSError, IndexError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _card(net: nn.Module, recipe: dict[str, Any], shape: Shape, names: list[str] | None) -> dict[str, Any]:
    """Return what a program must know that calls the net: what it takes, and what it gives."""
    with torch.no_grad():
        logits = net(shape.images(1)).shape[1]
    classes = logits - can_reject(net)
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, Normalize)]
    normalisation = [
        {"layer": name, "mean": layer.mean.flatten().tolist(), "std": layer.std.flatten().tolist()}
        for name, layer in layers
    ]
    return {
        "input": {
            "shape": ["batch", shape.channels, shape.height, shape.width],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": {1: "grey", 3: "red, green, blue"}.get(shape.channels),
        },
        "normalisation": {"where": "inside the net: give it pixels in [0, 1]", "layers": normalisation},
        "output": f"logits (batch, {logits})" + (", the last one: no class (refused)" if can_reject(net) else ""),
        "num_classes": classes,
        "classes": names if names is not None and len(names) == classes else None,
        "net": type(net).__name__,
        "defense": type(net).__name__ if undefended(net) is not net else None,
        "stochastic": is_stochastic(net),
        "recipe_of_the_net": recipe.get("model"),
        "torch": torch.__version__,
    }


def _name(run: str | Path) -> str:
    place = Path(run).resolve()
    return place.name if place.is_dir() else place.stem
