"""What every data module here shares: three splits as indices, the same for any number of processes."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor

from robustlit.checks import check_choice, check_count
from robustlit.classifier import default_batch_size
from robustlit.data.augment import Augment
from robustlit.data.batches import Batch, Batches, IndexedLoader, check_shares
from robustlit.data.errors import DataError
from robustlit.data.splits import check_size, nested, stratified

SPLITS = ("train", "val", "test")


class Settings(TypedDict, total=False):
    """Keyword arguments of every data module, see `ClassificationData`."""

    batch_size: int
    eval_batch_size: int | None
    train_size: int | float | None
    val_size: int | float
    test_size: int | float | None
    seed: int
    shuffle_seed: int
    augment: bool


class ClassificationData(pl.LightningDataModule):
    """Base of the data modules. They work with a Trainer and without (`module.test_dataloader()` is enough).

    A batch is (x, y, index): x float32 (B, C, H, W) in [0, 1], y int64 (B,), index int64 (B,), the example's place in
    the training split (training and validation batches) or in the test split. The validation split is stratified, held
    out of training, and depends on `val_size` and `seed` alone.

    Args:
        batch_size: Training examples per batch, in each process.
        eval_batch_size: Validation and test examples per batch; None: see `robustlit.classifier.default_batch_size`.
        train_size: How many of the examples left after validation to train on; number, fraction, or None for all. Each
            size is drawn on its own, not nested as `test_size` is.
        val_size: How many training examples to hold out for validation; number or fraction.
        test_size: How many test examples to use; number, fraction, or None for all. They are the first of one fixed
            order that keeps the shares of the classes (see `robustlit.data.splits.nested`): the images of a smaller
            size are among those of a larger one, so figures of 100 and of 1 000 images compare.
        seed: Decides which examples are in which split.
        shuffle_seed: Decides the order of the training batches.
        augment: Random crops (and flips, where they keep the class) of training batches.

    Raises:
        ValueError: A size that is no number of examples and no fraction in (0, 1).
    """

    usual_eps: ClassVar[float | None] = None  # the L-inf budget that papers quote for these data, in pixel units
    name: str  # for folders and tables
    num_classes: int
    in_chans: int
    image_size: int  # height and width in pixels

    def __init__(
        self, *, batch_size: int = 128, eval_batch_size: int | None = None, train_size: int | float | None = None,
        val_size: int | float = 2000, test_size: int | float | None = None, seed: int = 0, shuffle_seed: int = 0,
        augment: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        given = {"batch_size": batch_size} | ({} if eval_batch_size is None else {"eval_batch_size": eval_batch_size})
        for name, size in given.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise ValueError(f"{name} must be a whole number of examples, got {size!r}")
        check_size(val_size, "val_size")
        check_size(1 if train_size is None else train_size, "train_size")
        check_size(1 if test_size is None else test_size, "test_size")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self.seed, self.shuffle_seed, self.augment = seed, shuffle_seed, augment
        self._leading = torch.arange(0)  # test examples that come first, see `put_first`

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by number, for figures and tables; the numbers themselves where the data have none."""
        return tuple(map(str, range(self.num_classes)))

    def split_labels(self) -> tuple[Tensor, Tensor]:
        """Return the labels of the whole training and of the whole test split, int64, on the CPU."""
        raise NotImplementedError

    def loader(self, split: str, indices: Tensor, *, train: bool = False) -> IndexedLoader:
        """Return this process's batches of the examples `indices` of a split; `train`: shuffled, and augmented."""
        raise NotImplementedError

    def examples(self, split: str, indices: Tensor) -> Batch:
        """Return the examples `indices` of a split at once, not augmented, on every process."""
        raise NotImplementedError

    def batches(
        self, images: Tensor, labels: Tensor, indices: Tensor, augment: Augment, *, train: bool = False
    ) -> Batches:  # fmt: skip
        """Return what `loader` does, of a split in memory: images uint8 (N, C, H, W), labels int64 (N,)."""
        rank, world_size = self.process
        return Batches(
            images, labels, self.size_of_batches(train=train), indices=indices,
            augment=augment if train and self.augment else None, shuffle=train, seed=self.shuffle_seed, rank=rank,
            world_size=world_size,
        )  # fmt: skip

    def size_of_batches(self, *, train: bool) -> int:
        """Return the examples per batch, in each process: of a training batch, or of one for validation and tests."""
        if train:
            return self.batch_size
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        return default_batch_size((self.in_chans, self.image_size, self.image_size))

    def on_gpu(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return tensors on the GPU of the Trainer; as they are where it has none."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        return tuple(tensor.to(device) for tensor in tensors) if device.type == "cuda" else tensors

    def setup(self, stage: str | None = None) -> None:
        """Read the data and choose the splits that `stage` needs (None: all); a second call costs nothing.

        Raises:
            DataError: Data missing, or labels out of range.
            ValueError: A size that the data cannot satisfy.
        """
        if stage in ("fit", "validate", None):
            _ = self.train_val_indices
        if stage in ("test", "predict", None):
            _ = self.test_indices

    @cached_property
    def train_val_indices(self) -> tuple[Tensor, Tensor]:
        """Places in the training split of the training and of the validation examples, each int64, ascending."""
        labels = self._labels[0]
        # Validation first, so that train_size does not change it.
        val, rest = stratified(labels, self.val_size, "val_size", self.seed)
        if len(rest) == 0:
            raise ValueError(f"val_size={self.val_size} leaves no example to train on; there are {len(labels)}")
        return self.excerpt(rest, labels, self.train_size, "train_size"), val

    @cached_property
    def test_indices(self) -> Tensor:
        """Places in the test split of the test examples, int64, ascending."""
        labels = self._labels[1]
        return torch.arange(len(labels)) if self.test_size is None else self._first(self.test_size, "test_size")

    def check_shares(self, processes: int) -> None:
        """Raise a ValueError unless there is a test example for each of so many processes."""
        check_shares(len(self.test_indices), processes, "test examples")

    def put_first(self, size: int) -> Tensor:
        """Let the test batches begin with the examples that `test_size=size` would take; return their places (n,).

        They are at most the examples that there are. Which examples are tested, and their numbers, stay as they are.

        Raises:
            ValueError: A size below 1.
        """
        check_count(size, "size")
        self._leading = self.test_indices if size >= len(self.test_indices) else self._first(size, "size")
        return self._leading

    def _first(self, size: int | float, name: str) -> Tensor:
        return nested(self._labels[1], size, name, self.seed)

    def excerpt(self, indices: Tensor, labels: Tensor, size: int | float | None, name: str) -> Tensor:
        """Return a stratified part of `indices` (places in `labels`), of the given size; all of them for None."""
        return indices if size is None else indices[stratified(labels[indices], size, name, self.seed)[0]]

    @property
    def process(self) -> tuple[int, int]:
        """Rank of this process and number of processes; (0, 1) without a Trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> IndexedLoader:
        """Return shuffled training batches; Lightning sets their order by `sampler.set_epoch`.

        With the Trainer's `overfit_batches` the order is the same in every epoch, and so are the batches.
        """
        self.setup("fit")
        loader = self.loader("train", self.train_val_indices[0], train=True)
        loader.sampler.same_order = bool(self.trainer and getattr(self.trainer, "overfit_batches", 0))
        return loader

    def predict_dataloader(self) -> IndexedLoader:
        """Return the test batches in ascending order, for `Trainer.predict`."""
        self.setup("test")
        return self.loader("test", self.test_indices)

    def val_dataloader(self) -> IndexedLoader:
        """Return validation batches in order, no example repeated."""
        self.setup("validate")
        return self.loader("val", self.train_val_indices[1])

    def test_dataloader(self) -> IndexedLoader:
        """Return test batches in ascending order but for the examples of `put_first`, no example repeated."""
        self.setup("test")
        rest = self.test_indices[~torch.isin(self.test_indices, self._leading)]
        return self.loader("test", torch.cat([self._leading, rest]))

    def tensors(self, split: str, size: int | None = None) -> Batch:
        """Return a split at once, on every process and not augmented: x (N, C, H, W), y (N,), index (N,).

        Args:
            split: "train", "val" or "test".
            size: At most so many, stratified by class (of "test" the first, as by `test_size`); None: all.

        Raises:
            ValueError: An unknown split, a size below 1.
        """
        check_choice(split, "split", SPLITS)
        self.setup({"train": "fit", "val": "validate"}.get(split, split))
        indices = self.test_indices if split == "test" else self.train_val_indices[split == "val"]
        if size is not None and size < len(indices) and split == "test":
            indices = self._first(size, "size")
        elif size is not None and size < len(indices):
            stratifiable = len(indices) - size >= self.num_classes  # the rest needs one example of each class as well
            indices = self.excerpt(indices, self.labels_of(split), size, "size") if stratifiable else indices[:size]
        return self.examples(split, indices)

    def labels_of(self, split: str) -> Tensor:
        """Return the labels (N,) that the indices of a split are places in."""
        return self._labels[1 if split == "test" else 0]

    @cached_property
    def _labels(self) -> tuple[Tensor, Tensor]:
        splits = self.split_labels()
        for labels, split in zip(splits, ("training", "test"), strict=True):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)]
            if len(wrong):
                raise DataError(
                    f"{self.name}: {split} labels must be in [0, {self.num_classes}), got {int(wrong[0])}; "
                    "number the classes from 0, or set num_classes"
                )
        return splits
