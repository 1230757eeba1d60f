"""AttackSweep: attack the test split with every configured attack, and keep the result of each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from robustlit.attacks import Attack
from robustlit.evaluation import Sweep
from robustlit.evaluation.batches import examples_of
from robustlit.evaluation.sweep import Columns, as_evaluation, gathered
from robustlit.figures.run import write_evaluation
from robustlit.results import Evaluation
from robustlit.tracking.evaluation import log_evaluation
from robustlit.training import load_classifier
from robustlit.training.blackbox import distil_small_cnn

from .progress import Progress


class AttackSweep(pl.Callback):
    """Run a sweep over every test batch; gather, write, draw and log it once at the end.

    It writes the per-example table, the curves (CSV, PNG, SVG) and, where several kinds of knowledge ran, a figure for
    each attack by what the attacker knew; a logger gets the same curves and numbers. Several processes share the
    batches: the table is the same as from one process, as each batch is attacked as a whole and draws depend on the
    example alone. On Ctrl-C the finished batches are kept and marked as incomplete.

    Args:
        attacks: Name -> attack.
        grid: Norm -> budgets in pixel units, beside each attack's own eps.
        knowledge: Any of "greybox", "adaptive", "blackbox".
        seed: Seed of the random draws.
        substitute: For "blackbox", the checkpoint or run folder of a net that answers as the attacked one does. None
            distils a `SmallCNN` from its answers to `substitute_images` training images, once, before the first batch.
        folder: Where to write; None writes nothing.
        curve_l2, curve_linf: Largest distance of the logged curves; the same in all runs that are compared.

    Attributes:
        evaluation: On the main process after the test, the Evaluation.
        write_error: The error that kept a file from being written, if any; what was computed is in `evaluation`.
    """

    def __init__(
        self, attacks: Mapping[str, Attack], *, grid: Mapping[str, Sequence[float]] | None = None,
        knowledge: Sequence[str] = ("adaptive",), seed: int = 0, substitute: str | Path | None = None,
        substitute_images: int = 10_000, folder: str | Path | None = None, curve_l2: float = 10.0,
        curve_linf: float = 1.0,
    ) -> None:  # fmt: skip
        self.sweep = Sweep(dict(attacks), dict(grid or {}), tuple(knowledge), seed)
        if substitute is not None:
            self.sweep.substitute = load_classifier(substitute)[0]
        self.substitute_images = substitute_images
        self.folder = None if folder is None else Path(folder)
        self.curve_ends = {"l2": curve_l2, "linf": curve_linf}
        self.evaluation: Evaluation | None = None
        self.write_error: OSError | None = None
        self._parts: list[Columns] = []
        self._substitute: dict[str, Any] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the results of an earlier test, and distil a substitute where one is needed."""
        if len(trainer.num_test_batches) > 1:
            raise ValueError("AttackSweep takes one test loader: in several, examples of one number would be mixed up")
        self.evaluation, self.write_error, self._parts = None, None, []
        if self.sweep.needs_substitute:
            made = distil_small_cnn(trainer, pl_module, self.substitute_images, self.sweep.seed)
            if made is None:
                raise ValueError(
                    'knowledge "blackbox" distils a substitute only in one process and on a DataModule of '
                    "robustlit.data; elsewhere give one: substitute=CHECKPOINT"
                )
            self.sweep.substitute = made.net
            self._substitute = {"distilled with queries": made.queries, "agreement": round(made.agreement, 4)}
        elif self.sweep.substitute is not None:
            self.sweep.substitute.to(pl_module.device)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Sequence[Tensor], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Attack the batch."""
        x, y = batch[0], batch[1]
        if len(batch) > 2:
            index = batch[2]
        elif trainer.world_size == 1:
            index = torch.arange(len(y), device=y.device) + (self._parts[-1]["index"].max() + 1 if self._parts else 0)
        else:
            raise ValueError(
                "with several processes the test loader must yield (x, y, index), so that no example is counted "
                "twice; use a DataModule of robustlit.data"
            )
        bar = trainer.progress_bar_callback
        total = float(trainer.num_test_batches[dataloader_idx])  # infinite where the loader has no length

        def report(name: str, share: float) -> None:
            if isinstance(bar, Progress):
                bar.sweep_progress(name, (batch_idx + share) / total)

        self._parts.append(self.sweep.attack_batch(pl_module.net, x, y, index, report))  # type: ignore[arg-type]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather, write, draw and log."""
        parts = gathered(self._parts, trainer.world_size)
        if trainer.is_global_zero:
            self._finish(trainer, parts, {"complete": True})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the finished part of a sweep that is cut short."""
        if trainer.testing and trainer.is_global_zero and self._parts and self.evaluation is None:
            loader: Any = trainer.test_dataloaders
            examples = examples_of(loader)
            whole = examples is not None and len(loader) == trainer.num_test_batches[0]  # else a limit hides how many
            self._finish(trainer, self._parts, {"complete": False, "meant": examples if whole else None})

    def _finish(self, trainer: pl.Trainer, parts: list[Columns], coverage: dict[str, Any]) -> None:
        meta = self.sweep.meta() | ({"substitute": self._substitute} if self._substitute else {})
        self.evaluation = as_evaluation(parts, {**meta, **coverage})
        if self.folder is not None:
            try:
                write_evaluation(self.evaluation, self.folder, self.curve_ends)
            except OSError as error:
                self.write_error = error
                rank_zero_warn(f"could not write the evaluation to {self.folder}: {error}")
        for logger in trainer.loggers:
            log_evaluation(logger, self.evaluation, self.curve_ends)
