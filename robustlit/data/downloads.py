"""Data modules of the sets that torchvision downloads: FashionMNIST, CIFAR10, CIFAR100, SVHN."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from robustlit.data.base import Settings
from robustlit.data.embedded import idx_arrays
from robustlit.data.errors import DataError
from robustlit.data.modules import InMemoryDataModule

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


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
    """Pictures of clothes, 60000 for training and 10000 for testing, 28 x 28 grey.

    Besides torchvision's folder, the four idx files, gzipped or not, may lie in `root` itself, or in the folder of
    Debian's package dataset-fashion-mnist.
    """

    name, source, usual_eps = "fashion_mnist", "FashionMNIST", 0.1  # Wong, Kolter 2018, arXiv:1711.00851
    num_classes, in_chans, image_size = 10, 1, 28
    crop_padding = 2
    files = "FashionMNIST/raw/ with {train,t10k}-{images-idx3,labels-idx1}-ubyte, also as .gz"

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        return split.data.unsqueeze(1), split.targets.long()

    def prepare_data(self) -> None:
        if self._idx_files() is None:
            super().prepare_data()

    def read(self) -> tuple[Tensor, ...]:
        from torchvision import datasets

        if (files := self._idx_files()) is None:
            return super().read()
        self._classes = datasets.FashionMNIST.classes
        parts = [_idx_array(file) for file in files]
        for file, part, dims in zip(files, parts, (3, 1, 3, 1), strict=True):
            if part.ndim != dims or (dims == 3 and part.shape[1:] != (28, 28)):
                raise DataError(f"{file} holds an array of {tuple(part.shape)}, not Fashion-MNIST's; replace it")
        for images, labels in ((0, 1), (2, 3)):
            if len(parts[images]) != len(parts[labels]):
                raise DataError(
                    f"{files[images]} holds {len(parts[images])} pictures and {files[labels]} {len(parts[labels])} "
                    "labels; replace the file that is not whole"
                )
        train, train_labels, test, test_labels = parts
        return train.unsqueeze(1), train_labels.long(), test.unsqueeze(1), test_labels.long()

    def _idx_files(self) -> list[Path] | None:
        """Return the four files, images before labels and training before test; None where no folder has them all."""
        for folder in (self.root / "FashionMNIST" / "raw", self.root, DEBIAN_FASHION_MNIST):
            found = [
                [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
                for split in ("train", "t10k")
                for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
            ]
            if all(found):
                return [paths[0] for paths in found]
        return None


class CIFAR10(DownloadedDataModule):
    """Ten classes of objects and animals, 50000 for training and 10000 for testing, 32 x 32 in colour."""

    name, source, usual_eps = "cifar10", "CIFAR10", 8 / 255  # Madry 2018, arXiv:1706.06083
    num_classes, in_chans, image_size = 10, 3, 32
    files = "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta"


class CIFAR100(DownloadedDataModule):
    """A hundred classes of objects and animals, 50000 for training and 10000 for testing, 32 x 32 in colour."""

    name, source, usual_eps = "cifar100", "CIFAR100", 8 / 255  # Rice 2020, arXiv:2002.11569
    num_classes, in_chans, image_size = 100, 3, 32
    files = "cifar-100-python/ with train, test and meta"


class SVHN(DownloadedDataModule):
    """House numbers from street views, 73257 for training and 26032 for testing, 32 x 32 in colour, not mirrored."""

    name, source, usual_eps = "svhn", "SVHN", 8 / 255  # Rice 2020, arXiv:2002.11569
    num_classes, in_chans, image_size = 10, 3, 32
    flip = False
    files = "train_32x32.mat and test_32x32.mat"

    def split_arguments(self, train: bool) -> dict[str, Any]:
        return {"split": "train" if train else "test"}

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(split.data), torch.as_tensor(split.labels).long()


def _idx_array(file: Path) -> Tensor:
    """Return the uint8 array of an idx file, gzipped where its name ends in .gz."""
    try:
        raw = file.read_bytes()
        (array,) = idx_arrays(bytearray(gzip.decompress(raw) if file.suffix == ".gz" else raw))
    # What a file that is cut short or is something else makes gzip, zlib, indexing and torch raise.
    except (OSError, EOFError, zlib.error, ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{file} is no idx file that can be read ({error}); replace it") from error
    return array
