"""The arguments of the Trainer, from a recipe's `trainer` section."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from robustlit.experiment.recipes import ConfigError

_LENGTHS = ("max_epochs", "max_steps", "limit_train_batches")


def trainer_settings(section: DictConfig) -> dict[str, Any]:
    """Return the arguments of `pl.Trainer`, with `precision=auto` replaced by what this machine is fast in.

    Raises:
        ConfigError: A length of training is 0.
    """
    settings: Any = OmegaConf.to_container(section, resolve=True)
    for key in _LENGTHS:
        if settings.get(key) == 0:
            raise ConfigError(f"trainer.{key}=0 trains nothing; robustlit evaluate attacks a net as it is")
    if settings["precision"] == "auto":
        settings["precision"] = auto_precision(settings["accelerator"])
    return dict(settings)


def auto_precision(accelerator: str) -> str:
    """Return bf16-mixed where it is fast (a GPU that has it, a CPU with its instructions), else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if accelerator in ("auto", "cpu") and supported() else "32-true"
