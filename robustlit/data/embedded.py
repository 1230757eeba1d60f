"""MNIST from a file inside the package."""

import hashlib
import lzma
from functools import lru_cache
from importlib import resources
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from robustlit.data.errors import DataError

MNIST_SHA256 = "e554e6414af81d99fb4514d83678ad380156bf7c1db112c4f354786ee81043a3"


@lru_cache(maxsize=1)
def load_mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the MNIST digits (LeCun, Cortes and Burges, "The MNIST database of handwritten digits").

    Unpacked once per process (about a second); every call returns the same tensors: do not change them in place.

    Returns:
        Training images (60000, 1, 28, 28) uint8, training labels (60000,) int64, test images (10000, 1, 28, 28)
        uint8, test labels (10000,) int64; pixels in 0..255, background 0.

    Raises:
        DataError: The packed file is missing or not that of this release.
    """
    with resources.as_file(resources.files("robustlit.data.mnist") / "mnist.xz") as file:
        raw = lzma.decompress(read_checked(file, MNIST_SHA256))
    # A bytearray, because torch warns about read-only memory.
    train_images, train_labels, test_images, test_labels = idx_arrays(bytearray(raw))
    return train_images.unsqueeze(1), train_labels.long(), test_images.unsqueeze(1), test_labels.long()


def read_checked(file: Path, sha256: str) -> bytes:
    """Return the bytes of `file`; raise a DataError where it cannot be read or has another SHA-256 (hexadecimal)."""
    way_out = "Reinstall it: pip install --force-reinstall --no-deps robustlit (in a checkout: git checkout the file)."
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}, part of robustlit, cannot be read ({error}). {way_out}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"{file} is damaged: expected SHA-256 {sha256}, found {found}. {way_out}")
    return data


def idx_arrays(raw: bytearray) -> list[Tensor]:
    """Return the uint8 arrays of concatenated idx files; they share their memory with `raw`."""
    arrays, start = [], 0
    while start < len(raw):
        # An idx header: two zero bytes, the type, the number of dimensions, then each as a big-endian int32.
        header_end = start + 4 + 4 * raw[start + 3]
        shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(start + 4, header_end, 4)]
        arrays.append(torch.frombuffer(raw, dtype=torch.uint8, count=prod(shape), offset=header_end).view(shape))
        start = header_end + prod(shape)
    return arrays
