"""The size of a network."""

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Count the numbers a network learns.

    Args:
        model: Any module.

    Returns:
        The number of scalar parameters, frozen ones included; a shared parameter counts once, buffers do not count.
    """
    return sum(parameter.numel() for parameter in model.parameters())
