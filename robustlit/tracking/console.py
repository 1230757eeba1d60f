"""What a run says to the person at the keyboard."""

from __future__ import annotations

import os
import sys

from pytorch_lightning.utilities import rank_zero_only


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks (known from the environment before any Trainer is)."""
    # Without torchrun or SLURM, which give every process its rank, Lightning knows a node by NODE_RANK alone.
    another_node = "RANK" not in os.environ and os.environ.get("NODE_RANK", "0") not in ("", "0")
    return not another_node and getattr(rank_zero_only, "rank", None) in (0, None)


def say(text: str) -> None:
    """A line for the person at the keyboard, once for all processes."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)
