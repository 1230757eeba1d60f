"""Data modules of the sets that torchvision downloads: FashionMNIST, CIFAR10, CIFAR100, SVHN."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustlit.data.errors import DataError
from robustlit.data.modules import InMemoryDataModule


class DownloadedDataModule(InMemoryDataModule):
    """Base of the torchvision sets: `prepare_data` (the Trainer calls it) downloads once, `setup` reads.

    Args:
        root: folder that holds the data, or will.
        batch_size, eval_batch_size, train_size, val_size, test_size, seed, shuffle_seed, augment: see
            `InMemoryDataModule`.

    Raises:
        DataError: from `prepare_data` when the download fails, from `setup` when the files are missing or damaged.
    """

    files: ClassVar[str]
    """What belongs in `root`, for the message."""

    def __init__(
        self,
        root: str | Path = "data",
        *,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        train_size: int | float | None = None,
        val_size: int | float = 2000,
        test_size: int | float | None = None,
        seed: int = 0,
        shuffle_seed: int = 0,
        augment: bool = False,
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
        self.root = Path(root)

    def open_split(self, train: bool, download: bool) -> Any:
        """The torchvision data set of one split."""
        raise NotImplementedError

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, C, H, W) and labels int64 (N,) of a torchvision data set."""
        return torch.as_tensor(split.data).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(split.targets).long()

    def prepare_data(self) -> None:
        for train in (True, False):
            self._open(train, download=True)

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        train, test = (self.arrays(self._open(train, download=False)) for train in (True, False))
        return *train, *test

    def _open(self, train: bool, download: bool) -> Any:
        try:
            return self.open_split(train, download)
        # torchvision says RuntimeError for files that are missing or fail their checksum; OSError covers the network.
        except (RuntimeError, OSError) as error:
            failed = "cannot be downloaded" if download else "is missing or damaged (prepare_data() downloads it)"
            raise DataError(
                f"{self.name} {failed}: {error}\nPut these files into {self.root.absolute()}: {self.files}. "
                "Or take the digits that come with robustlit: data=mnist, in Python MNIST()."
            ) from error


class FashionMNIST(DownloadedDataModule):
    """Pictures of clothes, 60000 for training and 10000 for testing, 28 x 28 grey."""

    name = "fashion_mnist"
    num_classes = 10
    in_chans = 1
    image_size = 28
    crop_padding = 2
    files = "FashionMNIST/raw/ with {train,t10k}-{images-idx3,labels-idx1}-ubyte"

    def open_split(self, train: bool, download: bool) -> Any:
        from torchvision.datasets import FashionMNIST as Source

        return Source(self.root, train=train, download=download)

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        return split.data.unsqueeze(1), split.targets.long()


class CIFAR10(DownloadedDataModule):
    """Ten kinds of things, 50000 for training and 10000 for testing, 32 x 32 in colour."""

    name = "cifar10"
    num_classes = 10
    in_chans = 3
    image_size = 32
    files = "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta"

    def open_split(self, train: bool, download: bool) -> Any:
        from torchvision.datasets import CIFAR10 as Source  # noqa: N811

        return Source(self.root, train=train, download=download)


class CIFAR100(DownloadedDataModule):
    """A hundred kinds of things, 50000 for training and 10000 for testing, 32 x 32 in colour."""

    name = "cifar100"
    num_classes = 100
    in_chans = 3
    image_size = 32
    files = "cifar-100-python/ with train, test and meta"

    def open_split(self, train: bool, download: bool) -> Any:
        from torchvision.datasets import CIFAR100 as Source  # noqa: N811

        return Source(self.root, train=train, download=download)


class SVHN(DownloadedDataModule):
    """House numbers from street views, 73257 for training and 26032 for testing, 32 x 32 in colour.

    Augmentation mirrors nothing.
    """

    name = "svhn"
    num_classes = 10
    in_chans = 3
    image_size = 32
    flip = False
    files = "train_32x32.mat and test_32x32.mat"

    def open_split(self, train: bool, download: bool) -> Any:
        from torchvision.datasets import SVHN as Source  # noqa: N811

        return Source(self.root, split="train" if train else "test", download=download)

    def arrays(self, split: Any) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(split.data), torch.as_tensor(split.labels).long()
