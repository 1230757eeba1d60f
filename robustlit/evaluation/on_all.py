"""Divide the test images: every attack of a sweep on the first of them, a few of its attacks on all."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.checks import did_you_mean
from robustlit.evaluation.columns import Columns
from robustlit.evaluation.parts import Parts
from robustlit.evaluation.sweep import Sweep

FOLDER = "all_images"  # in the evaluation's folder: the table of the attacks that run on all images


class OnAll(Parts):
    """What a sweep runs on the images beyond its first ones: some of its attacks and certificates, at their own eps.

    Args:
        sweep, model, folder: As `Parts` takes them.
        names: The attacks, at least one, and certificates of the sweep that run on all images.

    Attributes:
        parts: The rows of the images so far.
    """

    def __init__(self, sweep: Sweep, model: nn.Module, folder: Path | None, names: Sequence[str]) -> None:
        self.names = names
        attacks = {name: attack for name, attack in sweep.named.items() if name in names}
        proofs = {name: proof for name, proof in sweep.proofs.items() if name in names}
        knowledge = [known for known in sweep.knowledge if any(k == known and a in attacks for k, a in sweep.jobs)]
        few = replace(sweep, attacks=attacks, grid={}, knowledge=knowledge, certificates=proofs, own_eps=())
        super().__init__(few, model, None if folder is None else folder / FOLDER)
        self.parts: list[Columns] = []

    def rows_of(self, columns: Columns) -> Columns:
        """Return the rows of the whole sweep, on its first images, that these attacks would give as well."""
        keep = np.isin(columns["attack"], list(self.names))
        for name, attack in self.sweep.named.items():
            own = getattr(attack, "eps", np.nan)
            keep &= (columns["attack"] != name) | np.isnan(columns["eps"]) | (columns["eps"] == own)
        return {name: values[keep] for name, values in columns.items()}


def known_names(names: Sequence[str], name: str, known: Collection[str], *, matters: bool = True) -> tuple[str, ...]:
    """Return the names that are known; others are left out with a warning, as who drops an attack need not go on.

    Args:
        names: What a recipe gives.
        name: Of that list, for the warning.
        known: Names of attacks and certificates.
        matters: Whether something is missing without the others; if not, only what looks mistyped is warned about.
    """
    for other in (each for each in names if each not in known):
        if matters or did_you_mean(other, known):
            there = f"it has {', '.join(known)}"
            warnings.warn(f"{name} names {other!r}, which this sweep does not run: {there}", stacklevel=3)
    return tuple(each for each in names if each in known)


def names_on_all(names: Sequence[str], attacks: Collection[str], certificates: Collection[str]) -> tuple[str, ...]:
    """Return the known ones of `on_all`, with a warning where no attack is among them: nothing runs then."""
    found = known_names(names, "on_all", [*attacks, *certificates])
    if found and not {*found} & {*attacks}:
        listed = ", ".join(found)
        warnings.warn(
            f"on_all=[{listed}] names no attack, so nothing runs on all images; name one too, "
            f"on_all=[{next(iter(attacks))},{listed}]",
            stacklevel=3,
        )
    return found


def is_first(index: Tensor, first: Tensor | None) -> Tensor:
    """Return which examples, by their numbers (B,), are among the first: bool (B,); None stands for all."""
    if first is None:
        return torch.ones_like(index, dtype=torch.bool)
    return torch.isin(index, first.to(index.device))
