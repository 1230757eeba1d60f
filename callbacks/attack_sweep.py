"""AttackSweep: attack the test split with every configured attack, and keep the result of each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from robustlit.attacks import Attack
from robustlit.certify import Certificate
from robustlit.checks import as_names, check_count
from robustlit.data.base import ClassificationData
from robustlit.evaluation import Sweep
from robustlit.evaluation.batches import check_numbers, class_names_of, coverage, examples_of, split_size
from robustlit.evaluation.columns import Columns, as_evaluation, gathered
from robustlit.evaluation.fingerprint import fingerprint
from robustlit.evaluation.on_all import FOLDER as ALL_IMAGES
from robustlit.evaluation.on_all import OnAll, is_first, known_names, names_on_all
from robustlit.evaluation.parts import FOLDER, Parts
from robustlit.figures.run import write_evaluation
from robustlit.processes import Guard
from robustlit.results import Evaluation
from robustlit.threat import check_grid
from robustlit.tracking.console import say
from robustlit.tracking.evaluation import log_evaluation
from robustlit.training import load_classifier
from robustlit.training.blackbox import distil_small_cnn
from robustlit.training.finite import GuardedTraining
from robustlit.training.substitute import Distilled

from .progress import sweep_report
from .save_on_interrupt import SaveOnInterrupt


class AttackSweep(pl.Callback):
    """Run a sweep over every test batch; gather, write, draw and log it once at the end.

    It writes the per-example table, the curves (CSV, PNG, SVG) and, where several kinds of knowledge ran, a figure for
    each attack by what the attacker knew; a logger gets the same curves and numbers. Several processes share the
    batches: the table is the same as from one process, as each batch is attacked as a whole and draws depend on the
    example alone. On a signal (see `SaveOnInterrupt`) the finished batches are kept and marked as incomplete. Until the
    test has ended each finished batch also lies in a file (`parts/` in the folder), and the same test in the same
    folder, by any number of processes, attacks only what is left (see `robustlit.evaluation.parts`).

    Args:
        attacks: Name -> attack.
        grid: Norm -> budgets in pixel units, beside each attack's own eps.
        knowledge: Any of "greybox", "adaptive", "blackbox".
        seed: Seed of the random draws.
        substitute: For "blackbox", the checkpoint or run folder of a net that answers as the attacked one does. None
            distils a `SmallCNN` from its answers to `substitute_images` training images, once, before the first batch.
        folder: Where to write; None writes nothing.
        curve_l2, curve_linf: Largest distance of the logged curves; the same in all runs that are compared.
        certificates: Name -> certificate: what is proven of the same images, beside the attacks.
        images: Run the sweep on this many test images: those that `test_size=images` of a DataModule of
            `robustlit.data` takes. Their batches then come first. None, or a loader from elsewhere: on all images.
        on_all: Names of attacks, at least one, and certificates that also run on all the other test images, at their
            own eps. A second table, of all images, is written to `all_images/` in the folder.
        own_eps: Names of attacks that run at their own eps only, not at the budgets of `grid`. A name that
            is no attack's is left out; one in `on_all` that nothing has, with a warning.

    Attributes:
        evaluation: On the main process after the test, the Evaluation.
        all_images: Likewise the Evaluation of `on_all`, None where there are no further images.
        save_adversarials: Also write the adversarial examples, see `Adversarials`.
        keeps_parts: Leave the files of the finished batches after the test; `remove_parts` removes them.
        seconds_before: How long the batches took that an earlier test attacked.
        write_error: The error that kept a file from being written, if any; what was computed is in `evaluation`.
    """

    def __init__(
        self, attacks: Mapping[str, Attack], *, grid: Mapping[str, float | Sequence[float]] | None = None,
        knowledge: str | Sequence[str] | None = ("adaptive",), seed: int = 0, substitute: str | Path | None = None,
        substitute_images: int = 10_000, folder: str | Path | None = None, curve_l2: float = 10.0,
        curve_linf: float = 1.0, certificates: Mapping[str, Certificate] | None = None, images: int | None = None,
        on_all: str | Sequence[str] | None = (), own_eps: str | Sequence[str] | None = (),
    ) -> None:  # fmt: skip
        attacks, proofs = dict(attacks or {}), dict(certificates or {})
        self.sweep = Sweep(
            attacks, check_grid(grid), knowledge or (), seed, certificates=proofs,
            own_eps=known_names(as_names(own_eps), "own_eps", attacks, matters=False),
        )  # fmt: skip
        if images is not None:
            check_count(images, "images")
        self.images, self.on_all = images, names_on_all(as_names(on_all), attacks, proofs)
        if substitute is not None:
            self.sweep.substitute = load_classifier(substitute)[0]
        self.substitute_images = substitute_images
        self.folder = None if folder is None else Path(folder)
        self.curve_ends = {"l2": curve_l2, "linf": curve_linf}
        self.keeps_parts = self.save_adversarials = False
        self.evaluation: Evaluation | None = None
        self.all_images: Evaluation | None = None
        self.write_error: OSError | None = None
        self._parts: list[Columns] = []
        self._numbers: set[int] = set()  # of the examples so far
        self._evaluated = self._all = np.empty(0, dtype=np.int64)  # numbers of both tables, copies of others too
        self._first: Tensor | None = None  # numbers of the images that the whole sweep runs on; None: all do
        self._others: OnAll | None = None
        self._attacked = 0  # images, by this process
        self._kept: Parts | None = None
        self._kept_substitute: Path | None = None
        self._substitute: dict[str, Any] = {}
        self._guard: Guard | None = None
        self._cut = False  # by a signal

    @property
    def seconds_before(self) -> float:
        """See the class."""
        return sum(kept.seconds for kept in (self._kept, self._others) if kept is not None)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the images that the whole sweep runs on come first."""
        self._first, data = None, getattr(trainer, "datamodule", None)
        if stage == "test" and self.images is not None and isinstance(data, ClassificationData):
            first = data.put_first(self.images)
            self._first = first if len(first) < len(data.test_indices) else None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the results of an earlier test, and distil a substitute where one is needed."""
        if len(trainer.num_test_batches) > 1:
            raise ValueError("AttackSweep takes one test loader: in several, examples of one number would be mixed up")
        self.evaluation, self.all_images, self.write_error = None, None, None
        self._parts, self._numbers, self._attacked, self._others = [], set(), 0, None
        self._guard, self._cut = SaveOnInterrupt.guard_of(trainer), False
        if self.sweep.needs_substitute:
            with self._interruptible():
                made = self._distilled(trainer, pl_module)
            if made is None:
                raise ValueError(
                    'knowledge "blackbox" distils a substitute only in one process and on a DataModule of '
                    "robustlit.data; elsewhere give one: substitute=CHECKPOINT"
                )
            self.sweep.substitute = made.net
            self._substitute = {"distilled with queries": made.queries, "agreement": round(made.agreement, 4)}
        elif self.sweep.substitute is not None:
            self.sweep.substitute.to(pl_module.device)
        net: Any = pl_module.net
        examples = self._meant or examples_of(trainer.test_dataloaders)
        self._kept = Parts(
            self.sweep, net, self.folder, examples=examples, note=say if self.save_adversarials else None
        )  # fmt: skip
        batches = torch.tensor(float(trainer.num_test_batches[0]), device=pl_module.device)
        number = float(trainer.strategy.reduce(batches, reduce_op="sum"))
        lines = self._kept.notes(None if self._meant else number)
        if self._meant and any(name in self.sweep.named for name in self.on_all):
            self._others = OnAll(self.sweep, net, self.folder, self.on_all)
            lines += self._others.notes()
        for line in lines:
            say(line)

    @property
    def _meant(self) -> int | None:
        """Number of images that the whole sweep runs on, where that is not all; else None."""
        return len(self._first) if self._first is not None else None

    @property
    def _other_parts(self) -> list[Columns]:
        """Rows of the other images so far."""
        return self._others.parts if self._others is not None else []

    def _distilled(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Distilled | None:
        """Return the substitute that an earlier test, which was stopped, distilled from this net, or a new one."""
        data: Any = getattr(trainer, "datamodule", None)
        if self.folder is not None and hasattr(data, "tensors"):
            images = data.tensors("train", self.substitute_images)[0]
            key = fingerprint(pl_module.net, images, self.sweep.seed)
            self._kept_substitute = self.folder / FOLDER / f"substitute-{key}.pt"
        seed, kept = self.sweep.seed, self._kept_substitute
        return distil_small_cnn(trainer, pl_module, self.substitute_images, seed, kept)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Sequence[Tensor], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Attack the batch."""
        x, y = pl_module.pair((*batch,)) if isinstance(pl_module, GuardedTraining) else (batch[0], batch[1])
        if len(batch) > 2:
            index = batch[2]
            check_numbers(index, len(y), self._numbers)
        elif trainer.world_size == 1:
            index = torch.arange(len(y), device=y.device) + (self._parts[-1]["index"].max() + 1 if self._parts else 0)
        else:
            raise ValueError(
                "with several processes the test loader must yield (x, y, index), so that no example is counted "
                "twice; use a DataModule of robustlit.data"
            )
        try:
            with self._interruptible():
                self._attack(trainer, (x, y, index), batch_idx)
        except SystemExit:
            self._cut = True
            raise StopIteration from None  # ends Lightning's loop over the batches

    def _attack(self, trainer: pl.Trainer, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Run the whole sweep on the images that it is meant for, and on the others what runs on all images."""
        first = is_first(batch[2], self._first)
        for kept, parts, rows in ((self._kept, self._parts, first), (self._others, self._other_parts, ~first)):
            if kept is None or not rows.any():
                continue
            x, y, index = batch if rows.all() else (part[rows] for part in batch)
            others = kept is self._others
            start, step = self._shares(trainer, batch_idx, len(y), others=others)
            report = sweep_report(trainer.progress_bar_callback, start, step, others=others)
            parts.append(kept.attack_batch(x, y, index, report))
            self._attacked += len(y)

    def _shares(self, trainer: Any, batch_idx: int, count: int, *, others: bool) -> tuple[float, float]:
        """Return the share of the images that was attacked before, and that of the next `count`.

        The first images and the others are two parts of the sweep, and each goes from 0 to 1.
        """
        if not self._meant:
            batches = float(trainer.num_test_batches[0])  # infinite where the loader has no length
            return batch_idx / batches, 1 / batches
        first, every = (n / trainer.world_size for n in (self._meant, len(trainer.datamodule.test_indices)))
        start, number = (first, every - first) if others else (0.0, first)
        return (self._attacked - start) / number, count / number

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the other processes, before Lightning's first collective."""
        if self._guard is not None:
            self._cut = self._guard.all_done(self._cut)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather, write, draw and log; leave if a signal cut the sweep short."""
        parts = gathered(self._parts, trainer.world_size)
        others = gathered(self._other_parts, trainer.world_size)
        if trainer.is_global_zero and parts:
            self._finish(trainer, parts, others, cut=self._cut)
        if self._cut and self._guard is not None:
            self._guard.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the finished part of a sweep that is cut short."""
        if trainer.testing and trainer.is_global_zero and self._parts and self.evaluation is None:
            self._finish(trainer, self._parts, self._other_parts, cut=True)

    def _interruptible(self) -> AbstractContextManager[None]:
        return nullcontext() if self._guard is None else self._guard.interruptible()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the files of the finished batches, once every callback is done with the table."""
        if stage == "test" and not self.keeps_parts:
            self.remove_parts()

    def remove_parts(self) -> None:
        """Remove the files of the finished batches, if the table holds them all."""
        if self.evaluation is None or self.write_error is not None:
            return
        lines: list[str] = []
        if self.evaluation.complete:
            assert self._kept is not None
            with suppress(OSError):
                if self._kept_substitute is not None:
                    self._kept_substitute.unlink(missing_ok=True)
            lines += self._kept.remove(self._evaluated)
        if self._others is not None and self.all_images is not None and self.all_images.complete:
            lines += self._others.remove(self._all)
        for line in lines:
            say(line)

    def _finish(self, trainer: pl.Trainer, parts: list[Columns], others: list[Columns], *, cut: bool) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        named = class_names_of(data) or class_names_of(trainer.test_dataloaders)
        about = {**named, **({"substitute": self._substitute} if self._substitute else {}), "of": split_size(data)}

        def evaluation(sweep: Sweep, columns: list[Columns], meant: int | None) -> tuple[Evaluation, np.ndarray]:
            numbers = np.unique(np.concatenate([part["index"] for part in columns]))
            done = coverage(trainer.test_dataloaders, trainer.num_test_batches[0], len(numbers), meant, cut=cut)
            return as_evaluation(columns, {**sweep.meta(), **about, **done}), numbers

        self.evaluation, self._evaluated = evaluation(self.sweep, parts, self._meant)
        if self._others is not None and others:
            everything = [*map(self._others.rows_of, parts), *others]
            self.all_images, self._all = evaluation(self._others.sweep, everything, len(data.test_indices))
        if self.folder is not None:
            try:
                write_evaluation(self.evaluation, self.folder, self.curve_ends)
                if self.all_images is not None:
                    self.all_images.save(self.folder / ALL_IMAGES)
            except OSError as error:
                self.write_error = error
                rank_zero_warn(f"could not write the evaluation: {error}")
        for logger in trainer.loggers:
            log_evaluation(logger, self.evaluation, self.curve_ends, self.all_images)


def sweep_before(callback: pl.Callback, trainer: pl.Trainer) -> AttackSweep | None:
    """Return the last `AttackSweep` before a callback of a Trainer, None without one."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in reversed(callbacks[: callbacks.index(callback)]) if isinstance(c, AttackSweep)), None)
