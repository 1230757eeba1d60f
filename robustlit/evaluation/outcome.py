"""What is known of each example of a batch at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, BudgetAttack
from robustlit.attacks.memory import Pieces
from robustlit.checks import rounded_up
from robustlit.results.table import DISTANCES
from robustlit.threat import distance

_PASSES = ("forwards", "backwards")


@dataclass(frozen=True)
class Outcome:
    """The columns of the table that an attack fills in, (B,) each: success, prediction, distances and passes.

    `x_adv` (B, C, H, W) is the adversarial example or best attempt of each, the image itself before an attack; None
    where they are not kept.
    """

    columns: dict[str, Tensor]
    x_adv: Tensor | None = None

    @classmethod
    def unattacked(cls, prediction: Tensor, clean: Tensor, x: Tensor, *, keep: bool = False) -> Outcome:
        """Return the outcome before any attack: a misclassified example is broken at distance 0."""
        unknown = torch.where(clean, x.new_tensor(float("nan")), x.new_tensor(0.0))
        found = {"success": ~clean, "prediction": prediction.masked_fill(clean, -1)}
        distances = {d: unknown.clone() for d in DISTANCES}
        passes = {name: torch.zeros_like(prediction) for name in _PASSES}
        return cls({**found, **distances, **passes}, x.clone() if keep else None)

    @property
    def success(self) -> Tensor:
        """(B,) bool: an adversarial example is known."""
        return self.columns["success"]

    def copy(self) -> Outcome:
        """Return a copy that shares no memory."""
        kept = None if self.x_adv is None else self.x_adv.clone()
        return Outcome({name: values.clone() for name, values in self.columns.items()}, kept)

    def select(self, rows: Tensor) -> Outcome:
        """Return the outcome of some examples."""
        kept = None if self.x_adv is None else self.x_adv[rows]
        return Outcome({name: values[rows] for name, values in self.columns.items()}, kept)

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """Return the outcome of the examples of all parts, in order; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        kept = [part.x_adv for part in parts if part.x_adv is not None]
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
        return cls(columns, torch.cat(kept) if kept else None)

    def put(self, rows: Tensor, other: Outcome) -> None:
        """Replace what is known of `rows` by `other`, and add its passes."""
        for name, values in self.columns.items():
            values[rows] = values[rows] + other.columns[name] if name in _PASSES else other.columns[name]
        if self.x_adv is not None and other.x_adv is not None:
            self.x_adv[rows] = other.x_adv

    def inherit(self, other: Outcome, norm: str, eps: float) -> None:
        """Take over the adversarial examples of `other` that lie within `eps`, the budget of this outcome."""
        better = other.success & ~self.success & (other.columns[norm] <= rounded_up(eps, norm))
        for name in {*self.columns}.difference(_PASSES):
            self.columns[name] = torch.where(better, other.columns[name], self.columns[name])
        if self.x_adv is not None and other.x_adv is not None:
            self.x_adv[better] = other.x_adv[better]


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) in [0, 1] under attack, their classes and numbers (B,), and the seed of the random draws.

    Where memory does not suffice for an attack on all of them, they are attacked in `pieces`.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    seed: int
    pieces: Pieces = field(default_factory=Pieces)
    keep: bool = False  # the adversarial examples, in each `Outcome`

    def attacked(self, attack: Attack, rows: Tensor, eps: Tensor | None = None) -> Outcome:
        """Attack the examples `rows` (b,), a `BudgetAttack` at the budgets `eps` (b,), and return their outcome."""

        def attacked(here: Tensor) -> Outcome:
            return self._attacked(attack, rows[here], None if eps is None else eps[here])

        places = torch.arange(len(rows), device=rows.device)
        return Outcome.joined(self.pieces.done(attacked, places, attack.name))

    def _attacked(self, attack: Attack, rows: Tensor, eps: Tensor | None) -> Outcome:
        x, y, index = self.x[rows], self.y[rows], self.index[rows]
        given = {"eps": eps} if isinstance(attack, BudgetAttack) else {}
        result = attack.run(self.model, x, y, index=index, seed=self.seed, **given)
        found = {"success": result.success, "prediction": result.prediction}
        distances = {d: distance(result.x_adv, x, d) for d in DISTANCES}
        passes = {"forwards": result.forwards, "backwards": result.backwards}
        return Outcome({**found, **distances, **passes}, result.x_adv if self.keep else None)
