"""evaluate(): attack any `nn.Module` from Python, no Lightning needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, NearestL2, WorstCase
from robustlit.evaluation.sweep import Columns, Sweep, as_evaluation
from robustlit.results.evaluation import Evaluation

Progress = Callable[[str, float], None]  # what runs now, share of everything done


def evaluate(
    model: nn.Module,
    data: Any,
    attacks: Mapping[str, Attack] | Sequence[Attack] | None = None,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    knowledge: Sequence[str] = ("adaptive",),
    substitute: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Attacks a classifier and returns what was found for every example.

    Args:
        model: from images (B, C, H, W) in [0, 1] to logits (B, K); normalisation belongs inside it.
        data: a DataLoader of (x, y) or (x, y, index), a pair of tensors (x, y), or a LightningDataModule (its test
            split).
        attacks: a list, or a mapping from the names to use. None takes what a claim can rest on: `WorstCase` at the
            largest budget of each norm in `grid`, and `NearestL2`, so that no curve over L2 overstates.
        grid: norm -> budgets in pixel units, e.g. `{"linf": [0.1, 0.2, 0.3]}`, beside each attack's own eps.
        knowledge: any of "greybox", "adaptive" and "blackbox", see `Sweep`.
        substitute: for "blackbox", a net distilled from the model; `robustlit.training.distil` makes one.
        seed: of the random draws, which depend on (seed, example) alone.
        batch_size: how a pair of tensors is cut.
        device: where to attack; None means where the model's parameters are.
        progress: called with the attack's name and the share of all work done. None draws a bar with the time left
            where standard error is a terminal.

    Returns:
        The evaluation. After Ctrl-C, that of the finished batches, `complete` False.

    Raises:
        TypeError: attacks that are none, such as their names or classes; data that are no tensors.
        ValueError: images outside [0, 1] or not finite, labels out of range, logits not (B, K), no data, no gradient,
            neither attacks nor budgets, no substitute where one is needed.
    """
    if attacks is None:
        attacks = _what_a_claim_rests_on(grid or {})
    _check_attacks(attacks)
    sweep = Sweep(attacks, grid or {}, knowledge, seed, substitute)
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches, count, meant = batches_of(data, batch_size)
    parts: list[Columns] = []
    complete, seen = True, 0
    try:
        with _shown(progress) as show:
            for number, (x, y, given) in enumerate(batches):
                index = torch.arange(seen, seen + len(y)) if given is None else given
                seen += len(y)
                _check_precision(model, x)

                def report(name: str, share: float, done: int = number) -> None:
                    if count:
                        show(name, (done + share) / count)

                parts.append(sweep.attack_batch(model, x.to(device), y.to(device), index.to(device), report))
    except KeyboardInterrupt:
        if not parts:
            raise
        complete = False
        print(f"interrupted: kept the {sum(len(p['index']) for p in parts)} finished rows", file=sys.stderr)
    if not parts:
        raise ValueError("the data holds no examples to attack")
    extent = {"complete": True} if complete else {"complete": False, "meant": meant}
    return as_evaluation(parts, {**sweep.meta(), **extent})


def _what_a_claim_rests_on(grid: Mapping[str, Sequence[float]]) -> list[Attack]:
    if not any(grid.values()):
        raise ValueError('give attacks, or budgets to attack at in full strength: grid={"linf": [8 / 255]}')
    return [*(WorstCase(eps=max(budgets), norm=norm) for norm, budgets in grid.items() if budgets), NearestL2()]


def _check_attacks(attacks: object) -> None:
    """Raises a TypeError that says what to write unless these are attacks, in a list or by name."""
    example = "for example attacks=[PGD(eps=0.3)], from robustlit.attacks"
    # A generator could be read only once.
    if isinstance(attacks, (str, Attack)) or not isinstance(attacks, (Mapping, Sequence)):
        given = repr(attacks) if isinstance(attacks, (str, Attack)) else type(attacks).__name__
        raise TypeError(f"attacks must be a list of attacks, or a mapping from names to them, got {given}; {example}")
    for attack in attacks.values() if isinstance(attacks, Mapping) else attacks:
        if isinstance(attack, type) and issubclass(attack, Attack):
            name = attack.__name__
            raise TypeError(f"{name} is the class of an attack; make one of it, with its budget: {name}(eps=...)")
        if not isinstance(attack, Attack):
            given = repr(attack) if isinstance(attack, str) else type(attack).__name__
            raise TypeError(f"each of attacks must be an attack, got {given}; {example}")


def _check_precision(model: nn.Module, x: Tensor) -> None:
    """Raises a ValueError for images of another precision than the model's weights."""
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    if x.dtype == torch.float64 and weights != torch.float64:
        raise ValueError(f"images are {x.dtype}, and the model's weights {weights}; use x.float()")


@contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """Where progress goes: to the caller's function, to a bar on a terminal, or nowhere."""
    if progress is not None:
        yield progress
    elif not sys.stderr.isatty():
        yield lambda name, share: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("attacking", total=1.0)
            yield lambda name, share: bar.update(task, description=name, completed=share)


Triple = tuple[Tensor, Tensor, Tensor | None]


def batches_of(data: Any, batch_size: int) -> tuple[Iterator[Triple], int | None, int | None]:
    """Batches (x, y, index or None), how many they are and how many examples, where it is known."""
    if hasattr(data, "test_dataloader"):
        if hasattr(data, "prepare_data"):
            data.prepare_data()
        data.setup("test")
        data = data.test_dataloader()
    if isinstance(data, (tuple, list)) and len(data) == 2 and not all(isinstance(part, (tuple, list)) for part in data):
        x, y = data
        _check_tensors(x, y)
        if len(x) != len(y):
            raise ValueError(f"images and labels must be as many, got {len(x)} and {len(y)}")
        pieces = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        return ((a, b, None) for a, b in pieces), len(pieces), len(y)
    if not isinstance(data, Iterable):
        raise ValueError(f"data must be a DataLoader, a pair of tensors or a DataModule, got {type(data).__name__}")
    return (_triple(batch) for batch in data), _length(data), examples_of(data)


def _triple(batch: Any) -> Triple:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(f"a batch must be (x, y) or (x, y, index), got {type(batch).__name__}; collate it to that")
    _check_tensors(batch[0], batch[1])
    return batch[0], batch[1], batch[2] if len(batch) > 2 else None


def _check_tensors(x: object, y: object) -> None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        kinds = " and ".join(type(part).__name__ for part in (x, y))
        raise TypeError(
            f"images and labels must be torch tensors, got {kinds}; of arrays, torch.from_numpy(x) makes them"
        )


def examples_of(loader: Any) -> int | None:
    """How many examples a loader hands out in all its processes, where that is known."""
    sampler = getattr(loader, "sampler", None)
    return _length(getattr(sampler, "indices", sampler))


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None
