"""After which batches a checkpoint resumes exactly."""

from __future__ import annotations

import pytorch_lightning as pl


def resumes_exactly_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether training would go on exactly from a checkpoint that is saved after a batch.

    It would not within accumulated gradients, which no checkpoint holds, nor after an epoch's last batch or just before
    a validation, both of which Lightning would skip on resuming.
    """
    if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
        return False
    every = trainer.val_check_batch
    over_epochs = trainer.check_val_every_n_epoch is None
    batches = trainer.fit_loop.total_batch_idx if over_epochs else batch_idx
    return every is None or (batches + 1) % every != 0
