"""Per-example results: the table from which every curve, figure and number is derived."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from robustlit.results.coverage import Coverage
from robustlit.results.digest import digest
from robustlit.results.intervals import Accuracy
from robustlit.results.stored_verdict import set_aside
from robustlit.results.table import (
    COLUMNS,
    DISTANCES,
    META,
    TABLE,
    TOLERANCE,
    EvaluationError,
    check_columns,
    read_table,
    write_table,
)
from robustlit.results.text import to_text

__all__ = ["COLUMNS", "DISTANCES", "META", "TABLE", "TOLERANCE", "Evaluation", "EvaluationError"]

_OVERSTATES = (
    "no attack here looked for the nearest adversarial in L2, so the worst case over L2 distance overstates; "
    "run NearestL2() beside the others"
)
_NOBODY_SEARCHED = "no attack here searched {distance}, so the worst case over {distance} is only an upper bound"


@dataclass
class Evaluation:
    """What a sweep found, one row per (example, attack, threat knowledge, budget).

    Columns: `index` number of the example, `label` true class, `clean` classified right without an attack, `attack`,
    `knowledge` (greybox, adaptive, blackbox), `norm` and `eps` of the budget in pixel units (eps is NaN for a minimal
    attack), `success` (a witness within that budget is known), `prediction` on it, its distances `l0` (changed
    values), `l1`, `l2`, `linf` from the clean image in pixel units (of the best attempt where there is no witness, NaN
    where none was needed), `forwards` and `backwards` spent at that budget. A witness at a smaller budget is one at
    every larger one; an example misclassified without an attack is broken at distance 0.

    Args:
        table: the rows; not to be changed, as what is read off them is kept.
        meta: what was attacked and how: `attacks` (name -> text), `seed`, `complete`; where it was cut short, of how
            many examples (`meant`).

    Attributes:
        whole: of one that `on` cut down to some examples, that on all; else None.
    """

    table: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    whole: Evaluation | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_columns(self.table)

    def __repr__(self) -> str:
        return to_text(self)

    # What there is

    @property
    def n(self) -> int:
        """Number of examples."""
        return int(self.table["index"].nunique())

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, in the order in which they ran."""
        return self._coverage.attacks

    @property
    def runs(self) -> list[tuple[str, str]]:
        """The pairs (attack, knowledge), in the order in which they ran."""
        return self._coverage.pairs

    @staticmethod
    def label(attack: str, knowledge: str) -> str:
        """How a figure or a logger names a run: the attack, and what it knew where that is less than everything."""
        return attack if knowledge == "adaptive" else f"{attack}-{knowledge}"

    @property
    def complete(self) -> bool | None:
        """False when the sweep was cut short: then `n` counts the examples that it finished. None: not known."""
        found = self.meta.get("complete")
        return None if found is None else bool(found)

    @property
    def meant(self) -> int | None:
        """On how many examples a sweep that was cut short was meant to run; None where that is not known."""
        found = self.meta.get("meant")
        return None if found is None else int(found)

    @property
    def caveat(self) -> str:
        """What a figure must say beside `n`: "cut short, of 1000", that completeness is not known, or nothing."""
        if self.complete is None:
            return "not known whether complete"
        of = "" if self.meant is None else f", of {self.meant}"
        return "" if self.complete else f"cut short{of}"

    def budgets(self, attack: str, knowledge: str = "adaptive") -> list[float]:
        """The budgets that an attack was run at, ascending; empty for a minimal attack."""
        return self._coverage.budgets(attack, knowledge)

    def norm_of(self, attack: str) -> str:
        """The norm that an attack measures its budget in."""
        return self._coverage.norm_of(attack)

    @cached_property
    def _coverage(self) -> Coverage:
        return Coverage(self.table)

    @cached_property
    def digest(self) -> str:
        """What tells this table from any other (see `robustlit.results.digest`)."""
        return digest(self.table)

    def on(self, index: ArrayLike) -> Evaluation:
        """The evaluation on those of its examples whose numbers are in `index`; that on all stays its `whole`."""
        kept = self.table["index"].isin(np.asarray(index))
        if kept.all():
            return self
        cut = Evaluation(self.table[kept].reset_index(drop=True), self.meta)
        cut.whole = self.whole or self
        return cut

    # Accuracies

    @property
    def clean_accuracy(self) -> Accuracy:
        """Accuracy without an attack."""
        clean = self.table.drop_duplicates("index")["clean"]
        return Accuracy(int(clean.sum()), len(clean))

    def accuracy(
        self, *, norm: str = "linf", eps: float, attack: str | None = None, knowledge: str = "adaptive"
    ) -> Accuracy:
        """Share of examples for which no witness within `eps` is known.

        Args:
            norm: "linf" or "l2".
            eps: budget in pixel units, one at which attacks were run.
            attack: one attack; None takes the per-example worst case, as `worst_case` does.
            knowledge: greybox, adaptive or blackbox.

        Raises:
            EvaluationError: nothing was attacked at that budget, so an accuracy there would only flatter.
        """
        names = self._coverage.named(attack, knowledge)
        if not any(self._coverage.covers(n, knowledge, norm, eps) for n in names):
            held = "; ".join(
                f"{n}: {self.norm_of(n)} {', '.join(f'{e:g}' for e in self.budgets(n, knowledge)) or 'any'}"
                for n in names
            )
            raise EvaluationError(f"nothing was attacked at {norm} eps {eps:g}; ask for a budget that was ({held})")
        unbroken = self.reach(attack, distance=norm, knowledge=knowledge) > eps + TOLERANCE
        return Accuracy(int(unbroken.sum()), len(unbroken))

    def worst_case(self, *, norm: str = "linf", eps: float, knowledge: str = "adaptive") -> Accuracy:
        """Share of examples that no attack broke within `eps`: the mean over examples of the minimum over attacks.

        Whoever knows the defense can also do what those can who do not: "adaptive" counts the witnesses of all.
        """
        return self.accuracy(norm=norm, eps=eps, knowledge=knowledge)

    def rests_on(self, *, norm: str = "linf", eps: float, knowledge: str = "adaptive") -> list[str]:
        """The attacks that ran within this budget, on which `worst_case` there rests."""
        return [
            name for name in self._coverage.named(None, knowledge) if self._coverage.covers(name, knowledge, norm, eps)
        ]

    # Distances

    def least_distances(
        self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive"
    ) -> np.ndarray:
        """Least distance of a witness per example, ascending by example number: (n,), inf where none is known.

        Args:
            attack: one attack, or None for all that ran with this knowledge.
            distance: l0, l1, l2 or linf, in pixel units; need not be the norm of the attack's budget.
            knowledge: greybox, adaptive or blackbox.
        """
        if distance not in DISTANCES:
            raise EvaluationError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        each = [self._coverage.nearest(name, knowledge, distance) for name in self._coverage.named(attack, knowledge)]
        reach = each[0] if len(each) == 1 else pd.concat(each).groupby(level=0).min()
        return reach.to_numpy(copy=True)

    def farthest(self, attack: str, *, distance: str = "l2", knowledge: str = "adaptive") -> float:
        """The largest distance of what an attack handed back, witness or failed attempt; NaN where none was needed."""
        rows = self._coverage.rows(attack, knowledge)
        return float(rows.loc[rows["clean"], distance].max())

    def reach(self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive") -> np.ndarray:
        """As `least_distances`, but for all attacks "adaptive" counts the witnesses of those who know less, too."""
        reach = self.least_distances(attack, distance=distance, knowledge=knowledge)
        if attack is None and knowledge == "adaptive":
            others = dict.fromkeys(k for _, k in self.runs if k != knowledge)
            reach = np.min([reach, *(self.least_distances(distance=distance, knowledge=k) for k in others)], axis=0)
        return reach

    def _warn_of_overstatement(self, attack: str | None, distance: str, knowledge: str) -> None:
        if attack is None:
            here = [name for name in self._coverage.named(None, knowledge) if self.norm_of(name) == distance]
            if distance == "l2" and all(self.budgets(name, knowledge) for name in here):
                warnings.warn(_OVERSTATES, stacklevel=3)
            elif not here:
                warnings.warn(_NOBODY_SEARCHED.format(distance=distance), stacklevel=3)

    def curve(
        self,
        attack: str | None = None,
        *,
        distance: str = "l2",
        knowledge: str = "adaptive",
        at: Iterable[float] | None = None,
    ) -> pd.DataFrame:
        """Accuracy against distance; it cannot rise.

        Args:
            attack: one attack, or None for the worst case over all.
            distance: l0, l1, l2 or linf.
            knowledge: greybox, adaptive or blackbox.
            at: distances to read the curve at; None takes 0 and every distance at which an example breaks.

        Returns:
            Columns `distance`, `accuracy`, `low`, `high` (Wilson 95 %). A row's accuracy is the share of examples not
            broken within that distance, rounding (1e-6) included as in `accuracy`.
        """
        self._warn_of_overstatement(attack, distance, knowledge)
        reach = np.sort(self.reach(attack, distance=distance, knowledge=knowledge))
        grid = np.unique(np.append(reach[np.isfinite(reach)], 0.0)) if at is None else np.asarray(list(at), dtype=float)
        broken = np.searchsorted(reach, grid + TOLERANCE, side="right")
        accuracies = [Accuracy(len(reach) - int(b), len(reach)) for b in broken]
        intervals = np.array([a.interval for a in accuracies]).reshape(-1, 2)
        return pd.DataFrame(
            {
                "distance": grid,
                "accuracy": [float(a) for a in accuracies],
                "low": intervals[:, 0],
                "high": intervals[:, 1],
            }
        )

    def median_distance(self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive") -> float:
        """Median over the examples classified right of the least distance of a witness; inf when most have none."""
        self._warn_of_overstatement(attack, distance, knowledge)
        reach = self.reach(attack, distance=distance, knowledge=knowledge)
        rows = pd.concat([self._coverage.rows(name, knowledge) for name in self._coverage.named(attack, knowledge)])
        reach = reach[rows.groupby("index")["clean"].first().to_numpy()]
        # method="lower" of an infinite list: interpolating between a number and inf would give NaN.
        return float(np.quantile(reach, 0.5, method="lower")) if len(reach) else float("nan")

    def passes(self, attack: str, *, eps: float | None = None, knowledge: str = "adaptive") -> float:
        """Mean forward + backward passes per example, of all budgets or of one."""
        rows = self._coverage.rows(attack, knowledge)
        if eps is not None:
            rows = rows[(rows["eps"] - eps).abs() <= TOLERANCE]
        return float((rows["forwards"] + rows["backwards"]).sum() / self.n)

    # In and out

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def save(self, folder: str | Path) -> Path:
        """Writes `examples.parquet` and `evaluation.json` into `folder`, which is made.

        A verdict on another table that lies there is kept under another name (see `verdict.tie.set_aside`).
        """
        set_aside(Path(folder), self)
        write_table(Path(folder), self.table, self.meta)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Reads what `save` wrote; takes the evaluation folder or the run folder above it.

        Raises:
            EvaluationError: nothing there; a file that is damaged, of a newer version, or that lacks columns.
        """
        return cls(*read_table(Path(folder)))

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray], meta: dict[str, Any]) -> Evaluation:
        """An evaluation from whole columns, rows sorted by example."""
        table = pd.DataFrame({name: pd.Series(columns[name]).astype(kind) for name, kind in COLUMNS.items()})
        order = table.index[np.argsort(table["index"].to_numpy(), kind="stable")]
        return cls(table.loc[order].reset_index(drop=True), meta)
