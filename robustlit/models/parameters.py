"""The size of a network."""

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Return the number of scalar parameters, frozen ones included; shared ones count once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
