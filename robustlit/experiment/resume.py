"""Going on from a checkpoint: only where its learning-rate schedule lasts as long as the run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.run_folder import write_config


class Resumed(pl.Callback):
    """Refuses to go on for more steps than the checkpoint's schedule has, which would break off in the middle.

    A schedule comes back with the length that it was made for (`OneCycleLR.total_steps`), whatever the run's. A run
    that is refused leaves the `config.yaml` of its folder as it was.

    Args:
        run: the run folder.
        stored: the composed recipe, written there when the run goes on.

    Raises:
        ConfigError: when fitting starts, before the first step.
    """

    def __init__(self, run: Path, stored: dict[str, Any]) -> None:
        self.run, self.stored = run, stored
        self._lengths: list[int | None] = []
        self._epochs: Any = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads how long the checkpoint's schedules are."""
        self._lengths = [state.get("total_steps") for state in checkpoint.get("lr_schedulers", ())]
        recipe = (checkpoint.get("robustlit") or {}).get("config") or {}
        self._epochs = recipe.get("trainer", {}).get("max_epochs")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares them with those of this run."""
        for length, new in zip(self._lengths, trainer.lr_scheduler_configs, strict=False):
            steps = getattr(new.scheduler, "total_steps", None)
            if length is not None and steps is not None and steps > length:
                raise ConfigError(
                    f"the checkpoint's schedule ends after {length} steps, and this run would take {steps}: resume "
                    f"with the same data and trainer settings (its trainer.max_epochs was {self._epochs}), or "
                    "start anew, without ckpt_path"
                )
        write_config(self.run, self.stored)
