"""Data modules that hold their images in memory as uint8, and the first of them, MNIST."""

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from robustlit.data.augment import crop_and_flip
from robustlit.data.base import ClassificationData
from robustlit.data.batches import Batch, Batches, chosen
from robustlit.data.embedded import load_mnist


class InMemoryDataModule(ClassificationData):
    """Base of the data sets that fit in memory: a subclass sets the attributes and defines `read`.

    With a Trainer on CUDA the uint8 images move to the GPU once, and batches are cut there.
    """

    crop_padding: ClassVar[int] = 4
    flip: ClassVar[bool] = True

    def read(self) -> tuple[Tensor, ...]:
        """Return training images uint8 (N, C, H, W), labels int64 (N,), test images, test labels."""
        raise NotImplementedError

    def split_labels(self) -> tuple[Tensor, Tensor]:
        return self._tensors[1].cpu(), self._tensors[3].cpu()

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._tensors = self.on_gpu(self._tensors)

    def loader(self, split: str, indices: Tensor, *, train: bool = False) -> Batches:
        augment = crop_and_flip(self.crop_padding, self.flip)
        return self.batches(*self._images_and_labels(split), indices, augment, train=train)

    def examples(self, split: str, indices: Tensor) -> Batch:
        return chosen(*self._images_and_labels(split), indices)

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.read()

    def _images_and_labels(self, split: str) -> tuple[Tensor, Tensor]:
        images, labels = self._tensors[2:] if split == "test" else self._tensors[:2]
        return images, labels


class MNIST(InMemoryDataModule):
    """Handwritten digits, 60000 for training and 10000 for testing, 28 x 28 grey, part of the package, not mirrored."""

    name, usual_eps = "mnist", 0.3  # Madry 2018, arXiv:1706.06083
    num_classes, in_chans, image_size = 10, 1, 28
    crop_padding, flip = 2, False

    def read(self) -> tuple[Tensor, ...]:
        return load_mnist()
