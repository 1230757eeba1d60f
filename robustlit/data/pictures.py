"""Pictures in files, decoded by worker processes into the batches of `BatchIndices`."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustlit.data.batches import Batch, BatchIndices, IndexedLoader, seeded_generator, to_pixels
from robustlit.data.errors import DataError

Samples = list[tuple[str, int]]


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """Decode one picture at a time. The key is (epoch, index), on which random draws in `transform` depend.

    Args:
        samples: Path and class of each picture.
        mode: PIL's name of the colour space, "L" or "RGB".
        transform: Function of a uint8 (C, H, W) tensor.
        seed: Seed of the random draws in `transform`.
    """

    def __init__(self, samples: Samples, mode: str, transform: Callable[[Tensor], Tensor], seed: int) -> None:
        self.samples, self.mode, self.transform, self.seed = samples, mode, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        epoch, index = key
        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                picture = pil_to_tensor(image.convert(self.mode))
        except OSError as error:
            raise DataError(f"{path} cannot be decoded as a picture ({error}); replace or remove it") from error
        # torchvision draws from the global generator: set this example's state, and restore the old one.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(seeded_generator(self.seed, epoch, index).get_state())
            return to_pixels(self.transform(picture)), label, index


class PictureBatches(IndexedLoader):
    """A torch DataLoader with the interface of `Batches`, and `num_workers` decoding processes.

    Workers read ahead of the batches returned, so the position in the epoch is counted here.
    """

    def __init__(self, pictures: Pictures, sampler: BatchIndices, num_workers: int) -> None:
        self.sampler = sampler
        self.loader: DataLoader[Any] = DataLoader(
            pictures, batch_sampler=_Keys(sampler), num_workers=num_workers, persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each pass would draw from the global one
        )  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        for position, (x, y, index) in enumerate(self.loader, self.sampler.next_start + 1):
            self.sampler.position = position
            yield x, y, index


class _Keys:
    """The batches of a sampler as lists of (epoch, index), the keys of `Pictures`."""

    def __init__(self, sampler: BatchIndices) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.sampler:
            yield [(self.sampler.epoch, index) for index in indices.tolist()]


def scale_and_crop(size: int, augment: bool) -> Callable[[Tensor], Tensor]:
    """Return the transform of a uint8 (C, H, W) picture to `size` pixels a side.

    It takes the central square, or with `augment` a random crop of random scale, mirrored half of the time.
    """
    from torchvision.transforms import v2

    # On uint8, so that interpolation cannot leave [0, 255].
    if augment:
        return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
