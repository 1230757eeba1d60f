"""Keep the finished batches of a sweep, a file each, so that a sweep that was stopped goes on where it was."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustlit.attacks.losses import possible
from robustlit.attacks.victim import Victim
from robustlit.evaluation.adversarials import Adversarials
from robustlit.evaluation.columns import Columns
from robustlit.evaluation.fingerprint import fingerprint
from robustlit.evaluation.sweep import Report, Sweep
from robustlit.files import write_file
from robustlit.results.table import COLUMNS, IMAGE, SECONDS, VERSION, check_columns, digest

FOLDER = "parts"
_IMAGES = 8  # of a batch: their logits are kept in its file, and compared when it is read
_ROUNDING = 1e-2  # of the largest logit of an image, as between bf16 on two devices


class Parts:
    """Run a sweep batch by batch and keep what each batch gave, in a file of its own.

    A file's name holds two digests: of the sweep (the net's classes, weights and settings, attacks, grid, knowledge,
    seed, substitute, versions) and of the batch (images, classes, numbers). So a batch is taken from its file only
    where attacking it again would give the same rows, and any number of processes may share a folder. Not all that a
    net depends on can be digested (files, globals, objects of other libraries). So each file also holds the logits of
    its first images, and a batch is attacked again where the net gives others now.

    Args:
        sweep, model: What is run, and on which model, as `Sweep.attack_batch` takes them.
        folder: The evaluation's folder; the files lie in `parts/` in it. None keeps nothing.
        examples, note: With a `note`, the adversarial examples are kept as well, see `Adversarials`.

    Attributes:
        before: Number of batches of this sweep that were there at the start.
        seconds: How long the batches took that were taken from files.
    """

    def __init__(
        self, sweep: Sweep, model: nn.Module, folder: str | Path | None, *, examples: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        if note is not None and folder is None:
            raise ValueError("save_adversarials needs a folder to keep them in: folder=PATH")
        self.sweep, self.model = sweep, model
        self.folder = None if folder is None else Path(folder) / FOLDER
        self.seconds, self.before = 0.0, 0
        self._warned = False
        self.adversarials: Adversarials | None = None
        if self.folder is not None:
            about = (sweep.named, sweep.grid, tuple(sweep.knowledge), sweep.seed, sweep.substitute)
            further = [each for each in (sweep.certificates, sweep.own_eps) if each]
            self._sweep = fingerprint(version("robustlit"), VERSION, about, model, *further)
            if note is not None:
                self.adversarials = Adversarials(sweep, self._sweep, Path(folder), examples, note)  # type: ignore[arg-type]
            self.before = len([*self.folder.glob(f"{self._sweep}-*.parquet")])

    def notes(self, batches: float | None = None) -> list[str]:
        """Return a line on the batches that are there, of `batches` in all, and one on those of other sweeps."""
        if self.folder is None:
            return []
        lines = []
        if self.before:
            known = batches is not None and self.before <= batches < float("inf")
            lines.append(f"{self.before}{f' of {batches:.0f}' if known else ''} batches were attacked before")
        if others := len([*self.folder.glob("*.parquet")]) - self.before:
            what = "of another sweep (other weights, attacks, settings, seed or version)"
            lines.append(f"{self.folder} holds {others} finished batches {what}: they are not used, and stay there")
        return lines

    def attack_batch(self, x: Tensor, y: Tensor, index: Tensor, report: Report | None = None) -> Columns:
        """Return the rows of a batch, from its file or from `Sweep.attack_batch`; then they are written to the file."""
        if self.folder is None:
            return self.sweep.attack_batch(self.model, x, y, index, report)
        batch = fingerprint(x, y.long(), index.long())
        file, adversarials = self.folder / f"{self._sweep}-{batch}.parquet", self.adversarials
        there = adversarials is None or adversarials.holds(index, batch)
        if there and (kept := self._read(file, x, index)) is not None:
            if report is not None:
                report(self.sweep.jobs[-1][1], 1.0)
            return kept
        started = time.monotonic()
        keep = [] if adversarials is None else [adversarials.keeper(x, index, batch)]
        columns = self.sweep.attack_batch(self.model, x, y, index, report, *keep)
        self._write(file, columns, time.monotonic() - started, self._answers(x))
        return columns

    def _answers(self, x: Tensor) -> list[list[float]] | None:
        """Return the logits of the first images, None of a random model."""
        with Victim(self.model, x[:_IMAGES]) as victim:
            return None if victim.is_stochastic else victim.logits(x[:_IMAGES]).double().tolist()

    def remove(self, evaluated: Iterable[int]) -> list[str]:
        """Remove the files of this sweep; `evaluated` are the numbers of the examples that it attacked.

        Returns:
            A line where files stay, because their examples are not in the table or they cannot be removed.
        """
        if self.folder is None or not self.folder.is_dir():
            return []
        numbers = np.asarray(list(evaluated))
        stay = 0
        for file in self.folder.glob(f"*{self._sweep}-*"):
            try:
                kept = pd.read_parquet(file, columns=["index"]) if file.suffix == ".parquet" else None
                if kept is not None and not kept["index"].isin(numbers).all():
                    stay += 1
                    continue
            except Exception:  # a damaged file is of no use
                pass
            with suppress(OSError):
                file.unlink()
        with suppress(OSError):  # files of other sweeps are there
            self.folder.rmdir()
        return [f"{self.folder} keeps {stay} finished batches of this sweep on other examples"] if stay else []

    def _read(self, file: Path, x: Tensor, index: Tensor) -> Columns | None:
        """Return the rows in a file, None where there is none, it is damaged, or the net has changed since."""
        if not file.is_file():
            return None
        try:
            table = pd.read_parquet(file)
            check_columns(table)
            whole = table.attrs["digest"] == digest(table)
            seconds = float(table.attrs["seconds"])
            if not whole or {*table["index"]} != {*index.tolist()}:
                raise ValueError("its rows are not those that were written")
        except Exception as error:  # readers of damaged files raise many kinds
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"{file} is damaged ({reason}): its batch is attacked again", stacklevel=3)
            return None
        if not _agree(table.attrs.get("answers"), self._answers(x)):
            other = "is of a net that gave other logits (a random net that does not declare it gives others each time)"
            why = other if "answers" in table.attrs else "holds no logits that could be compared with the net's"
            warnings.warn(f"{file} {why}: its batch is attacked again", stacklevel=3)
            return None
        self.seconds += seconds
        return {name: table[name].to_numpy() for name in (*COLUMNS, IMAGE, SECONDS) if name in table}

    def _write(self, file: Path, columns: Columns, seconds: float, answers: list[list[float]] | None) -> None:
        kinds = COLUMNS | {IMAGE: "int64", SECONDS: "float64"}
        table = pd.DataFrame({name: pd.Series(columns[name]).astype(kind) for name, kind in kinds.items()})
        table.attrs = {"digest": digest(table), "seconds": round(seconds, 3), "answers": answers}
        try:
            write_file(file, table.to_parquet(index=False, write_page_checksum=True))
        except OSError as error:
            if not self._warned:
                self._warned = True
                what = "a sweep that is stopped could not go on from this batch"
                warnings.warn(f"could not keep a finished batch in {file.parent} ({error}): {what}", stacklevel=3)


def _agree(before: Sequence[Sequence[float]] | None, now: Sequence[Sequence[float]] | None) -> bool:
    """Return whether two lists of logits are alike up to rounding, as on another number of threads or device."""
    if before is None or now is None:
        return before is now
    a, b = (np.asarray(logits, dtype=np.float64) for logits in (before, now))
    if a.shape != b.shape:
        return False
    counted = possible(torch.from_numpy(b)).numpy() & np.isfinite(b)
    largest = np.abs(np.where(counted, b, 0)).max(1, keepdims=True, initial=0)
    return bool(np.isclose(a, b, rtol=0, atol=_ROUNDING * largest, equal_nan=True).all())
