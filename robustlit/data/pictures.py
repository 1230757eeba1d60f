"""Pictures in files: decoded by worker processes, handed out in the batches of `BatchIndices`."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustlit.data.batches import Batch, BatchIndices, IndexedLoader, seeded_generator, to_pixels
from robustlit.data.errors import DataError

Samples = list[tuple[str, int]]


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """Decodes one picture at a time. Its key is (epoch, index), so that what is random in `transform` depends on them.

    Args:
        samples: path and class of each picture.
        mode: PIL's name of the colour space, "L" or "RGB".
        transform: function of a uint8 (C, H, W) tensor.
        seed: of the randomness in `transform`.
    """

    def __init__(self, samples: Samples, mode: str, transform: Callable[[Tensor], Tensor], seed: int) -> None:
        self.samples = samples
        self.mode = mode
        self.transform = transform
        self.seed = seed

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
        # torchvision draws from the global generator: give it this example's own state, and put the old one back.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(seeded_generator(self.seed, epoch, index).get_state())
            return to_pixels(self.transform(picture)), label, index


class PictureBatches(IndexedLoader):
    """A torch DataLoader that looks like `Batches`: the same sampler, the same triples, the same state.

    Workers read ahead of what was handed out, so the place in the epoch is counted here.

    Args:
        pictures: the data set.
        sampler: which pictures make up a batch.
        num_workers: decoding processes.
    """

    def __init__(self, pictures: Pictures, sampler: BatchIndices, num_workers: int) -> None:
        self.sampler = sampler
        self.loader: DataLoader[Any] = DataLoader(
            pictures,
            batch_sampler=_Keys(sampler),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, or each pass would draw from the global one
        )

    def __iter__(self) -> Iterator[Batch]:
        position = self.sampler.next_start
        for x, y, index in self.loader:
            position += 1
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
    """The transform that brings a uint8 (C, H, W) picture to `size` pixels a side.

    Args:
        size: height and width to return.
        augment: a random crop of random scale, mirrored half of the time, instead of the central square.
    """
    from torchvision.transforms import v2

    # All on uint8: interpolation cannot leave [0, 255], and so not the box.
    if augment:
        return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
