"""Fitted defenses that several files test."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustlit.data import load_mnist
from robustlit.models import SmallCNN

SETTINGS: dict[str, dict[str, Any]] = {
    "LogitDetector": {"scales": [0.01], "samples": 4, "fresh_noise": False},
    "LogitCorrector": {"penalty": 10.0, "examples": 800},
    "DetectAndCorrect": {
        "detector": {
            "_target_": "robustlit.defenses.OddsTest", "false_positive_rate": 0.2, "noises": ["normal"],
            "scales": [0.01], "samples": 2, "fresh_noise": False,
        },
        "corrector": {"_target_": "robustlit.defenses.LogitSVC", "penalty": 10.0},
        "eps": [0.1, 0.2],
        "examples": 500,
    },
}  # fmt: skip
Digits = Callable[[int, int], tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def train_digits() -> Digits:
    """Training digits from a first number to a last one: images and classes."""
    images, labels, _, _ = load_mnist()
    return lambda first, last: (images[first:last].float() / 255, labels[first:last].clone())


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """Build a defense by the name of its class, as a recipe does."""

    def built(kind: str, net: nn.Module, **changes: Any) -> Any:
        settings = {"_target_": f"robustlit.defenses.{kind}", **SETTINGS[kind], **changes}
        return instantiate(OmegaConf.create(settings), net)

    return built


@pytest.fixture(scope="session")
def fitted(trained_state: dict[str, Tensor], train_digits: Digits, build: Callable[..., Any]) -> Callable[[str], Any]:
    """The defense of a class, fitted and calibrated on 1 500 training digits each; not to be changed."""

    @cache
    def fit(kind: str) -> Any:
        net = SmallCNN()
        net.load_state_dict(trained_state)
        defense = build(kind, net.eval())
        defense.fit(clean=train_digits(0, 1500), held_out=train_digits(20_000, 21_500), seed=0)
        return defense.eval()

    return fit
