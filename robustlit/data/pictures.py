"""Pictures in files, decoded by worker processes into the batches of `BatchIndices`."""

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustlit.data.batches import Batch, BatchIndices, IndexedLoader, seeded_generator, to_pixels
from robustlit.data.errors import DataError

Samples = list[tuple[str, int]]
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")  # PIL's modes
_EIGHT_BIT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", *_ALPHA)
_LARGEST = 65535.0  # of 16 bits
_SIXTEEN = re.compile(r";16[BLN]")  # in PIL's raw modes: 16 bits per value; "BGR;16" is 16 bits per pixel
_FROM_WORKER = f"{DataError.__module__}.{DataError.__name__}: "
_BACKGROUND = "white"  # seen through transparent pixels, as in a browser
_TOO_DEEP = (
    "{path} has more than 8 bits per value (PIL mode {mode}), and nothing says which value is white: give "
    "white=VALUE, for example 65535 for 16 bits, 4095 for 12, 1 for floats, or convert the pictures to 8 bits"
)
_DEEP_COLOUR = (
    "{path} has more than 8 bits per colour value, and only the upper 8 of 16 can be read: give white=65535 if that is "
    "the value of white, otherwise convert the pictures to 8 bits (another white= scales grey pictures only)"
)


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """Decode one picture at a time. The key is (epoch, index), on which random draws in `transform` depend.

    Args:
        samples: Path and class of each picture.
        mode: PIL's name of the colour space, "L" or "RGB".
        white: See `ImageFolder`.
        transform: Function of a uint8 (C, H, W) tensor.
        seed: Seed of the random draws in `transform`.
    """

    def __init__(
        self, samples: Samples, mode: str, transform: Callable[[Tensor], Tensor], seed: int, white: float | None = None
    ) -> None:  # fmt: skip
        self.samples, self.mode, self.transform, self.seed, self.white = samples, mode, transform, seed, white

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = key
        path, label = self.samples[index]
        picture = read_picture(path, self.mode, self.white)
        # torchvision draws from the global generator: set this example's state, and restore the old one.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(seeded_generator(self.seed, epoch, index).get_state())
            return to_pixels(self.transform(picture)), label, index


def read_picture(path: str, mode: str, white: float | None = None) -> Tensor:
    """Read a picture as it is shown: turned as its EXIF data say, transparent pixels on white.

    Args:
        path: The file.
        mode: "L" or "RGB".
        white: The value of white in files with more than 8 bits per value; None refuses them.

    Returns:
        uint8 (C, H, W).

    Raises:
        DataError: A file that is no picture, or is damaged, or has values that `white` does not cover.
    """
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            if image.mode in _EIGHT_BIT and white != _LARGEST and _SIXTEEN.search(str(image.tile)):
                raise DataError(_DEEP_COLOUR.format(path=path))
            picture = ImageOps.exif_transpose(image)
            if picture.mode not in _EIGHT_BIT:
                # PIL has scaled a portable map of integers (PGM) by the largest value that its header names.
                scaled = image.format == "PPM" and image.mode != "F"
                values = _eight_bits(path, np.asarray(picture), picture.mode, _LARGEST if scaled else white)
                picture = Image.fromarray(values)
            if picture.mode in _ALPHA or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, _BACKGROUND), picture)
            return pil_to_tensor(picture.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises
        raise DataError(f"{path} cannot be decoded as a picture ({error}); replace or remove it") from error


def _eight_bits(path: str, values: np.ndarray, mode: str, white: float | None) -> np.ndarray:
    """Return grey values (H, W) in [0, white] as uint8 in [0, 255]."""
    if white is None:
        raise DataError(_TOO_DEEP.format(path=path, mode=mode))
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= white:  # not for NaN either
        raise DataError(f"{path} has values from {low:g} to {high:g}, and white={white:g}: they must lie in [0, white]")
    return np.asarray((values / white * 255).round().astype(np.uint8))


class PictureBatches(IndexedLoader):
    """A torch DataLoader with the interface of `Batches`, and `num_workers` decoding processes.

    Workers read ahead of the batches returned, so the position in the epoch is counted here.
    """

    def __init__(self, pictures: Pictures, sampler: BatchIndices, num_workers: int) -> None:
        self.sampler, self.in_range = sampler, True  # decoded from 8 bits
        self.loader: DataLoader[Any] = DataLoader(
            pictures, batch_sampler=_Keys(sampler), num_workers=num_workers, persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each pass would draw from the global one
        )  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        try:
            for position, (x, y, index) in enumerate(self.loader, self.sampler.next_start + 1):
                self.sampler.position = position
                yield x, y, index
        except DataError as error:  # from a worker process: PyTorch puts its traceback before the message
            raise DataError(str(error).rpartition(_FROM_WORKER)[2].strip()) from error


class _Keys:
    """The batches of a sampler as lists of (epoch, index), the keys of `Pictures`."""

    def __init__(self, sampler: BatchIndices) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.sampler:
            yield [(self.sampler.epoch, index) for index in indices.tolist()]


def scale_and_crop(size: int, augment: bool, padding: int | None = None) -> Callable[[Tensor], Tensor]:
    """Return the transform of a uint8 (C, H, W) picture to `size` pixels a side.

    It takes the central square. With `augment` that is shifted by up to `padding` pixels, over zeros, or without
    `padding` a random crop of random scale is taken; either is mirrored half of the time.
    """
    from torchvision.transforms import v2

    # On uint8, so that interpolation cannot leave [0, 255].
    if augment and padding is None:
        return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    square = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    return v2.Compose([*square, v2.RandomCrop(size, padding=padding), v2.RandomHorizontalFlip()] if augment else square)


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use; a container or a batch system can allow only some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
