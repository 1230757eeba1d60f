"""What certificates proved of each example: the lower side of every accuracy under attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustlit.checks import TOLERANCE
from robustlit.files import write_file
from robustlit.results.intervals import Accuracy
from robustlit.results.table import EvaluationError

TABLE = "certificates.parquet"
CERTIFIED = "certified"  # stands for the knowledge of an attacker in a sweep's columns: the rows are a certificate's
COLUMNS: dict[str, str] = {
    "index": "int64", "label": "int64", "clean": "bool", "certificate": "str", "norm": "str", "radius": "float64",
    "forwards": "int64", "backwards": "int64",
}  # fmt: skip
_RENAMED = {"attack": "certificate", "eps": "radius"}


def probability_note(settings: Iterable[str]) -> str:
    """Return what must stand beside certificates with these settings: nothing, or that each may be wrong."""
    random = any(text.startswith("RandomizedSmoothing") for text in settings)
    return " (of each image with probability 1 - alpha)" if random else ""


@dataclass
class Certificates:
    """One row per (example, certificate): `radius` is the largest budget in `norm` at which it is proven robust.

    `forwards` and `backwards` count the passes through the net. A misclassified example has `clean` False and the
    radius 0 here, and -inf in `radii`, because it is not robust even at eps 0.

    Args:
        table: The rows, with the columns `COLUMNS`; not to be changed.
    """

    table: pd.DataFrame

    def __post_init__(self) -> None:
        if missing := [c for c in COLUMNS if c not in self.table.columns]:
            raise EvaluationError(f"the table of certificates lacks the columns {', '.join(missing)}")

    @property
    def names(self) -> list[str]:
        """Names of the certificates, in the order in which they ran."""
        return [str(name) for name in self.table["certificate"].unique()]

    @property
    def norms(self) -> list[str]:
        """The norms in which something was certified."""
        return [str(norm) for norm in self.table["norm"].unique()]

    def norm_of(self, certificate: str) -> str:
        """Return the norm of a certificate."""
        return str(self._rows(certificate, None)["norm"].iloc[0])

    def radii(self, *, norm: str, certificate: str | None = None) -> pd.Series:
        """Return the largest radius that a certificate, or any (None), proved of each example, by its number.

        It is -inf for a misclassified example.

        Raises:
            EvaluationError: No such certificate ran in that norm.
        """
        rows = self._rows(certificate, norm)
        return rows["radius"].where(rows["clean"], -np.inf).groupby(rows["index"]).max()

    def accuracy(self, *, norm: str = "linf", eps: float, certificate: str | None = None) -> Accuracy:
        """Return the share of examples that are proven robust within `eps`, by a certificate or by any (None)."""
        radii = self.radii(norm=norm, certificate=certificate)
        return Accuracy(int((radii >= eps - 1e-3 * TOLERANCE).sum()), len(radii))

    def curve(self, *, norm: str = "linf", certificate: str | None = None) -> pd.DataFrame:
        """Return certified accuracy against distance: columns `distance`, `accuracy`, `low`, `high` (Wilson 95 %)."""
        radii = np.sort(self.radii(norm=norm, certificate=certificate).to_numpy())
        grid = np.unique(np.append(radii[np.isfinite(radii)], 0.0))
        shares = [Accuracy(len(radii) - int(b), len(radii)) for b in np.searchsorted(radii, grid)]
        rows = [(d, float(a), *a.interval) for d, a in zip(grid, shares, strict=True)]
        return pd.DataFrame(rows, columns=["distance", "accuracy", "low", "high"], dtype=float)

    def passes(self, certificate: str) -> float:
        """Return the mean forward + backward passes per example."""
        rows = self._rows(certificate, None)
        return float((rows["forwards"] + rows["backwards"]).mean())

    def on(self, index: Any) -> Certificates:
        """Return the certificates of the examples with the numbers in `index`."""
        return Certificates(self.table[self.table["index"].isin(index)].reset_index(drop=True))

    def save(self, folder: Path) -> None:
        """Write `certificates.parquet`."""
        write_file(folder / TABLE, self.table.to_parquet(index=False, write_page_checksum=True))

    @classmethod
    def load(cls, folder: Path) -> Certificates | None:
        """Read what `save` wrote, from the evaluation folder or the run folder above it; None where there is none."""
        file = next((f for f in (folder / TABLE, folder / "evaluation" / TABLE) if f.is_file()), None)
        if file is None:
            return None
        try:
            return cls(pd.read_parquet(file, page_checksum_verification=True))
        except Exception as error:  # pyarrow and pandas raise many kinds for a damaged file
            raise EvaluationError(f"cannot read {file}: {' '.join(str(error).split())[:200]}") from error

    def _rows(self, certificate: str | None, norm: str | None) -> pd.DataFrame:
        rows = self.table
        if certificate is not None:
            rows = rows[rows["certificate"] == certificate]
        if norm is not None:
            rows = rows[rows["norm"] == norm]
        if rows.empty:
            asked = f"{certificate or 'nothing'} was{'' if certificate is None else ' not'} certified"
            held = ", ".join(f"{name} ({self.norm_of(name)})" for name in self.names)
            raise EvaluationError(f"{asked}{'' if norm is None else f' in {norm}'}; there are {held}")
        return rows


def apart(columns: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Certificates | None]:
    """Return a sweep's columns without the rows of certificates, and these."""
    proven = np.asarray(columns["knowledge"]) == CERTIFIED
    if not proven.any():
        return dict(columns), None
    names = {_RENAMED.get(name, name): values[proven] for name, values in columns.items()}
    table = pd.DataFrame({name: pd.Series(names[name]).astype(kind) for name, kind in COLUMNS.items()})
    table = table.sort_values(["index"], kind="stable").reset_index(drop=True)
    return {name: values[~proven] for name, values in columns.items()}, Certificates(table)
