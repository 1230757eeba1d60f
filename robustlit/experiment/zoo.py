"""Nets of RobustBench's model zoo, and what its leaderboard says of them."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robustlit.checks import did_you_mean
from robustlit.experiment.recipes import ConfigError
from robustlit.training.stored import one_line

# The budgets of the leaderboards (Croce et al., RobustBench, 2021, arXiv:2010.09670; its model_info folder).
BUDGETS = {
    "cifar10": {"linf": 8 / 255, "l2": 0.5},
    "cifar100": {"linf": 8 / 255},
    "imagenet": {"linf": 4 / 255},
}
_THREATS = {"linf": "Linf", "l2": "L2"}  # our norm -> the zoo's name of the threat model
_MODELS = Path("models")  # where the zoo keeps its weights, beside the runs
_INSTALL = 'pip install -e ".[robustbench]"'


@dataclass(frozen=True)
class ZooNet:
    """A net of the zoo.

    Args:
        model: Its id, such as "Wong2020Fast".
        dataset: "cifar10", "cifar100" or "imagenet".
        norm: "linf" or "l2".

    Raises:
        ConfigError: There is no leaderboard of this data set and norm.
    """

    model: str
    dataset: str = "cifar10"
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.dataset not in BUDGETS:
            raise ConfigError(f"--dataset must be one of {', '.join(BUDGETS)}, got {self.dataset!r}")
        if self.norm not in BUDGETS[self.dataset]:
            known = ", ".join(BUDGETS[self.dataset])
            raise ConfigError(f"--threat must be one of {known} for {self.dataset}, got {self.norm!r}")

    @property
    def eps(self) -> float:
        """Budget of its leaderboard in pixel units."""
        return BUDGETS[self.dataset][self.norm]

    def load(self) -> nn.Module:
        """Return the net, pixels in [0, 1] to logits, in eval mode; its weights are downloaded to models/ once.

        Raises:
            ConfigError: RobustBench is not installed, has no such net, or cannot download or read its weights.
        """
        utils = _robustbench("utils")
        threat = _THREATS[self.norm]
        try:
            net = utils.load_model(self.model, model_dir=_MODELS, dataset=self.dataset, threat_model=threat)
        except KeyError as error:
            if error.args != (self.model,):
                raise ConfigError(f"RobustBench cannot build {self.model}: {_shown(error)}") from error
            raise ConfigError(self._unknown()) from None
        except Exception as error:  # gdown, requests, torch and timm raise many kinds
            file = _MODELS / self.dataset / threat / f"{self.model}.pt"
            raise ConfigError(
                f"RobustBench cannot load {self.model}: {_shown(error)}; it downloads weights from Google Drive, or "
                f"from Hugging Face for nets of timm: where these cannot be reached, put the file at {file}"
            ) from error
        if not isinstance(net, nn.Module):
            raise ConfigError(f"RobustBench returned no net for {self.model}, but {type(net).__name__}")
        return net.eval()

    def leaderboard(self) -> str:
        """Return the leaderboard's figures in one line, or where they can be looked up."""
        package = Path(str(_robustbench("utils").__file__)).parents[1]
        name = f"{self.dataset} {_THREATS[self.norm]}"
        for folder in (package, Path()):  # a clone has them beside the package; the installed package has none
            file = folder / "model_info" / self.dataset / _THREATS[self.norm] / f"{self.model}.json"
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                figures = [f"clean {float(found['clean_acc']):.2f} %"]
                for key, label in (("autoattack_acc", "AutoAttack"), ("external", "stronger attacks")):
                    figures += [f"{label} {float(found[key]):.2f} %"] if key in found else []
                return f"leaderboard ({name}, eps {found.get('eps', 'not given')}): {', '.join(figures)} ({file})"
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                return f"leaderboard ({name}): {file} cannot be read: {_shown(error)}"
        return (
            f"leaderboard ({name}): not in this installation of RobustBench; run from a clone of "
            "github.com/RobustBench/robustbench, whose folder model_info has the figures, or see robustbench.github.io"
        )

    def _unknown(self) -> str:
        dicts, enums = _robustbench("model_zoo").model_dicts, _robustbench("model_zoo.enums")
        names = list(dicts[enums.BenchmarkDataset(self.dataset)][enums.ThreatModel(_THREATS[self.norm])])
        hint = did_you_mean(self.model, names) or f"there are {len(names)}, such as {', '.join(names[:3])}"
        return f"RobustBench has no net {self.model!r} for {self.dataset} and {_THREATS[self.norm]}; {hint}"


def _robustbench(module: str) -> Any:
    """Import a module of RobustBench, which is an extra."""
    try:
        return importlib.import_module(f"robustbench.{module}")
    except ImportError as error:
        raise ConfigError(f"--robustbench needs RobustBench, which cannot be imported ({error}): {_INSTALL}") from error


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
