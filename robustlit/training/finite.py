"""What every training here guards: batches in range, finite losses and gradients, finite weights in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from robustlit.checks import check_choice
from robustlit.classifier import abbreviated, as_weights, check_finite, check_labels
from robustlit.data.base import ClassificationData
from robustlit.data.batches import IndexedLoader
from robustlit.files import write_tensors
from robustlit.threat import check_images

Batch = tuple[Tensor, ...]  # images (B, C, H, W), classes (B,), and, if the loader knows it, example numbers (B,)
POLICIES = ("stop", "skip")
IN_A_ROW = 10  # skipped steps after which a training that skips stops too: the net is lost


class NonFiniteError(RuntimeError):
    """A training that met NaN or infinity and cannot go on."""


@dataclass
class _Step:
    """What is needed to explain an optimizer step that was not finite."""

    number: int
    epoch: int
    batches: list[tuple[Batch, Tensor]]  # batches of the step with their losses, several where gradients accumulate
    probe: Tensor  # () of the gradient, on the CPU; finite exactly where the gradient is
    copied: torch.cuda.Event | None = None  # when `probe` has come from the GPU

    @property
    def failed(self) -> bool:
        if self.copied is not None:
            self.copied.synchronize()
        return not math.isfinite(float(self.probe))

    @property
    def culprit(self) -> tuple[Batch, str] | None:
        """The first batch with images or a loss that is not finite, and which of the two."""
        for batch, loss in self.batches:
            if not bool(batch[0].isfinite().all()):
                return batch, "images are"
            if not bool(loss.isfinite()):
                return batch, f"loss is {float(loss)}, which is"
        return None


class GuardedTraining(pl.LightningModule):
    """Base of the LightningModules: nothing that is not finite is trained on, called robust, or saved.

    Every batch of every split is checked (finite pixels in [0, 1], classes in range). A loss or gradient that is not
    finite stops the training before the optimizer uses it (on a GPU one step after, so that no step waits for the
    device), and the batch is saved beside the checkpoints. A checkpoint with weights or an optimizer state that are not
    finite is not written. With several processes all of them stop, or skip, at the same step: a loss that is not finite
    makes the gradient NaN, and the gradient is shared.

    A subclass passes each loss through `guarded` before its backward.

    Attributes:
        on_non_finite: "stop", or "skip": leave out such an optimizer step, and stop after `IN_A_ROW` in a row. Pixels
            that are not finite are skipped too.
        skipped: Optimizer steps that were left out.
        num_classes: K; 0 where it is not known, so that classes are not checked.
    """

    num_classes: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0
        self._policy, self._in_a_row = "stop", 0
        self._batch: Batch = ()
        self._batches: list[tuple[Batch, Tensor]] = []
        self._late: _Step | None = None
        self._in_range = False  # whether every batch is, by construction
        self._buffers_before: list[Tensor] = []
        self._infinite: set[str] = set()  # buffers that hold infinity by design, as a mask does

    @property
    def on_non_finite(self) -> str:
        """What to do about a loss or gradient that is not finite: "stop" or "skip"."""
        return self._policy

    @on_non_finite.setter
    def on_non_finite(self, policy: str) -> None:
        check_choice(policy, "on_non_finite", POLICIES)
        self._policy = policy

    # Batches

    def pair(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return a batch's images (B, C, H, W), in the dtype of the weights, and its classes (B,) as int64.

        Loaders of other people give float64 images, or labels in few bits, which PyTorch's losses refuse.
        """
        return as_weights(self, batch[0]), batch[1].long()

    def predict_step(self, batch: Tensor | Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return what `forward` gives for a batch of images in [0, 1], with or without labels, in full precision."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        check_images(x)
        with torch.autocast(x.device.type, enabled=False):
            return self(as_weights(self, x))

    def check_range(self, batch: Batch) -> None:
        """Raise a ValueError unless the images lie in [0, 1] and the classes in [0, num_classes)."""
        check_images(batch[0])
        if self.num_classes:
            check_labels(batch[1], len(batch[0]), self.num_classes)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Refuse a batch that is out of range; keep what explains or undoes the step."""
        if not self._in_range:
            self._refuse("training", batch, batch_idx)
        self._batch = batch
        if self.on_non_finite == "skip" and not self._buffers_before:
            self._buffers_before = [buffer.clone() for buffer in self.buffers()]

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse a batch that is out of range."""
        self._refuse("validation", batch, batch_idx)

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse a batch that is out of range."""
        self._refuse("test", batch, batch_idx)

    def _refuse(self, split: str, batch: Batch, number: int) -> None:
        try:
            self.check_range(batch)
        except ValueError as error:
            if self.on_non_finite == "skip" and split == "training" and not bool(batch[0].isfinite().all()):
                return  # its loss will not be finite
            saved = self._saved(batch, f"out_of_range_{split}_epoch{self.current_epoch}_batch{number}")
            raise ValueError(f"{split} batch {number} of epoch {self.current_epoch}: {error}{saved}") from None

    # Steps

    def on_train_start(self) -> None:
        """Refuse to start from weights that are not finite."""
        check_finite(self, "training starts from", NonFiniteError)
        self._infinite = {name for name, value in self.named_buffers() if not bool(value.isfinite().all())}
        # Looking costs time, and waits for a GPU in every step.
        loader, data = self.trainer.train_dataloader, getattr(self.trainer, "datamodule", None)
        classes = (
            data.num_classes if isinstance(data, ClassificationData) else math.inf
        )  # which labels were checked for
        known = classes <= (self.num_classes or classes)
        self._in_range = isinstance(loader, IndexedLoader) and loader.in_range and known

    def guarded(self, loss: Tensor) -> Tensor:
        """Return the loss (), whose gradient is NaN where the loss is not finite; call it before every backward."""
        self._batches.append((self._batch, loss.detach()))
        return loss * (1 + 0 * loss.detach())  # a factor of exactly 1, or NaN

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at the gradient: stop, or leave the step out, where it is not finite."""
        batches, self._batches = self._batches, []
        step = _Step(self.global_step, self.current_epoch, batches, self._probe(optimizer, batches))
        if self.on_non_finite == "stop" and step.probe.is_cuda:
            here = torch.empty((), dtype=step.probe.dtype, pin_memory=True).copy_(step.probe, non_blocking=True)
            step.copied = torch.cuda.Event()
            step.copied.record()
            step.probe = here
            step, self._late = self._late, step  # type: ignore[assignment]
        if step is not None and step.failed:
            self._skip(step, optimizer) if self.on_non_finite == "skip" else self._stop(step)
        elif self.on_non_finite == "skip":
            self._in_a_row, self._buffers_before = 0, []

    def _probe(self, optimizer: Optimizer, batches: list[tuple[Batch, Tensor]]) -> Tensor:
        """Return () a number that is finite exactly where the gradient is; the same in every process."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            # float16 gradients overflow now and then, and the scaler leaves those steps out: losses alone count.
            lost = any(not bool(loss.isfinite()) for _, loss in batches)
            lost = self.trainer.strategy.reduce_boolean_decision(lost, all=False)
            return torch.tensor(math.nan if lost else 0.0)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        if gradients[0].is_cuda:
            return get_total_norm(gradients, math.inf)  # a few launches for all
        # On a CPU that norm takes ten times as long as sums. The sum of finite entries may overflow: then each counts.
        total = torch.stack([gradient.sum() for gradient in gradients]).sum()
        if math.isfinite(float(total)):
            return total
        return torch.stack([g.abs().amax().double() for g in gradients]).amax()

    def _skip(self, step: _Step, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # every optimizer of torch passes over such parameters
        with torch.no_grad():
            for buffer, before in zip(self.buffers(), self._buffers_before, strict=True):
                buffer.copy_(before)  # BatchNorm's averages
        self._buffers_before = []
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        self.log("train/skipped_steps", float(self.skipped))
        if self._in_a_row >= IN_A_ROW:
            self._stop(step, f", for the {IN_A_ROW}th time in a row")
        rank_zero_warn(f"step {step.number} is left out: {self._named(step)[1]} not finite ({self.skipped} so far)")

    def _stop(self, step: _Step, often: str = "") -> None:
        self._late = None
        batch, what = self._named(step)
        saved = self._saved(batch, f"non_finite_step{step.number}", step=step.number, found=what)
        raise NonFiniteError(
            f"training stopped at step {step.number}, epoch {step.epoch}: the {what} not finite{often}{saved}; "
            f"{self._last_good()}; lower optimizer.lr, train in trainer.precision=32-true, or leave such steps out: "
            "on_non_finite=skip"
        )

    def _named(self, step: _Step) -> tuple[Batch, str]:
        """Return the batch that the step failed on, and what was not finite."""
        return step.culprit or (step.batches[-1][0] if step.batches else self._batch, "gradient is")

    def _look_back(self) -> None:
        """Stop if the last step was not finite."""
        late, self._late = self._late, None
        if late is not None and late.failed:
            self._stop(late)

    def on_validation_start(self) -> None:
        """Stop if the last step was not finite."""
        self._look_back()

    def on_train_end(self) -> None:
        """Stop if the last step was not finite, or left weights that are not."""
        self._look_back()
        self._check_weights({"state_dict": self.state_dict()}, "training ends with")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite; the checkpoint written before stays."""
        self._look_back()
        self._check_weights(checkpoint, "no checkpoint is written with")

    def _check_weights(self, checkpoint: dict[str, Any], why: str) -> None:
        names = [*not_finite([checkpoint.get("state_dict"), checkpoint.get("optimizer_states")])]
        if wrong := [name for name in names if name not in self._infinite]:
            raise NonFiniteError(
                f"step {self.global_step}: {why} weights or an optimizer state that are not finite "
                f"({abbreviated(wrong)}); {self._last_good()}; lower optimizer.lr, or use trainer.precision=32-true"
            )

    def _last_good(self) -> str:
        saved = [
            Path(path)
            for callback in self.trainer.checkpoint_callbacks
            for path in (getattr(callback, "last_model_path", ""), getattr(callback, "best_model_path", ""))
            if path and Path(path).is_file()
        ]
        newest = max(saved, key=lambda path: path.stat().st_mtime, default=self.trainer.ckpt_path)
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was saved before"

    def _saved(self, batch: Batch, name: str, **more: Any) -> str:
        """Save a batch beside the checkpoints, and return where, as the end of a sentence; "" without a folder."""
        folders = [f for c in self.trainer.checkpoint_callbacks if (f := getattr(c, "dirpath", None)) is not None]
        if not folders or not batch:
            return ""
        rank = f"_rank{self.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(folders[0]) / f"{name}{rank}.pt"
        named = dict(zip(("images", "labels", "index"), (part.cpu() for part in batch), strict=False))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, {**named, **more, "epoch": self.current_epoch})
        except OSError as error:
            return f"; the batch could not be saved in {path} ({error})"
        return f"; the batch is in {path}"


def not_finite(state: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the tensors in nested containers that hold NaN or infinity; places in lists name nothing."""
    if isinstance(state, Tensor):
        if state.is_floating_point() and not bool(state.isfinite().all()):
            yield name
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from not_finite(value, name)
