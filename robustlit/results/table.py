"""The table of examples: its columns, its version, and how it lies on disk."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS: dict[str, str] = {
    "index": "int64",
    "label": "int64",
    "clean": "bool",
    "attack": "str",
    "knowledge": "str",
    "norm": "str",
    "eps": "float64",
    "success": "bool",
    "prediction": "int64",
    "l0": "float64",
    "l1": "float64",
    "l2": "float64",
    "linf": "float64",
    "forwards": "int64",
    "backwards": "int64",
}
DISTANCES = ("l0", "l1", "l2", "linf")
KNOWLEDGE = ("greybox", "adaptive", "blackbox")
TOLERANCE = 1e-6  # that of robustlit.threat, said again as reading a table needs no torch
VERSION = 1  # of the columns and their meaning; goes up with either
TABLE, META = "examples.parquet", "evaluation.json"
_KINDS = {"bool": "b", "int64": "iu", "float64": "fiu"}
_AGAIN = "evaluate the checkpoint again (robustlit evaluate CHECKPOINT)"


class EvaluationError(RuntimeError):
    """An evaluation that cannot be read, or that was asked for what it does not hold."""


def check_columns(table: pd.DataFrame) -> None:
    """Refuses a table that lacks columns.

    Raises:
        EvaluationError: it does.
    """
    missing = [c for c in COLUMNS if c not in table.columns]
    if missing:
        raise EvaluationError(f"the table of examples lacks the columns {', '.join(missing)}")


def write_table(folder: Path, table: pd.DataFrame, meta: dict[str, Any]) -> None:
    """Writes `examples.parquet` and `evaluation.json` into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / TABLE, index=False)
    (folder / META).write_text(json.dumps({"table": VERSION, **meta}, indent=2) + "\n")


def read_table(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Reads what `write_table` wrote, from the evaluation folder or the run folder above it.

    A table alone, without `evaluation.json`, is read with a warning: nobody knows whether it is whole.

    Raises:
        EvaluationError: nothing there; a file that is damaged, of a newer version, or that lacks columns.
    """
    if not (folder / TABLE).is_file() and (folder / "evaluation" / TABLE).is_file():
        folder = folder / "evaluation"
    if not (folder / TABLE).is_file():
        raise EvaluationError(f"there is no {TABLE} in {folder}; give a run folder (runs/NAME) that was evaluated")
    meta = _read_meta(folder)
    try:
        table = pd.read_parquet(folder / TABLE)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read the evaluation in {folder}: {error}; {_AGAIN}") from error
    try:
        check_columns(table)
    except EvaluationError as error:
        raise EvaluationError(f"{folder}: {error}; it is of another version, or not of robustlit: {_AGAIN}") from error
    if not len(table):
        raise EvaluationError(f"{folder}: the table of examples is empty; {_AGAIN}")
    for column, kind in COLUMNS.items():
        if kind in _KINDS and table[column].dtype.kind not in _KINDS[kind]:
            found = table[column].dtype
            raise EvaluationError(f"{folder}: the column {column!r} must hold {kind}, it holds {found}; {_AGAIN}")
    return table, meta


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        warnings.warn(
            f"there is no {META} beside {folder / TABLE}: it is not known whether the evaluation is complete",
            stacklevel=4,
        )
        return {}
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read the evaluation in {folder}: {META}: {error}; {_AGAIN}") from error
    if not isinstance(meta, dict):
        raise EvaluationError(f"{path} is not of robustlit: it holds no JSON object; {_AGAIN}")
    version = meta.pop("table", VERSION)  # the first files said none
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise EvaluationError(f"{path} is damaged: its table must be of version 1 or more, got {version!r}; {_AGAIN}")
    if version > VERSION:
        raise EvaluationError(
            f"{path} says that its table is of version {version}, and this robustlit reads up to {VERSION}: update "
            f"robustlit, or {_AGAIN}"
        )
    for name, kinds in (("complete", (bool, type(None))), ("meant", (int, type(None)))):
        if not isinstance(meta.get(name), kinds):
            raise EvaluationError(f"{path} is damaged: {name} cannot be {meta[name]!r}; {_AGAIN}")
    return meta
