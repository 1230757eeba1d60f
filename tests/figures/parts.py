"""What a figure shows: its text, its curves, and whether names overlap."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import BboxBase


def texts(figure: Figure) -> dict[str, Text]:
    """Every text of a figure that has been laid out."""
    figure.draw_without_rendering()
    return {text.get_text(): text for text in figure.findobj(Text) if text.get_text()}


def all_text(figure: Figure) -> str:
    return " ".join(texts(figure)).replace("\n", " ")


def curves_in(figure: Figure) -> list[Line2D]:
    return [line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post"]


def check_apart(boxes: Sequence[BboxBase], figure: Figure) -> None:
    """Check that boxes lie in the figure and do not overlap."""
    for k, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, k
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, k
        assert not any(box.overlaps(other) for other in boxes[k + 1 :]), k
