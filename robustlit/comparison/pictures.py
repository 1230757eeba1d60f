"""Test digits as small PNG files inside the page."""

from __future__ import annotations

import base64
import lzma
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

from robustlit.comparison.excerpt import Excerpt


def mnist_pictures(excerpt: Excerpt, wanted: Sequence[int]) -> dict[str, str]:
    """Data URIs of test digits by example number.

    Args:
        excerpt: what the runs were tested on; anything but MNIST's own test digits has no pictures.
        wanted: numbers of examples.
    """
    if excerpt.data != "MNIST" or not len(wanted):
        return {}
    images, labels = _test_digits()
    if excerpt.index.max() >= len(labels) or (labels[excerpt.index] != excerpt.labels).any():
        return {}  # another data set of that name
    return {str(k): _data_uri(images[k]) for k in wanted}


@cache
def _test_digits() -> tuple[np.ndarray, np.ndarray]:
    """The embedded test images (10000, 28, 28) and labels (10000,), uint8.

    Read here rather than by `robustlit.data`, which loads Lightning: that takes longer than all the rest of a page.
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
    """A grey picture (H, W) uint8 as a PNG of 16 shades."""
    height, width = pixels.shape
    shades = (pixels.astype(np.uint16) * 15 + 127) // 255
    packed = ((shades[:, 0::2] << 4) | shades[:, 1::2]).astype(np.uint8)  # two pixels a byte; the width is even
    rows = np.concatenate([np.zeros((height, 1), np.uint8), packed], 1)  # each row starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
