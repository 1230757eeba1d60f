"""A user's own pictures: one folder a class, decoded by worker processes."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from robustlit.data.base import ClassificationData
from robustlit.data.batches import Batch, BatchIndices
from robustlit.data.errors import DataError
from robustlit.data.pictures import PictureBatches, Pictures, Samples, scale_and_crop

LAYOUT = "expected root/train/CLASS/*.png and root/test/CLASS/*.png (or .jpg and the like; root/val/CLASS is optional)"


class ImageFolder(ClassificationData):
    """Classes of pictures in folders: root/train/CLASS/*.png, root/test/CLASS/*.png and, if you like, root/val/CLASS.

    Classes are numbered in the order of their names. `index` is a picture's place among the sorted paths of its split.
    Pictures are scaled so that the shorter side fits and cut to the central square. Without root/val, the validation
    split is held out of root/train.

    Args:
        root: the folder that holds train/ and test/.
        image_size: height and width in pixels that the network gets.
        channels: 3 for colour, 1 for grey.
        batch_size: training examples a batch, in each process.
        eval_batch_size: validation and test examples a batch.
        num_workers: processes that decode pictures, for each process that trains; 0 for none.
        train_size, test_size: as for `InMemoryDataModule`.
        val_size: how many training examples to hold out; number or fraction; no effect where root/val exists.
        seed: decides which examples are in which split.
        shuffle_seed: decides the order of the training batches and their augmentation.
        augment: random crops of random scale, and flips, of training batches.
        name: short name for folders and tables; by default that of `root`.

    Raises:
        DataError: a folder missing, empty, or with other classes than root/train.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        *,
        channels: int = 3,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_workers: int = 4,
        train_size: int | float | None = None,
        val_size: int | float = 0.1,
        test_size: int | float | None = None,
        seed: int = 0,
        shuffle_seed: int = 0,
        augment: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            train_size=train_size,
            val_size=val_size,
            test_size=test_size,
            seed=seed,
            shuffle_seed=shuffle_seed,
            augment=augment,
        )
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        if image_size < 1:
            raise ValueError(f"image_size must be 1 or more pixels, got {image_size}")
        self.root = Path(root)
        self.name = name or self.root.absolute().name
        self.in_chans = channels
        self.image_size = image_size
        self.num_workers = num_workers
        # At once and not in setup: a network is built for so many classes before any data are read.
        self.classes = _class_names(self.root / "train")
        self.num_classes = len(self.classes)

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

    def train_dataloader(self) -> PictureBatches:
        self.setup("fit")
        return self._batches("train", self.train_val_indices[0], train=True)

    def val_dataloader(self) -> PictureBatches:
        self.setup("validate")
        return self._batches("val" if self._has_val_folder else "train", self.train_val_indices[1])

    def test_dataloader(self) -> PictureBatches:
        self.setup("test")
        return self._batches("test", self.test_indices)

    def _read(self, split: str, indices: Tensor) -> Batch:
        folder = "val" if split == "val" and self._has_val_folder else "test" if split == "test" else "train"
        x, y, index = zip(*self._batches(folder, indices, process=(0, 1)), strict=True)
        return torch.cat(x), torch.cat(y), torch.cat(index)

    def _labels_of(self, split: str) -> Tensor:
        if split == "val" and self._has_val_folder:
            return _labels(self._samples("val"))
        return super()._labels_of(split)

    @property
    def _has_val_folder(self) -> bool:
        return (self.root / "val").is_dir()

    def _samples(self, split: str) -> Samples:
        """Path and class of every picture of a split, sorted by path."""
        return self._all_samples[split]

    @cached_property
    def _all_samples(self) -> dict[str, Samples]:
        splits = ["train", "test"] + ["val"] * self._has_val_folder
        return {split: _pictures(self.root / split, self.classes) for split in splits}

    def _batches(
        self, split: str, indices: Tensor, *, train: bool = False, process: tuple[int, int] | None = None
    ) -> PictureBatches:
        rank, world_size = process or self.process
        sampler = BatchIndices(
            indices,
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            seed=self.shuffle_seed,
            rank=rank,
            world_size=world_size,
        )
        transform = scale_and_crop(self.image_size, train and self.augment)
        pictures = Pictures(self._samples(split), "L" if self.in_chans == 1 else "RGB", transform, self.shuffle_seed)
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
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        if not paths:
            raise DataError(f"{(folder / name).absolute()} holds no pictures ({', '.join(IMG_EXTENSIONS)}); {LAYOUT}")
        samples += [(str(path), label) for path in paths]
    return samples


def _labels(samples: Samples) -> Tensor:
    return torch.tensor([label for _, label in samples])
