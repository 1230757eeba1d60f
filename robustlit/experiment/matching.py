"""Match the names of a net's weights with those in a file, which wrappers around the net have lengthened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# What torch's own wrappers put between the names of modules: DataParallel and AveragedModel, compile, FSDP.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# How normalisation layers name their constants, here and in RobustBench, the robustness library and torchattacks.
_NORMALISATION = {"mean", "std", "means", "stds", "sds", "mu", "sigma", "new_mean", "new_std"}
# Buffers that no net needs: of AveragedModel; of BatchNorm, which files of before 2018 lack.
_COUNTS = {"n_averaged", "num_batches_tracked"}
_OF_TRAINING = ("loss", "criterion", "metric", "accuracy", "acc", "auroc", "confmat", "f1")


@dataclass
class Match:
    """How the weights of a file fill a net."""

    pairs: dict[str, str] = field(default_factory=dict)  # the net's name -> the file's
    missing: list[str] = field(default_factory=list)  # names of the net that the file lacks
    unexpected: list[str] = field(default_factory=list)  # names of the file that the net lacks
    problem: str = ""  # another reason why they do not fit
    notes: list[str] = field(default_factory=list)  # what the caller should hear of

    @property
    def failures(self) -> int:
        """Number of names without a partner."""
        return len(self.missing) + len(self.unexpected)


def matched(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], buffers: Collection[str] = ()) -> Match:
    """Return how the weights `theirs` of a file fill those of a net, by name.

    Either side may have something in front of its names: the net may be an inner module of one side, whatever its
    attribute or index there, beside a normalisation layer.

    Args:
        own: The net's state dict.
        theirs: The file's.
        buffers: Names of the net's buffers; a normalisation that the file lacks must be among them.

    Returns:
        The match in which every weight has a partner; where there is none, the one that lacks least.
    """
    short, names = _shortened(own), _shortened(theirs)
    optional = {name for name in own if _is_count(name) or (_is_constant(name) and name in buffers)}
    found = [
        _compared(ours, inner, names, optional)
        for ours in _inner(short, optional)
        for inner in _parts(names, len(ours))
    ]
    complete = [match for match in found if not match.missing]
    if not complete:
        return min(found, key=lambda match: match.failures, default=Match(missing=list(own), unexpected=list(theirs)))
    best, *others = sorted(complete, key=lambda match: -len(match.pairs))
    copies = {name for match in others if _same(best, match, theirs) for name in match.pairs.values()}
    best.unexpected = [name for name in best.unexpected if name not in copies]
    rivals = [m for m in others if not _same(best, m, theirs) and {*m.pairs.values()}.isdisjoint(best.pairs.values())]
    if rivals:
        first, second = (next(iter(match.pairs.values())) for match in (best, rivals[0]))
        best.problem = f"two of its parts would fill the net ({first} and {second}); save the one that is meant alone"
    _judge_the_rest(best, own, theirs)
    return best


def _shortened(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name -> name without what torch's wrappers put into it; unchanged where two would become one."""
    short = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in state}
    return short if len({*short.values()}) == len(short) else {name: name for name in state}


def _inner(short: Mapping[str, str], optional: Collection[str]) -> Iterator[dict[str, str]]:
    """Yield short name -> name of the net itself, then of the module inside it that has all but its normalisation."""
    named = {brief: name for name, brief in short.items()}
    while named:
        yield named
        weights = [brief for brief, name in named.items() if name not in optional]
        first = {brief.partition(".")[0] for brief in weights}
        if len(first) != 1 or any("." not in brief for brief in weights):
            return
        prefix = f"{first.pop()}."
        named = {brief[len(prefix) :]: name for brief, name in named.items() if brief.startswith(prefix)}


def _parts(short: Mapping[str, str], size: int) -> Iterator[dict[str, str]]:
    """Yield short name -> name of the modules of a file that could fill a net with `size` names, large ones first."""
    named = {brief: name for name, brief in short.items()}
    counts = Counter({"": len(named)})
    for brief in named:
        parts = brief.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    for prefix, count in sorted(counts.items(), key=lambda item: (-item[1], len(item[0]))):
        if 2 * count >= size or not prefix:
            yield {brief[len(prefix) :]: name for brief, name in named.items() if brief.startswith(prefix)}


def _compared(
    own: Mapping[str, str], inner: Mapping[str, str], every: Collection[str], optional: Collection[str]
) -> Match:
    pairs = {name: inner[brief] for brief, name in own.items() if brief in inner}
    missing = [name for brief, name in own.items() if brief not in inner and name not in optional]
    taken = {*pairs.values()}
    return Match(pairs, missing, [name for name in every if name not in taken])


def _judge_the_rest(match: Match, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Sort what a file holds besides the net: its normalisation, what only training needs, and what is unexpected."""
    rest = [name for name in match.unexpected if not _is_count(name)]
    constants = [name for name in rest if _is_constant(name) and _one_per_channel(theirs[name])]
    of_training = [n for n in rest if any(part in n.lower().split(".")[0] for part in _OF_TRAINING)]
    match.unexpected = [name for name in rest if name not in constants and name not in of_training]
    if of_training:
        match.notes.append(f"left out, as no part of the net: {', '.join(of_training[:3])}")
    if not constants:
        return
    values = {name: [round(float(v), 4) for v in theirs[name].flatten()] for name in constants}
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    here = {name: own[name] for name in own if name not in match.pairs and _is_constant(name)}
    if not here:
        match.notes.append(
            f"warning: it was saved with a normalisation ({shown}), and the net built here has none of that name; "
            "unless its forward does the same, build nn.Sequential(robustlit.models.Normalize(mean, std), net)"
        )
    for name, value in here.items():
        same = [theirs[n] for n in constants if n.rpartition(".")[2].strip("_") == name.rpartition(".")[2].strip("_")]
        if same and not any(_equal(one.flatten(), value.flatten()) for one in same):
            match.problem = (
                f"it was saved with another normalisation ({shown}) than the net here has; build it with that"
            )


def _same(one: Match, other: Match, theirs: Mapping[str, Tensor]) -> bool:
    """Return whether two matches fill the net with equal values."""
    shared = [(name, other.pairs[key]) for key, name in one.pairs.items() if key in other.pairs]
    return all(_equal(theirs[name], theirs[copy]) for name, copy in shared)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(torch.isclose(one.double(), other.double(), rtol=1e-4, atol=1e-6).all())


def _is_constant(name: str) -> bool:
    return name.rpartition(".")[2].strip("_") in _NORMALISATION


def _is_count(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTS


def _one_per_channel(value: Tensor) -> bool:
    return value.is_floating_point() and sum(side > 1 for side in value.shape) <= 1
