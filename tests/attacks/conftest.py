"""What the tests of attacks share beside the digits and the net."""

from __future__ import annotations

import pytest
from cases import Batch, N
from torch import Tensor, nn

from robustlit.attacks import auto_attack


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor], net: nn.Module) -> Batch:
    """Eight digits with a label, a number and a target each; one of them is misclassified."""
    return Batch.of(net, digits[0][:N].clone())


@pytest.fixture(autouse=True)
def short_auto_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `AutoAttack` few steps and queries: the authors' take seconds a test."""
    for name, few in {"_STEPS": 6, "_TARGETS": 2, "_QUERIES": 30}.items():
        monkeypatch.setattr(auto_attack, name, few)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the contract tests of `WorstCase` slow: its whole plan takes seconds a test."""
    for item in items:
        if "worst_case" in item.name and item.path.name in ("test_every_attack.py", "test_every_attack_models.py"):
            item.add_marker("slow")
