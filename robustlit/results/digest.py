"""What tells one table of examples from another: a digest of its values, whoever wrote them and in which order."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from robustlit.results.table import COLUMNS, VERSION

_STORED = {"bool": "<u1", "int64": "<i8", "float64": "<f8"}
_KEY = ("index", "attack", "knowledge", "norm", "eps")  # which row it is


def digest(table: pd.DataFrame) -> str:
    """Digest of a table's contents: "v1:" and 64 hexadecimal digits, v1 being the version of the columns.

    It is made of the values of the known columns alone, so that neither the version of the library that wrote the file
    nor further columns, an index or the order of rows change it.

    Args:
        table: with the columns `COLUMNS`.
    """
    columns = {name: _plain(table[name], kind) for name, kind in COLUMNS.items()}
    order = np.lexsort([columns[name][1] for name in reversed(_KEY)])
    found = hashlib.sha256()
    for name, (words, values) in columns.items():
        for part in (name, *words):
            found.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(values[order]).data)
    return f"v{VERSION}:{found.hexdigest()}"


def _plain(column: pd.Series, kind: str) -> tuple[list[str], np.ndarray]:
    """A column as little-endian numbers; of text the different words, in order, and which of them each row has."""
    if kind == "str":
        codes, found = pd.factorize(column.astype(str))
        words = sorted(map(str, found))
        places = {word: place for place, word in enumerate(words)}
        return words, np.array([places[str(word)] for word in found], dtype="<i8")[codes]
    values = column.to_numpy(dtype=_STORED[kind])
    if kind == "float64":
        values = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN of the many, no -0.0
    return [], values
