"""AttackSweep: attacks the test split with everything configured, keeps the result of every example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from robustlit.attacks import Attack
from robustlit.evaluation import Sweep
from robustlit.evaluation.evaluate import examples_of
from robustlit.evaluation.sweep import Columns, as_evaluation
from robustlit.figures import curves_csv, distance_grid, draw_run
from robustlit.models import SmallCNN
from robustlit.results import Evaluation
from robustlit.training import distil, load_classifier

from .log_evaluation import log_evaluation
from .progress import Progress


class AttackSweep(pl.Callback):
    """Runs a sweep over every test batch, gathers it once at the end, writes it, draws it and logs it.

    The per-example table, the curves (CSV, PNG, SVG), where several kinds of knowledge ran a figure for each attack by
    what the attacker knew, and, with a logger, the same curves and numbers there. Several processes share the batches:
    the table is the same as from one process, as each batch is attacked as a whole and draws depend on the example
    alone. On Ctrl-C the batches that were finished are kept and marked as incomplete.

    Args:
        attacks: name -> attack.
        grid: norm -> budgets in pixel units, beside each attack's own eps.
        knowledge: any of "greybox", "adaptive", "blackbox".
        seed: of the random draws.
        substitute: for "blackbox", the checkpoint or run folder of a net that answers as the attacked one does. None
            distils a `SmallCNN` from its answers to `substitute_images` training images, once, before the first batch.
        substitute_images: how many.
        folder: where to write; None writes nothing.
        curve_l2, curve_linf: the largest distance of the logged curves, the same for every run that is to be compared.

    Attributes:
        evaluation: on the main process after the test, the Evaluation.
        write_error: the error that kept a file from being written, if any; what was computed is in `evaluation`.
    """

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        *,
        grid: Mapping[str, Sequence[float]] | None = None,
        knowledge: Sequence[str] = ("adaptive",),
        seed: int = 0,
        substitute: str | Path | None = None,
        substitute_images: int = 10_000,
        folder: str | Path | None = None,
        curve_l2: float = 10.0,
        curve_linf: float = 1.0,
    ) -> None:
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
        """Forgets an earlier test."""
        if len(trainer.num_test_batches) > 1:
            raise ValueError("AttackSweep takes one test loader: in several, examples of one number would be mixed up")
        self.evaluation, self.write_error, self._parts = None, None, []
        if self.sweep.needs_substitute:
            self.sweep.substitute = self.distilled(trainer, pl_module)
        elif self.sweep.substitute is not None:
            self.sweep.substitute.to(pl_module.device)

    def distilled(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> nn.Module:
        """A net that answers as the attacked one does, trained on its answers to training images.

        Raises:
            ValueError: several processes, or data that are none of robustlit's.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.world_size > 1 or not hasattr(data, "tensors"):
            raise ValueError(
                'knowledge "blackbox" distils a substitute only in one process and on a DataModule of robustlit.data; '
                "elsewhere give one: substitute=CHECKPOINT"
            )
        x, _, _ = data.tensors("train", self.substitute_images)
        with torch.random.fork_rng():
            torch.manual_seed(self.sweep.seed)
            net = SmallCNN(data.num_classes, data.in_chans, data.image_size)
            made = distil(pl_module.net, net, x.to(pl_module.device), seed=self.sweep.seed)  # type: ignore[arg-type]
        self._substitute = {"distilled with queries": made.queries, "agreement": round(made.agreement, 4)}
        return made.net

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attacks the batch."""
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
        """Gathers, writes, draws and logs."""
        parts = self._parts
        if trainer.world_size > 1:
            gathered: list[list[Columns]] = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for of_rank in gathered for part in of_rank]
        if trainer.is_global_zero:
            self._finish(trainer, parts, complete=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keeps the finished part of a sweep that is cut short."""
        if trainer.testing and trainer.is_global_zero and self._parts and self.evaluation is None:
            self._finish(trainer, self._parts, complete=False)

    def _finish(self, trainer: pl.Trainer, parts: list[Columns], complete: bool) -> None:
        meta = self.sweep.meta() | ({"substitute": self._substitute} if self._substitute else {})
        extent = {"complete": True} if complete else {"complete": False, "meant": _meant(trainer)}
        self.evaluation = as_evaluation(parts, {**meta, **extent})
        if self.folder is not None:
            try:
                self._write(self.evaluation, self.folder)
            except OSError as error:
                self.write_error = error
                rank_zero_warn(f"could not write the evaluation to {self.folder}: {error}")
        for logger in trainer.loggers:
            log_evaluation(logger, self.evaluation, self.curve_ends)

    def _write(self, evaluation: Evaluation, folder: Path) -> None:
        evaluation.save(folder)
        for distance, end in self.curve_ends.items():
            curves_csv(evaluation, distance, distance_grid(end)).to_csv(folder / f"curves_{distance}.csv", index=False)
        draw_run(evaluation, folder, list(self.curve_ends))


def _meant(trainer: pl.Trainer) -> int | None:
    """How many examples the test was to attack; None where a limit on batches, or the loader, leaves that open."""
    loader: Any = trainer.test_dataloaders
    whole = examples_of(loader) is not None and len(loader) == trainer.num_test_batches[0]
    return examples_of(loader) if whole else None
