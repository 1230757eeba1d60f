"""The table of examples: its columns, its version, its files, and the digest by which a verdict recognises it."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustlit.files import write_file
from robustlit.results.files import read_json

COLUMNS: dict[str, str] = {
    "index": "int64", "label": "int64", "clean": "bool", "attack": "str", "knowledge": "str", "norm": "str",
    "eps": "float64", "success": "bool", "prediction": "int64", "l0": "float64", "l1": "float64", "l2": "float64",
    "linf": "float64", "forwards": "int64", "backwards": "int64",
}  # fmt: skip
# A digest of the image (`evaluation.columns.image_digests`), by which copies are noticed; older tables have none.
IMAGE = "image"
# A column of a sweep's rows, not of the table: the attack's time, by each row's passes. META holds the sum by attack.
SECONDS = "seconds"
DISTANCES = ("l0", "l1", "l2", "linf")
KNOWLEDGE = ("greybox", "adaptive", "blackbox")
VERSION = 1  # of the columns and their meaning; raised when either changes
TABLE, META = "examples.parquet", "evaluation.json"
FORMER_NAME, CURRENT_NAME = "ensemble", "worst_case"  # of WorstCase: tables written before the renaming hold the first
_MOST_ROWS, _MOST_BYTES = 50_000_000, 4 * 2**30  # ImageNet, 40 attacks and budgets: 2 million rows
_KINDS = {"bool": "b", "int64": "iu", "float64": "fiu"}
_STORED = {"bool": "<u1", "int64": "<i8", "float64": "<f8"}  # for the digest
_LONGEST = 200  # characters of another library's error
_KEY = ("index", "attack", "knowledge", "norm", "eps")  # identifies a row
_AGAIN = "evaluate the checkpoint again (robustlit evaluate CHECKPOINT)"


class EvaluationError(RuntimeError):
    """An evaluation cannot be read, or does not hold what was asked for."""


def rename(attack: str, old: str = FORMER_NAME, new: str = CURRENT_NAME) -> str:
    """Return the attack's name with `old` replaced by `new`, a number behind it kept ("ensemble-2")."""
    stem, dash, number = attack.partition("-")
    return f"{new}{dash}{number}" if stem == old and number.isdigit() == bool(dash) else attack


def check_columns(table: pd.DataFrame) -> None:
    """Raise an EvaluationError if columns are missing."""
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise EvaluationError(f"the table of examples lacks the columns {', '.join(missing)}")


def write_table(folder: Path, table: pd.DataFrame, meta: dict[str, Any]) -> None:
    """Write `examples.parquet` and `evaluation.json` into `folder`, which is created."""
    write_file(folder / TABLE, table.to_parquet(index=False, write_page_checksum=True))
    write_file(folder / META, json.dumps({"table": VERSION, **meta}, indent=2) + "\n")


