"""What the tests of attacks share beside the digits and the net."""

from __future__ import annotations

import pytest
from cases import Batch, N
from torch import Tensor, nn


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor], net: nn.Module) -> Batch:
    """Eight digits with a label, a number and a target each; one of them is misclassified."""
    return Batch.of(net, digits[0][:N].clone())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the contract tests of `WorstCase` slow: its whole plan takes seconds a test."""
    for item in items:
        if "worst_case" in item.name and item.path.name in ("test_every_attack.py", "test_every_attack_models.py"):
            item.add_marker("slow")
