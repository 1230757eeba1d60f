"""Data modules of the sets that torchvision downloads: FashionMNIST, CIFAR10, CIFAR100, SVHN."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from robustlit.data.base import Settings
from robustlit.data.errors import DataError
from robustlit.data.modules import InMemoryDataModule


class DownloadedDataModule(InMemoryDataModule):
    """Base of the torchvision sets: `prepare_data` (the Trainer calls it) downloads once, `setup` reads.

    Args:
        root: Folder that holds the data, or that they are downloaded to.
        download: Whether `prepare_data` downloads what is missing.
        settings: Keyword arguments of `ClassificationData`.

    Raises:
        DataError: From `prepare_data` when the download fails, from `setup` when files are missing or damaged.
    """

    source: ClassVar[str]  # name of the data set in torchvision.datasets
    files: ClassVar[str]  # what must lie in `root`, for the message
    _classes: list[str] | None = None

    def __init__(self, root: str | Path = "data", *, download: bool = True, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.root, self.download = Path(root), download

    def split_arguments(self, train: bool) -> dict[str, Any]:
        """Return the arguments by which torchvision chooses a split."""
        return {"train": train}

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        """Return images uint8 (N, C, H, W) and labels int64 (N,) of a torchvision data set."""
        return torch.as_tensor(split.data).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(split.targets).long()

    def prepare_data(self) -> None:
        for train in (True, False):
            self._open(train, download=self.download)

    def read(self) -> tuple[Tensor, ...]:
        train, test = (self._open(train, download=False) for train in (True, False))
        self._classes = getattr(test, "classes", None)  # SVHN's are digits, and torchvision has no names of them
        return (*self.arrays(train), *self.arrays(test))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that torchvision gives the classes; they are read with the data."""
        _ = self._tensors
        return super().class_names if self._classes is None else tuple(self._classes)

    def _open(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        try:
            return getattr(datasets, self.source)(self.root, **self.split_arguments(train), download=download)
        # torchvision raises RuntimeError for files that are missing or damaged; OSError covers the network.
        except (RuntimeError, OSError) as error:
            way_out = "data.download=true downloads it" if not self.download else "prepare_data() downloads it"
            failed = "cannot be downloaded" if download else f"is missing or damaged ({way_out})"
            raise DataError(
                f"{self.name} {failed}: {error} Put these files into {self.root.absolute()}: {self.files}. "
                "Or take the digits that come with robustlit: data=mnist, in Python MNIST()."
            ) from error


class FashionMNIST(DownloadedDataModule):
    """Pictures of clothes, 60000 for training and 10000 for testing, 28 x 28 grey."""

    name, source = "fashion_mnist", "FashionMNIST"
    num_classes, in_chans, image_size = 10, 1, 28
    crop_padding = 2
    files = "FashionMNIST/raw/ with {train,t10k}-{images-idx3,labels-idx1}-ubyte"

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        return split.data.unsqueeze(1), split.targets.long()


class CIFAR10(DownloadedDataModule):
    """Ten classes of objects and animals, 50000 for training and 10000 for testing, 32 x 32 in colour."""

    name, source = "cifar10", "CIFAR10"
    num_classes, in_chans, image_size = 10, 3, 32
    files = "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta"


class CIFAR100(DownloadedDataModule):
    """A hundred classes of objects and animals, 50000 for training and 10000 for testing, 32 x 32 in colour."""

    name, source = "cifar100", "CIFAR100"
    num_classes, in_chans, image_size = 100, 3, 32
    files = "cifar-100-python/ with train, test and meta"


class SVHN(DownloadedDataModule):
    """House numbers from street views, 73257 for training and 26032 for testing, 32 x 32 in colour, not mirrored."""

    name, source = "svhn", "SVHN"
    num_classes, in_chans, image_size = 10, 3, 32
    flip = False
    files = "train_32x32.mat and test_32x32.mat"

    def split_arguments(self, train: bool) -> dict[str, Any]:
        return {"split": "train" if train else "test"}

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(split.data), torch.as_tensor(split.labels).long()
