"""Figures that show themselves in a notebook."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> Figure:
    """Return an empty figure, made without pyplot; `settings` are those of `matplotlib.figure.Figure`.

    A notebook draws matplotlib's own only after `%matplotlib inline` or an import of pyplot; this one it always draws.
    """
    from matplotlib.figure import Figure

    figure = Figure(**settings)
    # No class of its own: W&B recognises a figure by the module of its class.
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    with quiet_about_letters():
        figure.savefig(png, format="png")
    return png.getvalue()


@contextmanager
def quiet_about_letters() -> Iterator[None]:
    """Draw letters that the font lacks as boxes without matplotlib's warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
