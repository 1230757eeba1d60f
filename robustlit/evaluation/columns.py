"""The rows of an evaluation's table as columns: what a sweep fills batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustlit.results.certificates import CERTIFIED
from robustlit.results.evaluation import Evaluation
from robustlit.results.table import COLUMNS, IMAGE, SECONDS

Columns = dict[str, np.ndarray]


def image_digests(x: Tensor) -> np.ndarray:
    """Return a number for each image (B, C, H, W): int64 (B,), equal for images with equal pixels at 8 bits."""
    pixels = (x.detach().cpu().float() * 255).round().to(torch.uint8).flatten(1).numpy()
    shape = str(tuple(x.shape[1:])).encode()
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8, key=shape).digest() for row in pixels)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the rows of all parts."""
    # Batches that an older version finished, and kept, have no digests of their images and no seconds.
    names = [*COLUMNS, *(name for name in (IMAGE, SECONDS) if all(name in part for part in parts))]
    return {c: np.concatenate([p[c] for p in parts]) for c in names}


def as_evaluation(parts: Sequence[Columns], meta: dict[str, object]) -> Evaluation:
    """Return the evaluation of the rows of all parts; raise a ValueError if there are none."""
    if not parts:
        raise ValueError("the data holds no examples to attack")
    columns = joined(parts)
    spent = {"seconds": _by_attack(columns)} if SECONDS in columns else {}
    return Evaluation.from_columns({name: v for name, v in columns.items() if name != SECONDS}, meta | spent)


def add_seconds(parts: Sequence[Columns], seconds: float) -> None:
    """Divide the time of an attack on a batch among its rows, by the passes of each."""
    passes = [part["forwards"] + part["backwards"] for part in parts]
    rows, total = sum(map(len, passes)), sum(int(each.sum()) for each in passes)
    for part, each in zip(parts, passes, strict=True):
        part[SECONDS] = seconds * (each / total if total else np.full(len(each), 1 / rows))


def _by_attack(columns: Columns) -> dict[str, float]:
    """Return how long each attack and each certificate took, on all its images and at all its budgets together."""
    rows = pd.DataFrame({name: columns[name] for name in ("attack", "knowledge", SECONDS)})
    sums = rows.groupby(["attack", "knowledge"], sort=False)[SECONDS].sum()
    return {
        name if knowledge == CERTIFIED else Evaluation.label(name, knowledge): round(float(seconds), 3)
        for (name, knowledge), seconds in sums.items()
    }


def gathered(parts: Sequence[Columns], processes: int) -> list[Columns]:
    """Return the parts of all processes, in the order of their ranks; every process must call it."""
    if processes == 1:
        return list(parts)
    of_ranks: list[list[Columns]] = [[] for _ in range(processes)]
    torch.distributed.all_gather_object(of_ranks, list(parts))
    return [part for of_rank in of_ranks for part in of_rank]
