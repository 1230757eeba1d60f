"""Your own pictures: a folder for each class, decoded by worker processes."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from robustlit.checks import check_integer, check_positive
from robustlit.data.augment import crop_and_flip
from robustlit.data.base import ClassificationData, Settings
from robustlit.data.batches import Batch, BatchIndices, IndexedLoader, chosen
from robustlit.data.errors import DataError
from robustlit.data.pictures import PictureBatches, Pictures, Samples, scale_and_crop, usable_cores

_MOST_WORKERS = 4  # unless more are asked for
LAYOUT = "expected root/train/CLASS/*.png and root/test/CLASS/*.png (or .jpg and the like; root/val/CLASS is optional)"


class ImageFolder(ClassificationData):
    """Classes of pictures in folders: root/train/CLASS/*.png, root/test/CLASS/*.png, optionally root/val/CLASS.

    Classes are numbered in the order of their names. `index` is a picture's place among the sorted paths of its split.
    Pictures are read as they are shown (turned as their EXIF data say, transparent pixels on white), scaled so that the
    shorter side fits and cut to the central square. Symbolic links are followed. Names that begin with a dot are left
    out; a warning counts other files that are not read. Without root/val, the validation split is held out of
    root/train.

    Args:
        root: Folder that holds train/ and test/.
        image_size: Height and width in pixels of the images given to the network.
        channels: 3 for colour, 1 for grey.
        white: The value of white in pictures with more than 8 bits per value, such as 65535, 4095, or 1 for floats;
            without it such pictures are an error. For colours only 65535 is possible (the upper 8 of 16 bits are
            read). A portable map (.pgm, .ppm) states its own.
        num_workers: Processes that decode pictures, for each training process; 0 decodes in the training process. None
            takes one for each usable core, at most 4. The batches do not depend on it.
        crop_padding: With `augment`: pixels of zeros around a picture before a window of `image_size` is cut at
            random, as is usual for pictures of 32 pixels (4); None crops at random scales, as for photographs.
        in_memory: Decode every picture once and keep it, on the GPU where a Trainer has one: image_size² x channels
            bytes each. Fastest for small pictures that fit; `augment` then needs `crop_padding`.
        name: Short name for folders and tables; by default that of `root`.
        settings: Keyword arguments of `ClassificationData`; `val_size`, a tenth by default, has no effect where
            root/val exists.

    Raises:
        DataError: A folder missing, empty, or with other classes than root/train; one class alone.
        ValueError: An argument out of range.
    """

    def __init__(
        self, root: str | Path, image_size: int, *, channels: int = 3, white: float | None = None,
        num_workers: int | None = None, crop_padding: int | None = None, in_memory: bool = False,
        name: str | None = None, **settings: Unpack[Settings],
    ) -> None:  # fmt: skip
        settings.setdefault("val_size", 0.1)
        super().__init__(**settings)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        check_integer("image_size", image_size, 1, "give the side in pixels")
        if crop_padding is not None:
            check_integer("crop_padding", crop_padding, 0, "0 flips alone")
        if num_workers is not None:
            check_integer("num_workers", num_workers, 0, "0 decodes in the training process")
        if white is not None:
            check_positive(white, "white", "; it is the value of white in the files")
        if in_memory and self.augment and crop_padding is None:
            raise ValueError(
                "in_memory=True keeps pictures at image_size, and crops at random scales need the files; set "
                "crop_padding (4 is usual at 32 pixels), or leave out augment"
            )
        self.root, self.white, self.crop_padding, self.in_memory = Path(root), white, crop_padding, in_memory
        self._decoded: dict[str, tuple[Tensor, ...]] = {}
        self.name = name or self.root.absolute().name
        self.in_chans, self.image_size = channels, image_size
        self.num_workers = min(_MOST_WORKERS, usable_cores()) if num_workers is None else num_workers
        # Here and not in setup: the network is built for these classes before data are read.
        self.classes = _class_names(self.root / "train")
        self.num_classes = len(self.classes)
        if self.num_classes < 2:
            folder, only = (self.root / "train").absolute(), self.classes[0]
            raise DataError(f"{folder} must have two class folders or more, found {only!r} alone; {LAYOUT}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def split_labels(self) -> tuple[Tensor, Tensor]:
        return _labels(self._samples("train")), _labels(self._samples("test"))

    @cached_property
    def train_val_indices(self) -> tuple[Tensor, Tensor]:
        """As in the base; with root/val, the validation indices are places among the pictures of root/val."""
        if not self._has_val_folder:
            return super().train_val_indices
        labels = self._labels[0]
        train = self.excerpt(torch.arange(len(labels)), labels, self.train_size, "train_size")
        return train, torch.arange(len(self._samples("val")))

    def loader(self, split: str, indices: Tensor, *, train: bool = False) -> IndexedLoader:
        if not self.in_memory:
            return self._files(split, indices, self.process, train=train)
        augment = crop_and_flip(self.crop_padding or 0)
        return self.batches(*self._images_and_labels(split), indices, augment, train=train)

    def examples(self, split: str, indices: Tensor) -> Batch:
        if self.in_memory:
            return chosen(*self._images_and_labels(split), indices)
        x, y, index = (torch.cat(parts) for parts in zip(*self._files(split, indices, (0, 1)), strict=True))
        return x, y, index

    def _images_and_labels(self, split: str) -> tuple[Tensor, Tensor]:
        """Return every picture of a split as uint8 (N, C, H, W), and the labels (N,), on the Trainer's device."""
        files = "train" if split == "val" and not self._has_val_folder else split
        if files not in self._decoded:
            pictures = self._files(split, torch.arange(len(self._samples(split))), (0, 1))
            images = torch.cat([x.mul_(255).round_().to(torch.uint8) for x, _, _ in pictures])
            self._decoded[files] = images, _labels(self._samples(split))
        images, labels = self._decoded[files] = self.on_gpu(self._decoded[files])
        return images, labels

    def labels_of(self, split: str) -> Tensor:
        return _labels(self._samples("val")) if split == "val" and self._has_val_folder else super().labels_of(split)

    @property
    def _has_val_folder(self) -> bool:
        return (self.root / "val").is_dir()

    def _samples(self, split: str) -> Samples:
        return self._all_samples["train" if split == "val" and not self._has_val_folder else split]

    @cached_property
    def _all_samples(self) -> dict[str, Samples]:
        """Path and class of every picture of each split, sorted by path."""
        splits = ["train", "test"] + ["val"] * self._has_val_folder
        return {split: _pictures(self.root / split, self.classes) for split in splits}

    def _files(self, split: str, indices: Tensor, process: tuple[int, int], *, train: bool = False) -> PictureBatches:
        size, (rank, world_size) = self.size_of_batches(train=train), process
        sampler = BatchIndices(indices, size, shuffle=train, seed=self.shuffle_seed, rank=rank, world_size=world_size)
        transform = scale_and_crop(self.image_size, train and self.augment, self.crop_padding)
        mode = "L" if self.in_chans == 1 else "RGB"
        pictures = Pictures(self._samples(split), mode, transform, self.shuffle_seed, self.white)
        return PictureBatches(pictures, sampler, self.num_workers)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder.absolute()} is missing; {LAYOUT}")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder.absolute()} has no class folders; {LAYOUT}")
    return names


def _pictures(folder: Path, classes: list[str]) -> Samples:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = _class_names(folder)
    if found != classes:
        raise DataError(
            f"{folder.absolute()} must have the class folders of train/: missing {sorted(set(classes) - set(found))}, "
            f"not in train/ {sorted(set(found) - set(classes))}; rename, add or remove folders"
        )
    samples: Samples = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        shown = sorted(_shown_files(folder / name))
        paths = [path for path in shown if path.suffix.lower() in IMG_EXTENSIONS]
        others.update(
            path.suffix.lower() or "without ending" for path in shown if path.suffix.lower() not in IMG_EXTENSIONS
        )
        if not paths:
            raise DataError(f"{(folder / name).absolute()} holds no pictures ({', '.join(IMG_EXTENSIONS)}); {LAYOUT}")
        samples += [(str(path), label) for path in paths]
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        warnings.warn(
            f"{folder.absolute()} holds {others.total()} files that are not read ({kinds}); pictures are "
            f"{', '.join(IMG_EXTENSIONS)}",
            stacklevel=2,
        )
    return samples


def _shown_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders that are not hidden, through symbolic links, each once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (file for name in files if not name.startswith(".") and (file := Path(place, name)).is_file())
        seen.add(real)


def _labels(samples: Samples) -> Tensor:
    return torch.tensor([label for _, label in samples])
