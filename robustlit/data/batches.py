"""The examples of each batch, and a loader of batches from tensors in memory."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from robustlit.data.augment import Augment, keeps_range

Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]


def seeded_generator(*key: int) -> Generator:
    """Return a CPU generator whose draws depend on `key` alone (integers, 0 or more)."""
    # SeedSequence mixes the key: neighbouring seeds and epochs get unrelated streams.
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def to_pixels(images: Tensor) -> Tensor:
    """Return uint8 0..255 as float32 in [0, 1], exactly the quotient by 255 on every device."""
    # CUDA multiplies by the reciprocal of a Python number, which rounds differently; it does divide by a tensor.
    return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))


def chosen(images: Tensor, labels: Tensor, indices: Tensor) -> Batch:
    """Return the examples `indices` of images uint8 (N, C, H, W) and labels (N,), on their device."""
    index = indices.to(images.device)
    return to_pixels(images[index]), labels[index], index


class BatchIndices:
    """The example indices of each batch, a LongTensor per batch: the sampler of every loader here.

    Training (`shuffle=True`): the order is a function of (seed, epoch) alone. Each of `world_size` processes takes
    every `world_size`-th example; up to `world_size - 1` last ones are left out, for the same number of batches each.
    Evaluation (`shuffle=False`): consecutive batches, the b-th to process b % world_size; no example is repeated or
    left out, and the batches are the same for any number of processes. Only where there are fewer batches than
    processes are they smaller, because Lightning cannot evaluate with a process that has none.
    A last training batch of one example joins the batch before it: BatchNorm cannot train on one.

    Args:
        indices: The examples to draw from, int64 (N,), or N for all of range(N).
        batch_size: Examples per batch in each process; the last batch may be smaller.
        shuffle: Training order (True) or evaluation order (False).
        seed: Seed of the training order, 0 or more.
        rank: This process, in [0, world_size).
        world_size: Number of processes.

    Raises:
        ValueError: An argument out of range, or fewer examples than processes.
    """

    def __init__(
        self, indices: Tensor | int, batch_size: int, *, shuffle: bool = False, seed: int = 0, rank: int = 0,
        world_size: int = 1,
    ) -> None:  # fmt: skip
        self.indices = torch.arange(indices) if isinstance(indices, int) else indices.cpu()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more examples, got {batch_size}")
        if seed < 0:
            raise ValueError(f"the seed of the order must be 0 or more, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {rank} with world_size {world_size}")
        check_shares(len(self.indices), world_size)
        too_few = not shuffle and -(-len(self.indices) // batch_size) < world_size
        self.batch_size = len(self.indices) // world_size if too_few else batch_size
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self.epoch = 0
        self.same_order = False  # in every epoch, for Lightning's `overfit_batches`
        self.position = 0  # batches already returned in this epoch
        self.next_start = 0  # batch at which the next pass starts; not 0 only after `load_state_dict`

    def __len__(self) -> int:
        """Return the batches of this process in one epoch, also when a pass was resumed in the middle."""
        if self.shuffle:
            return len(_sizes(len(self.indices) // self.world_size, self.batch_size))
        return len(range(self.rank, -(-len(self.indices) // self.batch_size), self.world_size))

    def __iter__(self) -> Iterator[Tensor]:
        # A generator, so that nothing below runs before the first batch: Lightning makes the iterator first and calls
        # set_epoch afterwards.
        start, self.next_start = self.next_start, 0
        batches = self._batches()
        for number in range(start, len(self)):
            self.position = number + 1
            yield batches[number]

    def set_epoch(self, epoch: int) -> None:
        """Set the order of the next pass; Lightning calls it before each epoch. Drop the position in another epoch."""
        if epoch != self.epoch and not self.same_order:
            self.epoch, self.position, self.next_start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the batches returned in it, and how many it has in this process."""
        return {"epoch": self.epoch, "position": self.position, "length": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass, and only that, start after the batches that were returned before `state_dict`.

        Where an epoch now has another number of batches (more processes), start at the same share of the epoch.
        """
        self.epoch = state["epoch"]
        self.position = round(state["position"] * len(self) / state.get("length", len(self)))
        self.next_start = self.position

    def generator(self) -> Generator:
        """Return the generator for the last batch, which depends on (seed, epoch, batch, process) alone."""
        return seeded_generator(self.seed, self.epoch, self.position, self.rank)

    def _batches(self) -> tuple[Tensor, ...]:
        if not self.shuffle:
            return self.indices.split(self.batch_size)[self.rank :: self.world_size]
        order = torch.randperm(len(self.indices), generator=seeded_generator(self.seed, self.epoch))
        even = len(order) - len(order) % self.world_size
        mine = self.indices[order[self.rank : even : self.world_size]]
        return mine.split(_sizes(len(mine), self.batch_size))


def check_shares(examples: int, processes: int, what: str = "examples") -> None:
    """Raise a ValueError unless each process can have an example; `what` they are called in the message."""
    if examples < processes:
        raise ValueError(
            f"{examples} {what} cannot be shared among {processes} processes: every process needs one; take more "
            "examples or fewer devices"
        )


def _sizes(examples: int, batch_size: int) -> list[int]:
    """Return the sizes of training batches; a last one of a single example joins the batch before it."""
    whole, rest = divmod(examples, batch_size)
    sizes = [batch_size] * whole
    if rest == 1 and whole:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


class IndexedLoader:
    """A loader of the batches that `sampler` chooses.

    Not a torch DataLoader, so Lightning keeps the sampler; stateful, so that checkpoints hold the place in the epoch.

    Attributes:
        in_range: Whether every image lies in [0, 1] by construction, so that training need not check it.
    """

    sampler: BatchIndices
    in_range = False
    batch_sampler = None  # Lightning reads it from everything that has a sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class Batches(IndexedLoader):
    """Batches (x, y, index) of images in memory: float32 (B, C, H, W) in [0, 1], labels (B,), places in `images` (B,).

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), on the same device.
        batch_size: Examples per batch in each process.
        indices: int64 (M,), the examples to use; all of them by default.
        shuffle, seed, rank, world_size: See `BatchIndices`.
        augment: Function (x, generator) -> x applied to each float batch, for instance `crop_and_flip()`.

    Raises:
        ValueError: Images or labels of another type or shape, or an argument out of range.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, batch_size: int, *, indices: Tensor | None = None, shuffle: bool = False,
        seed: int = 0, rank: int = 0, world_size: int = 1, augment: Augment | None = None,
    ) -> None:  # fmt: skip
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(images)},), one for each image, got {str(labels.dtype)[6:]} "
                f"{tuple(labels.shape)}"
            )
        self.images, self.labels, self.augment = images, labels, augment
        self.in_range = augment is None or keeps_range(augment)
        chosen = len(images) if indices is None else indices
        self.sampler = BatchIndices(chosen, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[Batch]:
        for index in self.sampler:
            index = index.to(self.images.device, non_blocking=True)
            x = to_pixels(self.images.index_select(0, index))
            if self.augment is not None:
                x = self.augment(x, self.sampler.generator())
            yield x, self.labels.index_select(0, index), index
