"""Which examples make up a batch, and a loader that cuts batches out of tensors in memory."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from robustlit.data.augment import Augment

Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]


def seeded_generator(*key: int) -> Generator:
    """A CPU generator whose draws depend on `key` alone (integers, 0 or more)."""
    # SeedSequence mixes the key: neighbouring seeds and epochs get unrelated streams.
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0, 1], exactly the quotient by 255 on every device."""
    # CUDA divides by a Python number as a product with its reciprocal, which rounds otherwise; not so by a tensor.
    return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))


class BatchIndices:
    """The example indices of each batch, one LongTensor a batch; the sampler of every loader here.

    Training (`shuffle=True`): the order is a function of (seed, epoch) alone. Of `world_size` processes each takes
    every `world_size`-th example, after the up to `world_size - 1` last ones of the order are left out, so that all
    have the same number of batches.

    Evaluation (`shuffle=False`): consecutive batches, the b-th to process b % world_size; nothing is repeated or left
    out, and the batches are the same for any number of processes. Only where there are fewer batches than processes
    are they made smaller, since Lightning cannot evaluate with a process that has none.

    Args:
        indices: the examples to draw from, int64 (N,), or N for all of range(N).
        batch_size: examples a batch in each process; the last batch may be smaller.
        shuffle: training order (True) or evaluation order (False).
        seed: of the training order, 0 or more.
        rank: this process, in [0, world_size).
        world_size: number of processes.

    Attributes:
        epoch: what `set_epoch` set last (0 before).
        position: batches already handed out in this epoch.
        next_start: batch at which the next pass starts; not 0 only after `load_state_dict`.

    Raises:
        ValueError: an argument out of range, or fewer examples than processes.
    """

    def __init__(
        self,
        indices: Tensor | int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices = torch.arange(indices) if isinstance(indices, int) else indices.cpu()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more examples, got {batch_size}")
        if seed < 0:
            raise ValueError(f"the seed of the order must be 0 or more, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {rank} with world_size {world_size}")
        if len(self.indices) < world_size:
            raise ValueError(
                f"{len(self.indices)} examples cannot be shared among {world_size} processes: "
                "every process needs one; take more examples or fewer devices"
            )
        too_few = not shuffle and -(-len(self.indices) // batch_size) < world_size
        self.batch_size = len(self.indices) // world_size if too_few else batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self.next_start = 0

    def __len__(self) -> int:
        """Batches of this process in one epoch, also when a pass was resumed in the middle."""
        if self.shuffle:
            return -(-(len(self.indices) // self.world_size) // self.batch_size)
        batches = -(-len(self.indices) // self.batch_size)
        return len(range(self.rank, batches, self.world_size))

    def __iter__(self) -> Iterator[Tensor]:
        # A generator: nothing below runs before the first batch is asked for, because Lightning makes the iterator
        # first and calls set_epoch afterwards.
        start, self.next_start = self.next_start, 0
        batches = self._batches()
        for number in range(start, len(self)):
            self.position = number + 1
            yield batches[number]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass. Lightning calls it on `loader.sampler` before each epoch.

        A position that was loaded for another epoch is dropped: that epoch was complete.
        """
        if epoch != self.epoch:
            self.epoch, self.position, self.next_start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the batches handed out in it, and how many it has in this process."""
        return {"epoch": self.epoch, "position": self.position, "length": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next pass, and only that, start after the batches that were handed out before `state_dict`.

        If an epoch has another number of batches than it had then (more processes, say), the pass starts at the same
        share of the epoch.
        """
        self.epoch = state["epoch"]
        self.position = round(state["position"] * len(self) / state.get("length", len(self)))
        self.next_start = self.position

    def generator(self) -> Generator:
        """For what is random about the batch handed out last: depends on (seed, epoch, batch, process) alone."""
        return seeded_generator(self.seed, self.epoch, self.position, self.rank)

    def _batches(self) -> tuple[Tensor, ...]:
        if not self.shuffle:
            return self.indices.split(self.batch_size)[self.rank :: self.world_size]
        order = torch.randperm(len(self.indices), generator=seeded_generator(self.seed, self.epoch))
        even = len(order) - len(order) % self.world_size
        return self.indices[order[self.rank : even : self.world_size]].split(self.batch_size)


class IndexedLoader:
    """What Lightning asks of a loader, for loaders whose batches `sampler` chooses.

    It is not a torch DataLoader, so Lightning leaves the sampler alone; it is stateful, so Lightning saves and restores
    the place in the epoch with each checkpoint.
    """

    sampler: BatchIndices
    batch_sampler = None  # Lightning reads it off everything that has a sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """See `BatchIndices.state_dict`."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `BatchIndices.load_state_dict`."""
        self.sampler.load_state_dict(state)


class Batches(IndexedLoader):
    """Iterates over batches of images held in memory as uint8, on the device where they lie.

    Yields (x, y, index): x float32 (B, C, H, W) in [0, 1], y int64 (B,), index int64 (B,), the examples' places in
    `images`.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), on the same device.
        batch_size: examples a batch in each process.
        indices: int64 (M,), the examples to use; all of them by default.
        shuffle, seed, rank, world_size: see `BatchIndices`.
        augment: function (x, generator) -> x applied to each float batch, for instance `crop_and_flip()`.

    Raises:
        ValueError: images or labels of another type or shape, or an argument out of range.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        indices: Tensor | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        augment: Augment | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
        self.images = images
        self.labels = labels
        self.augment = augment
        self.sampler = BatchIndices(
            len(images) if indices is None else indices,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    def __iter__(self) -> Iterator[Batch]:
        for index in self.sampler:
            index = index.to(self.images.device, non_blocking=True)
            x = to_pixels(self.images.index_select(0, index))
            if self.augment is not None:
                x = self.augment(x, self.sampler.generator())
            yield x, self.labels.index_select(0, index), index
