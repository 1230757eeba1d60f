"""Data modules that hold their images in memory as uint8, and the first of them, MNIST."""

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from robustlit.data.augment import crop_and_flip
from robustlit.data.base import ClassificationData
from robustlit.data.batches import Batch, Batches, to_pixels
from robustlit.data.embedded import load_mnist


class InMemoryDataModule(ClassificationData):
    """Base of the data sets that fit in memory: a subclass sets the attributes and says how to `read`.

    With a Trainer on CUDA the uint8 images move to the GPU once, and batches are cut there.

    Args:
        batch_size: training examples a batch, in each process.
        eval_batch_size: validation and test examples a batch.
        train_size: how many of the examples left after validation to train on; number, fraction, or None for all.
        val_size: how many training examples to hold out for validation; number or fraction.
        test_size: how many test examples to use; number, fraction, or None for all.
        seed: decides which examples are in which split.
        shuffle_seed: decides the order of the training batches.
        augment: random crops (and flips, where they keep the class) of training batches.

    Raises:
        ValueError: a size that is no number of examples and no fraction in (0, 1).
    """

    crop_padding: ClassVar[int] = 4
    flip: ClassVar[bool] = True

    def __init__(
        self,
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

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training images uint8 (N, C, H, W), labels int64 (N,), test images, test labels."""
        raise NotImplementedError

    def split_labels(self) -> tuple[Tensor, Tensor]:
        return self._tensors[1].cpu(), self._tensors[3].cpu()

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
            train_images, train_labels, test_images, test_labels = self._tensors
            device = self.trainer.strategy.root_device
            self._tensors = (
                train_images.to(device),
                train_labels.to(device),
                test_images.to(device),
                test_labels.to(device),
            )

    def train_dataloader(self) -> Batches:
        self.setup("fit")
        return self._batches(self.train_val_indices[0], train=True)

    def val_dataloader(self) -> Batches:
        self.setup("validate")
        return self._batches(self.train_val_indices[1])

    def test_dataloader(self) -> Batches:
        self.setup("test")
        return self._batches(self.test_indices, test=True)

    def _read(self, split: str, indices: Tensor) -> Batch:
        images, labels = self._tensors[2:] if split == "test" else self._tensors[:2]
        index = indices.to(images.device)
        return to_pixels(images[index]), labels[index], index

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.read()

    def _batches(self, indices: Tensor, *, train: bool = False, test: bool = False) -> Batches:
        images, labels = self._tensors[2:] if test else self._tensors[:2]
        rank, world_size = self.process
        return Batches(
            images,
            labels,
            self.batch_size if train else self.eval_batch_size,
            indices=indices,
            shuffle=train,
            seed=self.shuffle_seed,
            rank=rank,
            world_size=world_size,
            augment=crop_and_flip(self.crop_padding, self.flip) if train and self.augment else None,
        )


class MNIST(InMemoryDataModule):
    """Handwritten digits, 60000 for training and 10000 for testing, 28 x 28 grey; they come with the package.

    Augmentation shifts by up to two pixels and mirrors nothing.
    """

    name = "mnist"
    num_classes = 10
    in_chans = 1
    image_size = 28
    crop_padding = 2
    flip = False

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return load_mnist()
