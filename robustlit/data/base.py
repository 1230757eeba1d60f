"""What every data module here has in common: three splits as indices, seen alike by any number of processes."""

from functools import cached_property

import pytorch_lightning as pl
import torch
from torch import Tensor

from robustlit.data.batches import Batch, IndexedLoader
from robustlit.data.errors import DataError
from robustlit.data.splits import check_size, stratified

SPLITS = ("train", "val", "test")


class ClassificationData(pl.LightningDataModule):
    """Base of the data modules. Works with a Trainer and without (`module.test_dataloader()` is enough).

    A batch is (x, y, index): x float32 (B, C, H, W) in [0, 1], y int64 (B,), index int64 (B,), the example's place in
    the training split (training and validation batches) or in the test split. The validation split is stratified, held
    out of training, and depends on `val_size` and `seed` alone.

    Attributes:
        name: short name for folders and tables.
        num_classes, in_chans, image_size: classes, channels, height (= width) in pixels.
    """

    name: str
    num_classes: int
    in_chans: int
    image_size: int

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        train_size: int | float | None,
        val_size: int | float,
        test_size: int | float | None,
        seed: int,
        shuffle_seed: int,
        augment: bool,
    ) -> None:
        super().__init__()
        check_size(val_size, "val_size")
        for size, what in ((train_size, "train_size"), (test_size, "test_size")):
            if size is not None:
                check_size(size, what)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size
        self.seed = seed
        self.shuffle_seed = shuffle_seed
        self.augment = augment

    def split_labels(self) -> tuple[Tensor, Tensor]:
        """Labels of the whole training and of the whole test split, int64, on the CPU."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Reads the data and chooses the splits that `stage` needs ("fit", "validate", "test", "predict"; None: all).

        Calling it again costs nothing, and the loaders call it themselves.

        Raises:
            DataError: data missing, or labels out of range.
            ValueError: a size that the data cannot satisfy.
        """
        if stage in ("fit", "validate", None):
            _ = self.train_val_indices
        if stage in ("test", "predict", None):
            _ = self.test_indices

    @cached_property
    def train_val_indices(self) -> tuple[Tensor, Tensor]:
        """Places in the training split of the training and of the validation examples, each int64, rising."""
        labels = self._labels[0]
        # Validation first, so that train_size does not change it.
        val, rest = stratified(labels, self.val_size, "val_size", self.seed)
        if len(rest) == 0:
            raise ValueError(f"val_size={self.val_size} leaves no example to train on; there are {len(labels)}")
        return self.excerpt(rest, labels, self.train_size, "train_size"), val

    @cached_property
    def test_indices(self) -> Tensor:
        """Places in the test split of the test examples, int64, rising."""
        labels = self._labels[1]
        return self.excerpt(torch.arange(len(labels)), labels, self.test_size, "test_size")

    def excerpt(self, indices: Tensor, labels: Tensor, size: int | float | None, name: str) -> Tensor:
        """The stratified part of `indices` (places in `labels`) that `size` asks for; all of them for None."""
        return indices if size is None else indices[stratified(labels[indices], size, name, self.seed)[0]]

    @property
    def process(self) -> tuple[int, int]:
        """Rank of this process and number of processes; (0, 1) without a Trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> IndexedLoader:
        """Shuffled training batches; `sampler.set_epoch` chooses the order, and Lightning calls it."""
        raise NotImplementedError

    def val_dataloader(self) -> IndexedLoader:
        """Validation batches in order, none repeated on any process."""
        raise NotImplementedError

    def test_dataloader(self) -> IndexedLoader:
        """Test batches in order, none repeated on any process."""
        raise NotImplementedError

    def tensors(self, split: str, size: int | None = None) -> Batch:
        """A split at once, on every process and not augmented: x (N, C, H, W), y (N,), index (N,).

        Args:
            split: "train", "val" or "test".
            size: at most so many, the classes in their shares; None: all.

        Raises:
            ValueError: an unknown split, a size below 1.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.setup({"train": "fit", "val": "validate"}.get(split, split))
        indices = self.test_indices if split == "test" else self.train_val_indices[split == "val"]
        if size is not None and size < len(indices):
            stratifiable = len(indices) - size >= self.num_classes  # what remains needs one of each class as well
            indices = self.excerpt(indices, self._labels_of(split), size, "size") if stratifiable else indices[:size]
        return self._read(split, indices)

    def _read(self, split: str, indices: Tensor) -> Batch:
        """The examples `indices` of a split, as `tensors` gives them."""
        raise NotImplementedError

    def _labels_of(self, split: str) -> Tensor:
        """Labels, (N,), that the indices of a split are places in."""
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
