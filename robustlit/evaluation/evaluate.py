"""evaluate(): attack any `nn.Module` from Python, without Lightning."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustlit.attacks import Attack, NearestL2, WorstCase
from robustlit.attacks.victim import NoGradientError, check_differentiable
from robustlit.certify import Certificate
from robustlit.evaluation.batches import Batches, Triple, batches_of, class_names_of, split_size
from robustlit.evaluation.columns import Columns, as_evaluation
from robustlit.evaluation.parts import Parts
from robustlit.evaluation.sweep import Sweep
from robustlit.results.evaluation import Evaluation
from robustlit.threat import check_grid, check_images

Progress = Callable[[str, float], None]  # name of the attack, share of all work done


def evaluate(
    model: nn.Module, data: Any, attacks: Mapping[str, Attack] | Sequence[Attack] | None = None, *,
    grid: Mapping[str, float | Sequence[float]] | None = None, knowledge: str | Sequence[str] = ("adaptive",),
    substitute: nn.Module | None = None, seed: int = 0, batch_size: int | None = None,
    device: torch.device | str | None = None, progress: Progress | None = None, folder: str | Path | None = None,
    save_adversarials: bool = False, certificates: Mapping[str, Certificate] | Sequence[Certificate] = (),
) -> Evaluation:  # fmt: skip
    """Attack a classifier and return the result of every example.

    Args:
        model: Network from images (B, C, H, W) in [0, 1] to logits (B, K); normalisation belongs inside it.
        data: A DataLoader of (x, y) or (x, y, index), a pair of tensors (x, y), or a LightningDataModule (test split).
        attacks: A list, or a mapping from names. None takes those that a claim can rest on: `WorstCase` at the largest
            budget of each norm in `grid`, and `NearestL2` for curves over L2 (where the model gives a gradient).
        grid: Norm -> budgets in pixel units, e.g. `{"linf": [0.1, 0.2, 0.3]}`, beside each attack's own eps.
        knowledge: Any of "greybox", "adaptive" and "blackbox", see `Sweep`.
        substitute: For "blackbox", a net distilled from the model, see `robustlit.training.distil`.
        seed: Seed of the random draws, which depend on (seed, example) alone.
        batch_size: Size of the batches that a pair of tensors is cut into; None takes 500 images of up to
            32 x 32 pixels, and fewer of larger ones.
        device: Where to attack; None takes the device of the model's parameters.
        progress: Called with the attack's name and the share of all work done. None draws a bar on a terminal.
        folder: Where to save the evaluation, and until then each finished batch (in `parts/`): the same call after a
            kill, Ctrl-C or power cut attacks only what is left. None saves nothing.
        certificates: Lower bounds beside the attacks, a list or by name: `[CROWN(eps=0.3)]`, see `robustlit.certify`.
        save_adversarials: Also keep the adversarial examples in `folder`, see `load_adversarials`.

    Returns:
        The evaluation, of each distinct image once, with a warning where the data repeat some. After Ctrl-C it holds
        the finished batches, and `complete` is False.

    Raises:
        TypeError: A model, attacks, certificates, a grid or data of another type, such as functions, names or arrays.
        ValueError: Bad images, labels or logits, no data, attacks, budgets or gradient, or a substitute is missing.
        OutOfMemoryError: Memory does not suffice for one image; for a batch, its halves are attacked.
        OSError: `folder` cannot be written; the finished batches stay there.
    """
    _check_nets(model, substitute)
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    budgets = check_grid(grid)
    chosen = _default_attacks(budgets) if attacks is None else _checked(attacks, Attack, "PGD(eps=0.3)")
    batches = batches_of(data, batch_size)
    if attacks is None:
        chosen, batches = _that_run(chosen, model, batches, device)
    proofs = _checked(certificates, Certificate, "IBP(eps=0.3)")
    sweep = Sweep(chosen, budgets, knowledge, seed, substitute, proofs)
    _warn_of_unused(sweep)
    kept = Parts(sweep, model, folder, examples=batches.examples, note=_note if save_adversarials else None)
    _print(kept.notes(batches.number))
    parts: list[Columns] = []
    extent: dict[str, object] = {"complete": True, "of": split_size(data)}
    try:
        parts.extend(_attacked(kept, batches.triples, batches.number, device, progress))
    except KeyboardInterrupt:
        if not parts:
            raise
        extent |= {"complete": False, "meant": batches.examples}
        _print([f"interrupted: kept the {sum(len(p['index']) for p in parts)} finished rows"])
    evaluation = as_evaluation(parts, sweep.meta() | class_names_of(data) | extent)
    return evaluation if folder is None else _saved(evaluation, parts, folder, kept)


def _check_nets(model: object, substitute: object) -> None:
    """Raise a TypeError unless both are an nn.Module; the substitute may be None."""
    for name, net in (("model", model), ("substitute", substitute)):
        rule = f"{name} must be a torch.nn.Module from images to logits"
        if isinstance(net, type) and issubclass(net, nn.Module):
            raise TypeError(f"{rule}, got a class; make a net of it: {net.__name__}(...)")
        if not isinstance(net, nn.Module) and (net is not None or name == "model"):
            raise TypeError(f"{rule}, got {type(net).__name__}; call a function of yours in the forward of a module")


def _warn_of_unused(sweep: Sweep) -> None:
    """Warn of budgets in a norm that nothing runs in."""
    norms = {*(attack.norm for attack in sweep.named.values()), *(proof.norm for proof in sweep.proofs.values())}
    for norm in (norm for norm, budgets in sweep.grid.items() if budgets and norm not in norms):
        way_out = f'add one, for example PGD(eps=..., norm="{norm}"), or leave them out'
        warnings.warn(f"the budgets of grid.{norm} are not used: no attack has norm={norm!r}; {way_out}", stacklevel=3)


def _attacked(
    kept: Parts, triples: Iterator[Triple], number: int | None, device: torch.device | str, progress: Progress | None
) -> Iterator[Columns]:
    """Yield the rows of each of `number` batches, and show how far the attacks are."""
    with _shown(progress) as show:
        for done, (x, y, index) in enumerate(triples):

            def report(name: str, share: float, done: int = done) -> None:
                if number:
                    show(name, (done + share) / number)

            yield kept.attack_batch(x.to(device), y.to(device), index.to(device), report)


def _saved(evaluation: Evaluation, parts: Sequence[Columns], folder: str | Path, kept: Parts) -> Evaluation:
    try:
        evaluation.save(folder)
    except OSError as error:  # what was computed is still returned
        warnings.warn(f"could not save the evaluation: {error}; try evaluation.save(FOLDER) elsewhere", stacklevel=3)
        return evaluation
    if evaluation.complete:
        _print(kept.remove(number for part in parts for number in part["index"]))
    return evaluation


def _note(line: str) -> None:
    _print([line])


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _default_attacks(grid: Mapping[str, Sequence[float]]) -> list[Attack]:
    if not any(grid.values()):
        raise ValueError('give attacks, or budgets to attack at in full strength: grid={"linf": [8 / 255]}')
    return [*(WorstCase(eps=max(budgets), norm=norm) for norm, budgets in grid.items() if budgets), NearestL2()]


def _that_run(
    attacks: list[Attack], model: nn.Module, batches: Batches, device: torch.device | str
) -> tuple[list[Attack], Batches]:
    """Return the attacks that run on the model, where it gives no gradient with a warning, and all the batches."""
    if (first := next(batches.triples, None)) is None:
        return attacks, batches
    batches = Batches(itertools.chain([first], batches.triples), batches.number, batches.examples)
    x = first[0][:1].to(device)
    check_images(x)
    try:
        check_differentiable(model, x)
    except NoGradientError as error:
        left = [attack for attack in attacks if attack.goes_on_blind]
        out = ", ".join(attack.name for attack in attacks if attack not in left)
        warnings.warn(f"{out} is left out: {error}", stacklevel=3)
        return left, batches
    return attacks, batches


def _checked(given: Any, kind: type[Attack] | type[Certificate], example: str) -> Any:
    """Return attacks or certificates, in a list or by name; else raise a TypeError that says what to write."""
    word, one = ("attack", "an attack") if kind is Attack else ("certificate", "a certificate")
    way_out = f"for example {word}s=[{example}], from robustlit.{kind.__module__.split('.')[1]}"

    def shortly(value: object) -> str:
        return repr(value) if isinstance(value, (str, kind)) else type(value).__name__

    # A generator could be read only once.
    if isinstance(given, (str, kind)) or not isinstance(given, (Mapping, Sequence)):
        wanted = f"{word}s must be a list of {word}s, or a mapping from names to them"
        raise TypeError(f"{wanted}, got {shortly(given)}; {way_out}")
    for each in given.values() if isinstance(given, Mapping) else given:
        if isinstance(each, type) and issubclass(each, kind):
            name = each.__name__
            raise TypeError(f"{name} is the class of {one}; make one of it, with its budget: {name}(eps=...)")
        if not isinstance(each, kind):
            raise TypeError(f"each of {word}s must be {one}, got {shortly(each)}; {way_out}")
    return given


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
