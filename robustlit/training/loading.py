"""load(): the classifier of a run, ready to be attacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from robustlit.checks import check_choice
from robustlit.training.checkpoint import load_classifier

CHECKPOINTS = ("best", "last", "base")


def load(
    run: str | Path, *, checkpoint: str = "best", trust: str | Sequence[str] = (), net: nn.Module | None = None
) -> nn.Module:
    """Return the classifier of a run folder or checkpoint, with its weights, in eval mode, on the CPU.

    It takes images (B, C, H, W) in [0, 1], its normalisation is inside. A defended classifier comes as such, with its
    `attack_view()`, so that `robustlit.evaluate(robustlit.load(RUN), data)` attacks the defense. As with `robustlit
    evaluate`, no code from the file is run, and its recipe may name the nets and defenses of robustlit alone.

    Args:
        run: The run folder (runs/NAME), or a .ckpt file.
        checkpoint: Of a run folder: "best" by validation robust accuracy (where there is none the last), "last", or
            "base", the net before the defense, where it was trained for this run.
        trust: Packages of your own that the recipe may name classes from.
        net: The net to fill, for a checkpoint without a recipe (trained from Python).

    Raises:
        CheckpointError: There is no checkpoint, it is damaged or not of robustlit, its recipe names what it may not, or
            its weights do not fit the net or are not finite.
        ValueError: Another `checkpoint`.
    """
    check_choice(checkpoint, "checkpoint", CHECKPOINTS)
    place = Path(run)
    if place.is_dir() and checkpoint != "best":
        place = place / "checkpoints" / f"{checkpoint}.ckpt"
    return load_classifier(place, net=net, trusted=[trust] if isinstance(trust, str) else trust)[0]
