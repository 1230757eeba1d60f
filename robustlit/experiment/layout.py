"""The memory layout of a net: convolutions with the channels innermost."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustlit.attacks.surroundings import held_in_eval
from robustlit.tracking.console import say


def lay_channels_last(net: nn.Module, data: Any) -> None:
    """Lay a net's convolutions out with the channels innermost, unless its forward fails so.

    `view` on a feature map fails, which many nets have before their first linear layer; a line says so.

    Args:
        net: Changed in place.
        data: The DataModule, with `in_chans` and `image_size`.
    """
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    x = torch.zeros(2, data.in_chans, data.image_size, data.image_size, device=device)
    generators = [device] if x.is_cuda else []

    def fails() -> bool:
        try:
            with held_in_eval(net), torch.no_grad(), torch.random.fork_rng(devices=generators):
                net(x)
        except Exception:
            return True
        return False

    if fails():  # what does not take the images is reported elsewhere
        return
    net.to(memory_format=torch.channels_last)
    if fails():
        net.to(memory_format=torch.contiguous_format)
        say(f"warning: channels_last is left out: {type(net).__name__} fails with it (`view` does, `reshape` does not)")