def read_table(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read what `write_table` wrote, from the evaluation folder or the run folder above it, with a warning if in part.

    An attack that has been renamed since gets its current name.

    Raises:
        EvaluationError: There is no table, or it is damaged, empty, of a newer version or lacks columns.
    """
    if not (folder / TABLE).is_file() and (folder / "evaluation" / TABLE).is_file():
        folder = folder / "evaluation"
    if not (folder / TABLE).is_file():
        raise EvaluationError(f"there is no {TABLE} in {folder}; give a run folder (runs/NAME) that was evaluated")
    meta = _read_meta(folder)
    try:
        _check_size(folder / TABLE)
        table = pd.read_parquet(folder / TABLE, page_checksum_verification=True)
    except Exception as error:  # pyarrow and pandas raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise EvaluationError(f"cannot read the evaluation in {folder}: {reason}; {_AGAIN}") from error
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
        if kind == "str" and not table[column].map(type).eq(str).all():
            raise EvaluationError(f"{folder}: the column {column!r} must hold text in every row; {_AGAIN}")
    if IMAGE in table and table[IMAGE].dtype.kind not in "iu":
        raise EvaluationError(
            f"{folder}: the column {IMAGE!r} must hold int64, it holds {table[IMAGE].dtype}; {_AGAIN}"
        )
    return _with_current_names(table, meta)


def without_copies(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return a table with each image of a class once, and the number of copies that were left out.

    Of several copies the one that attacks broke most often is kept, then the first.
    """
    if IMAGE not in table or not table.drop_duplicates("index").duplicated([IMAGE, "label"]).any():
        return table, 0
    each = table.groupby("index").agg({IMAGE: "first", "label": "first", "success": "sum"}).reset_index()
    each = each.sort_values(["success", "index"], ascending=[False, True], kind="stable")
    copies = each.loc[each.duplicated([IMAGE, "label"]), "index"]
    return table[~table["index"].isin(copies)].reset_index(drop=True), len(copies)


def _check_size(file: Path) -> None:
    """Raise a ValueError for a table that unpacks to more than memory: repeated values take no room in the file."""
    import pyarrow.parquet as pq

    about = pq.read_metadata(file)
    size = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
    if about.num_rows > _MOST_ROWS or size > _MOST_BYTES:
        raise ValueError(f"it has {about.num_rows} rows of {size} bytes, more than {_MOST_ROWS} or {_MOST_BYTES}")


def _with_current_names(table: pd.DataFrame, meta: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Replace the former name of WorstCase, unless the table's author gave that name to another attack."""
    names = [str(name) for name in table["attack"].unique()]
    described = meta["attacks"] if isinstance(meta.get("attacks"), dict) else {}
    ours = [name for name in names if str(described.get(name, "WorstCase")).startswith("WorstCase")]
    renamed = {name: rename(name) for name in ours if rename(name) not in names}
    if not renamed:
        return table, meta
    table = table.assign(attack=table["attack"].map(lambda name: renamed.get(name, name)))
    return table, {**meta, "attacks": {renamed.get(name, name): text for name, text in described.items()}}


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        unknown = "it is not known whether the evaluation is complete"
        warnings.warn(f"there is no {META} beside {folder / TABLE}: {unknown}", stacklevel=4)
        return {}
    try:
        meta = read_json(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read the evaluation in {folder}: {META}: {error}; {_AGAIN}") from error
    if not isinstance(meta, dict):
        raise EvaluationError(f"{path} is not of robustlit: it holds no JSON object; {_AGAIN}")
    version = meta.pop("table", VERSION)  # the first files had no version
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise EvaluationError(f"{path} is damaged: its table must be of version 1 or more, got {version!r}; {_AGAIN}")
    if version > VERSION:
        newer = f"its table is of version {version}, and this robustlit reads up to {VERSION}"
        raise EvaluationError(f"{path}: {newer}: update robustlit, or {_AGAIN}")
    count = (int, type(None))
    for name, kinds in (("complete", (bool, type(None))), ("meant", count), ("of", count), ("copies", count)):
        if not isinstance(meta.get(name), kinds):
            raise EvaluationError(f"{path} is damaged: {name} cannot be {meta[name]!r}; {_AGAIN}")
    names = meta.get("class_names")
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise EvaluationError(f"{path} is damaged: class_names must be a list of text; {_AGAIN}")
    seconds = meta.get("seconds")
    if seconds is not None and not (isinstance(seconds, dict) and all(map(_is_duration, seconds.values()))):
        raise EvaluationError(f"{path} is damaged: seconds must hold a number for each attack; {_AGAIN}")
    return meta


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def digest(table: pd.DataFrame) -> str:
    """Return the digest of a table: "v1:" (the version of the columns) and 64 hexadecimal digits.

    It depends on the values of the known columns alone, not on the library that wrote the file, further columns or the
    order of rows. "ensemble" counts as "worst_case", its current name: verdicts lie beside tables for years. It begins
    with "v2:" for a table that has digests of its images.
    """
    kinds = COLUMNS | ({IMAGE: "int64"} if IMAGE in table else {})
    columns = {name: _plain(table[name], kind) for name, kind in kinds.items()}
    order = np.lexsort([columns[name][1] for name in reversed(_KEY)])
    found = hashlib.sha256()
    for name, (words, values) in columns.items():
        for part in (name, *words):
            found.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(values[order]).data)
    return f"v{VERSION + (IMAGE in table)}:{found.hexdigest()}"


def _plain(column: pd.Series, kind: str) -> tuple[list[str], np.ndarray]:
    """Return a column as little-endian numbers; text as its sorted distinct words and the number of each row's word."""
    if kind == "str":
        codes, found = pd.factorize(column.astype(str))
        words = [str(word) for word in found]
        former = [rename(word, CURRENT_NAME, FORMER_NAME) for word in words]
        words = former if len(set(former)) == len(former) else words
        places = {word: place for place, word in enumerate(sorted(words))}
        return sorted(words), np.array([places[word] for word in words], dtype="<i8")[codes]
    values = column.to_numpy(dtype=_STORED[kind])
    if kind == "float64":
        values = np.where(np.isnan(values), np.nan, values + 0.0)  # a single NaN, no -0.0
    return [], values
