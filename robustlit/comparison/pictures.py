"""Test digits as small PNG files inside the page."""

from __future__ import annotations

import base64
import io
import lzma
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

from robustlit.comparison.excerpt import Excerpt


def mnist_pictures(excerpt: Excerpt, wanted: Sequence[int]) -> dict[str, str]:
    """Return data URIs of the `wanted` test digits by example number; only MNIST's own ones have pictures."""
    if excerpt.data != "MNIST" or not len(wanted):
        return {}
    images, labels = _test_digits()
    if excerpt.index.max() >= len(labels) or (labels[excerpt.index] != excerpt.labels).any():
        return {}  # another data set of that name
    return {str(k): _data_uri(images[k]) for k in wanted}


@cache
def _test_digits() -> tuple[np.ndarray, np.ndarray]:
    """The embedded test images (10000, 28, 28) and labels (10000,), uint8.

    Not read by `robustlit.data`, as loading Lightning would take longer than all the rest of a page.
    """
    raw = lzma.decompress((resources.files("robustlit") / "data" / "mnist" / "mnist.xz").read_bytes())
    arrays, start = [], 0
    while start < len(raw):  # idx files one after the other: 00 00 type rank, the shape as big-endian int32, the bytes
        header = 4 + 4 * raw[start + 3]
        shape = np.frombuffer(raw, ">i4", raw[start + 3], start + 4)
        arrays.append(np.frombuffer(raw, np.uint8, int(shape.prod()), start + header).reshape(shape))
        start += header + arrays[-1].size
    return arrays[2].copy(), arrays[3].copy()  # the training images may go


def _data_uri(pixels: np.ndarray) -> str:
    """Return a grey picture (H, W) uint8 as a PNG of 16 shades."""
    from PIL import Image

    shades = (pixels.astype(np.uint16) * 15 + 127) // 255
    png = io.BytesIO()
    Image.fromarray((17 * shades).astype(np.uint8)).save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
