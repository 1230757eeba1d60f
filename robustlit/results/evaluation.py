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

from robustlit.checks import TOLERANCE, budget_text, rounded_up
from robustlit.results.certificates import Certificates, apart
from robustlit.results.coverage import Coverage
from robustlit.results.html import html_table
from robustlit.results.intervals import Accuracy
from robustlit.results.stored_verdict import set_aside
from robustlit.results.table import (
    COLUMNS,
    DISTANCES,
    IMAGE,
    EvaluationError,
    digest,
    read_table,
    without_copies,
    write_table,
)  # fmt: skip
from robustlit.results.text import lines_of, text_of, title_of

_OVERSTATES = (
    "no attack here searched for the nearest adversarial example in L2, so the worst case over L2 distance overstates; "
    "run NearestL2() beside the others"
)
_NOT_SEARCHED = "no attack here searched {distance}, so the worst case over {distance} is only an upper bound"


@dataclass
class Evaluation(Coverage):
    """What a sweep found, one row per (example, attack, threat knowledge, budget).

    Columns: `index` number of the example, `label` true class, `clean` whether it is classified correctly without an
    attack, `attack`, `knowledge` (greybox, adaptive, blackbox), `norm` and `eps` of the budget in pixel units (eps is
    NaN for a minimal attack), `success` (an adversarial example within that budget is known), `prediction` on it, its
    distances `l0` (changed values), `l1`, `l2`, `linf` from the clean image in pixel units (of the best attempt where
    the attack failed, 0 for a misclassified example, NaN where it was not attacked at this budget), `forwards` and
    `backwards` spent at that budget. An adversarial example within one budget counts at every larger one. `image`,
    which older tables lack, is a digest of the image's pixels: each distinct image counts once.

    Args:
        table: The rows; not to be changed, because values derived from them are cached.
        meta: What was attacked and how: `attacks` (name -> text), `seed`, `complete` and, for an interrupted sweep,
            the number of examples it was `meant` to attack; how many images the test split is `of`, and how many
            `copies` of other images were left out; the `seconds` of each attack and certificate, by label.
        certificates: What was proven of the same examples, None where no certificate ran.

    Attributes:
        whole: The full evaluation that `on` took this subset from, or None.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    certificates: Certificates | None = None
    whole: Evaluation | None = field(default=None, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_table(title_of(self), ("attack", "budget", "accuracy, 95 % interval"), lines_of(self))

    @property
    def n(self) -> int:
        """Number of examples."""
        return int(self.table["index"].nunique())

    @staticmethod
    def label(attack: str, knowledge: str) -> str:
        """Return the name of a run in figures and loggers: the attack, and its knowledge unless it is adaptive."""
        return attack if knowledge == "adaptive" else f"{attack}-{knowledge}"

    def class_name(self, label: int) -> str:
        """Return the name that the data give a class, or its number."""
        names = self.meta.get("class_names") or ()
        return str(names[label]) if 0 <= label < len(names) else str(label)

    @property
    def complete(self) -> bool | None:
        """Whether the sweep attacked every example; False if it was interrupted, None if that is not known."""
        return self.meta.get("complete")

    @property
    def meant(self) -> int | None:
        """Number of examples that an interrupted sweep was meant to attack; None if that is not known."""
        return self.meta.get("meant")

    @property
    def caveat(self) -> str:
        """A note that belongs beside `n`: "cut short, of 1000", "not known whether complete", copies, or nothing."""
        notes = [] if self.complete is not None else ["not known whether complete"]
        if self.complete is False:
            notes.append("cut short" if self.meant is None else f"cut short, of {self.meant}")
        if self.copies:
            notes.append(f"{self.copies} copies left out")
        return "; ".join(notes)

    @property
    def copies(self) -> int:
        """Number of images that were left out because they are copies of others."""
        return int(self.meta.get("copies") or 0)

    @property
    def of(self) -> int | None:
        """Number of images in the test split that the examples are from; None if that is not known."""
        return self.meta.get("of")

    @cached_property
    def digest(self) -> str:
        """A digest that identifies this table, see `robustlit.results.table.digest`."""
        return digest(self.table)

    def on(self, index: ArrayLike) -> Evaluation:
        """Return the evaluation on the examples with the numbers in `index`; its `whole` is the full evaluation."""
        kept = self.table["index"].isin(np.asarray(index))
        if kept.all():
            return self
        proven = None if self.certificates is None else self.certificates.on(np.asarray(index))
        cut = Evaluation(self.table[kept].reset_index(drop=True), self.meta, proven)
        cut.whole = self.whole or self
        return cut

    @property
    def clean_accuracy(self) -> Accuracy:
        """Accuracy without an attack."""
        clean = self.table.drop_duplicates("index")["clean"]
        return Accuracy(int(clean.sum()), len(clean))

    def accuracy(
        self, *, norm: str = "linf", eps: float, attack: str | None = None, knowledge: str = "adaptive"
    ) -> Accuracy:
        """Return the share of examples without a known adversarial example within `eps`.

        Args:
            norm, eps: Budget, "linf" or "l2" and pixel units, at which attacks were run.
            attack: One attack; None takes the per-example worst case over all, as `worst_case` does.
            knowledge: "greybox", "adaptive" or "blackbox".

        Raises:
            EvaluationError: No attack ran at that budget, so the accuracy there would be an overestimate.
        """
        names = self.named(attack, knowledge)
        if not {*names}.intersection(self.rests_on(norm=norm, eps=eps, knowledge=knowledge)):
            budgets = {n: ", ".join(map(budget_text, self.budgets(n, knowledge))) or "any" for n in names}
            held = "; ".join(f"{n}: {self.norm_of(n)} {there}" for n, there in budgets.items())
            raise EvaluationError(
                f"nothing was attacked at {norm} eps {budget_text(eps)}; ask for a budget that was ({held})"
            )
        robust = self.reach(attack, distance=norm, knowledge=knowledge) > rounded_up(eps, norm)
        return Accuracy(int(robust.sum()), len(robust))

    def worst_case(self, *, norm: str = "linf", eps: float, knowledge: str = "adaptive") -> Accuracy:
        """Return the share of examples that no attack broke within `eps`; "adaptive" includes less knowledge."""
        return self.accuracy(norm=norm, eps=eps, knowledge=knowledge)

    def least_distances(
        self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive"
    ) -> np.ndarray:
        """Return the distance of each example's nearest known adversarial example: (n,), by example number.

        Args:
            attack: One attack, or None for all that ran with this knowledge.
            distance: "l0", "l1", "l2" or "linf", in pixel units; may differ from the norm of the attack's budget.
            knowledge: "greybox", "adaptive" or "blackbox".

        Returns:
            Distances, inf where no adversarial example is known.
        """
        if distance not in DISTANCES:
            raise EvaluationError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        each = [self._nearest_of(name, knowledge, distance) for name in self.named(attack, knowledge)]
        reach = each[0] if len(each) == 1 else pd.concat(each).groupby(level=0).min()
        return reach.to_numpy(copy=True)

    def farthest(self, attack: str, *, distance: str = "l2", knowledge: str = "adaptive") -> float:
        """Return the largest distance among an attack's results, failed attempts included; NaN if none was needed."""
        rows = self.rows(attack, knowledge)
        return float(rows.loc[rows["clean"], distance].max())

    def reach(self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive") -> np.ndarray:
        """Return `least_distances`; for all attacks (None), "adaptive" includes those with less knowledge."""
        reach = self.least_distances(attack, distance=distance, knowledge=knowledge)
        if attack is None and knowledge == "adaptive":
            others = dict.fromkeys(k for _, k in self.runs if k != knowledge)
            reach = np.min([reach, *(self.least_distances(distance=distance, knowledge=k) for k in others)], axis=0)
        return reach

    def _warn_of_overstatement(self, attack: str | None, distance: str, knowledge: str) -> None:
        if attack is None:
            here = [name for name in self.named(None, knowledge) if self.norm_of(name) == distance]
            if distance == "l2" and all(self.budgets(name, knowledge) for name in here):
                warnings.warn(_OVERSTATES, stacklevel=3)
            elif not here:
                warnings.warn(_NOT_SEARCHED.format(distance=distance), stacklevel=3)

    def curve(
        self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive",
        at: Iterable[float] | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Return accuracy against distance, which never rises.

        Args:
            attack, distance, knowledge: As for `reach`.
            at: Distances to read the curve at; None takes 0 and every distance at which an example breaks.

        Returns:
            Columns `distance`, `accuracy`, `low`, `high` (Wilson 95 %). The accuracy of a row is the share of examples
            not broken within that distance, up to rounding (1e-6) as in `accuracy`.
        """
        self._warn_of_overstatement(attack, distance, knowledge)
        reach = np.sort(self.reach(attack, distance=distance, knowledge=knowledge))
        grid = np.unique(np.append(reach[np.isfinite(reach)], 0.0)) if at is None else np.asarray(list(at), dtype=float)
        broken = np.searchsorted(reach, rounded_up(grid, distance), side="right")
        accuracies = [Accuracy(len(reach) - int(b), len(reach)) for b in broken]
        rows = [(d, float(a), *a.interval) for d, a in zip(grid, accuracies, strict=True)]
        return pd.DataFrame(rows, columns=["distance", "accuracy", "low", "high"], dtype=float)

    def median_distance(self, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive") -> float:
        """Return the median of `reach` over the correctly classified examples; inf if most are robust."""
        self._warn_of_overstatement(attack, distance, knowledge)
        reach = self.reach(attack, distance=distance, knowledge=knowledge)
        rows = pd.concat([self.rows(name, knowledge) for name in self.named(attack, knowledge)])
        reach = reach[rows.groupby("index")["clean"].first().to_numpy()]
        # method="lower" of an infinite list: interpolating between a number and inf would give NaN.
        return float(np.quantile(reach, 0.5, method="lower")) if len(reach) else float("nan")

    def passes(self, attack: str, *, eps: float | None = None, knowledge: str = "adaptive") -> float:
        """Return the mean forward + backward passes per example, of all budgets or of one."""
        rows = self.rows(attack, knowledge)
        if eps is not None:
            rows = rows[(rows["eps"] - eps).abs() <= TOLERANCE]
        return float((rows["forwards"] + rows["backwards"]).sum() / self.n)

    def seconds(self, label: str) -> float | None:
        """Return how long an attack, by its `label`, or a certificate took; None if that is not known.

        It is the time on all the examples, of every budget and of all processes together.
        """
        return None if self.whole is not None else (self.meta.get("seconds") or {}).get(label)

    def to_frame(self) -> pd.DataFrame:
        """Return a copy of the table."""
        return self.table.copy()

    def save(self, folder: str | Path) -> Path:
        """Write `examples.parquet` and `evaluation.json`, and rename a verdict there that judged another table."""
        set_aside(Path(folder), self)
        write_table(Path(folder), self.table, self.meta)
        if self.certificates is not None:
            self.certificates.save(Path(folder))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what `save` wrote, from the evaluation folder or the run folder above it.

        Raises:
            EvaluationError: There is no table, or it is damaged, of a newer version or lacks columns.
        """
        return cls._distinct(*read_table(Path(folder)), Certificates.load(Path(folder)))

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray], meta: dict[str, Any]) -> Evaluation:
        """Make an evaluation of whole columns, with the rows sorted by example and each distinct image once."""
        columns, certificates = apart(columns)
        kinds = COLUMNS | ({IMAGE: "int64"} if IMAGE in columns else {})
        table = pd.DataFrame({name: pd.Series(columns[name]).astype(kind) for name, kind in kinds.items()})
        order = table.index[np.argsort(table["index"].to_numpy(), kind="stable")]
        return cls._distinct(table.loc[order].reset_index(drop=True), meta, certificates)

    @classmethod
    def _distinct(cls, table: pd.DataFrame, meta: dict[str, Any], certificates: Certificates | None) -> Evaluation:
        table, copies = without_copies(table)
        if not copies:
            return cls(table, meta, certificates)
        certificates = None if certificates is None else certificates.on(table["index"].unique())
        found = cls(table, {**meta, "copies": copies + int(meta.get("copies") or 0)}, certificates)
        what = f"{copies} of {found.n + copies} test images are copies of others; each image counts once"
        warnings.warn(f"{what}, so n is {found.n}", stacklevel=4)
        return found
