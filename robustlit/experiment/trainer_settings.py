"""The arguments of the Trainer, from a recipe's `trainer` section."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from robustlit.checks import is_number
from robustlit.experiment.recipes import ConfigError

_LENGTHS = ("max_epochs", "max_steps", "limit_train_batches")
_WHOLE = (
    "max_epochs", "min_epochs", "max_steps", "min_steps", "accumulate_grad_batches", "check_val_every_n_epoch",
    "log_every_n_steps", "num_sanity_val_steps", "num_nodes",
)  # fmt: skip
_NUMBERS = (
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
    "gradient_clip_val",
)  # fmt: skip


def trainer_settings(section: DictConfig) -> dict[str, Any]:
    """Return the arguments of `pl.Trainer`, with `precision=auto` replaced by what this machine is fast in.

    Raises:
        ConfigError: A length of training is 0, or a number is something else.
    """
    settings: Any = OmegaConf.to_container(section, resolve=True)
    settings |= {key: _number(key, settings[key]) for key in (*_WHOLE, *_NUMBERS) if settings.get(key) is not None}
    for key in _LENGTHS:
        if settings.get(key) == 0:
            raise ConfigError(f"trainer.{key}=0 trains nothing; robustlit evaluate attacks a net as it is")
    if settings["precision"] == "auto":
        settings["precision"] = auto_precision(settings["accelerator"])
    return dict(settings)


def _number(key: str, value: Any) -> float | int:
    """Return a setting that is a number; one like 1e4 that must be whole, as an int."""
    whole = key in _WHOLE
    if not is_number(value) or (whole and value != int(value)):
        raise ConfigError(f"trainer.{key} must be a {'whole ' if whole else ''}number, got {value!r}")
    return int(value) if whole else value


def auto_precision(accelerator: str) -> str:
    """Return bf16-mixed where it is fast (a GPU that has it, a CPU with its instructions), else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if accelerator in ("auto", "cpu") and supported() else "32-true"
