"""evaluate(): attack any `nn.Module` from Python, without Lightning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, NearestL2, WorstCase
from robustlit.evaluation.batches import batches_of
from robustlit.evaluation.parts import Parts
from robustlit.evaluation.sweep import Columns, Sweep, as_evaluation
from robustlit.results.evaluation import Evaluation

Progress = Callable[[str, float], None]  # name of the attack, share of all work done


def evaluate(
    model: nn.Module, data: Any, attacks: Mapping[str, Attack] | Sequence[Attack] | None = None, *,
    grid: Mapping[str, Sequence[float]] | None = None, knowledge: Sequence[str] = ("adaptive",),
    substitute: nn.Module | None = None, seed: int = 0, batch_size: int = 500,
    device: torch.device | str | None = None, progress: Progress | None = None, folder: str | Path | None = None,
) -> Evaluation:  # fmt: skip
    """Attack a classifier and return the result of every example.

    Args:
        model: Network from images (B, C, H, W) in [0, 1] to logits (B, K); normalisation belongs inside it.
        data: A DataLoader of (x, y) or (x, y, index), a pair of tensors (x, y), or a LightningDataModule (test split).
        attacks: A list, or a mapping from names. None takes those that a claim can rest on: `WorstCase` at the largest
            budget of each norm in `grid`, and `NearestL2` for curves over L2.
        grid: Norm -> budgets in pixel units, e.g. `{"linf": [0.1, 0.2, 0.3]}`, beside each attack's own eps.
        knowledge: Any of "greybox", "adaptive" and "blackbox", see `Sweep`.
        substitute: For "blackbox", a net distilled from the model, see `robustlit.training.distil`.
        seed: Seed of the random draws, which depend on (seed, example) alone.
        batch_size: Size of the batches that a pair of tensors is cut into.
        device: Device to attack on; None takes that of the model's parameters.
        progress: Called with the attack's name and the share of all work done. None draws a bar on a terminal.
        folder: Where to save the evaluation, and until then each finished batch (in `parts/`): the same call after a
            kill, Ctrl-C or power cut attacks only what is left. None saves nothing.

    Returns:
        The evaluation. After Ctrl-C it holds the finished batches, and `complete` is False.

    Raises:
        TypeError: Attacks or data of another type, such as names, classes or arrays.
        ValueError: Bad images, labels or logits, no data, attacks, budgets or gradient, or a substitute is missing.
        OutOfMemoryError: Memory does not suffice for one image; for a batch, its halves are attacked.
        OSError: `folder` cannot be written; the finished batches stay there.
    """
    attacks = _default_attacks(grid or {}) if attacks is None else _checked(attacks)
    sweep = Sweep(attacks, grid or {}, knowledge, seed, substitute)
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = batches_of(data, batch_size)
    kept = Parts(sweep, model, folder)
    _print(kept.notes(batches.number))
    parts: list[Columns] = []
    extent: dict[str, object] = {"complete": True}
    try:
        with _shown(progress) as show:
            for x, y, index in batches.triples:
                _check_precision(model, x)

                def report(name: str, share: float) -> None:
                    if batches.number:
                        show(name, (len(parts) + share) / batches.number)

                parts.append(kept.attack_batch(x.to(device), y.to(device), index.to(device), report))
    except KeyboardInterrupt:
        if not parts:
            raise
        extent = {"complete": False, "meant": batches.examples}
        _print([f"interrupted: kept the {sum(len(p['index']) for p in parts)} finished rows"])
    if not parts:
        raise ValueError("the data holds no examples to attack")
    evaluation = as_evaluation(parts, sweep.meta() | extent)
    return evaluation if folder is None else _saved(evaluation, folder, kept)


def _saved(evaluation: Evaluation, folder: str | Path, kept: Parts) -> Evaluation:
    try:
        evaluation.save(folder)
    except OSError as error:  # what was computed is still returned
        warnings.warn(f"could not save the evaluation: {error}; try evaluation.save(FOLDER) elsewhere", stacklevel=3)
        return evaluation
    if evaluation.complete:
        _print(kept.remove(evaluation.table["index"].unique()))
    return evaluation


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _default_attacks(grid: Mapping[str, Sequence[float]]) -> list[Attack]:
    if not any(grid.values()):
        raise ValueError('give attacks, or budgets to attack at in full strength: grid={"linf": [8 / 255]}')
    return [*(WorstCase(eps=max(budgets), norm=norm) for norm, budgets in grid.items() if budgets), NearestL2()]


def _checked(attacks: Any) -> Any:
    """Return `attacks` if they are attacks, in a list or by name; else raise a TypeError that says what to write."""
    example = "for example attacks=[PGD(eps=0.3)], from robustlit.attacks"

    def shortly(value: object) -> str:
        return repr(value) if isinstance(value, (str, Attack)) else type(value).__name__

    # A generator could be read only once.
    if isinstance(attacks, (str, Attack)) or not isinstance(attacks, (Mapping, Sequence)):
        wanted = "attacks must be a list of attacks, or a mapping from names to them"
        raise TypeError(f"{wanted}, got {shortly(attacks)}; {example}")
    for attack in attacks.values() if isinstance(attacks, Mapping) else attacks:
        if isinstance(attack, type) and issubclass(attack, Attack):
            name = attack.__name__
            raise TypeError(f"{name} is the class of an attack; make one of it, with its budget: {name}(eps=...)")
        if not isinstance(attack, Attack):
            raise TypeError(f"each of attacks must be an attack, got {shortly(attack)}; {example}")
    return attacks


def _check_precision(model: nn.Module, x: Tensor) -> None:
    """Raise a ValueError if the images are of higher precision than the model's weights."""
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    if x.dtype == torch.float64 and weights != torch.float64:
        raise ValueError(f"images are {x.dtype}, and the model's weights {weights}; use x.float()")


@contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """Yield the function that shows progress: the caller's, or that of a bar where standard error is a terminal."""
    if progress is not None:
        yield progress
    elif not sys.stderr.isatty():
        yield lambda name, share: None
    else:
        import rich.console
        import rich.progress

        console = rich.console.Console(stderr=True)
        with rich.progress.Progress(console=console, transient=True) as bar:  # description, bar, percentage, time left
            task = bar.add_task("attacking", total=1.0)
            yield lambda name, share: bar.update(task, description=name, completed=share)
