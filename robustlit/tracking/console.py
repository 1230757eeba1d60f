"""Console output of the main process."""

import os
import sys

from pytorch_lightning.utilities import rank_zero_only


def is_main_process() -> bool:
    """Return whether this process has rank 0, also before there is a Trainer."""
    # Without torchrun or SLURM, which give every process its rank, Lightning knows a node by NODE_RANK alone.
    another_node = "RANK" not in os.environ and os.environ.get("NODE_RANK", "0") not in ("", "0")
    return not another_node and getattr(rank_zero_only, "rank", None) in (0, None)


def say(text: str) -> None:
    """Print a line on standard error, once for all processes."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)
