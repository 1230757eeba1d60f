"""Examples: a few clean images of every class, for whoever needs them by name in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustlit.data.base import ClassificationData
from robustlit.data.batches import seeded_generator

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Examples:
    """So many clean images of every class of a data module, chosen at random, read when they are first asked for.

    A recipe names them with a data module of their own, `{_target_: robustlit.data.Examples, data: ${data}}`; of a
    split that is tested on there are none.

    Args:
        data: a data module of this package, with or without a Trainer.
        per_class: images of each class.
        split: "train" (what is left after validation) or "val".
        seed: decides which images; 0 or more.

    Raises:
        ValueError: no data module, a count below 1, an unknown split, a negative seed; when they are read: a class that
            has fewer images.
    """

    data: ClassificationData
    per_class: int = 10
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.data, ClassificationData):
            raise ValueError(f"data must be a data module of robustlit.data, such as MNIST(), got {self.data!r}")
        if isinstance(self.per_class, bool) or not isinstance(self.per_class, int) or self.per_class < 1:
            raise ValueError(f"per_class must be a whole number of at least 1, got {self.per_class!r}")
        if self.split not in _SPLITS:
            raise ValueError(
                f"split must be one of {', '.join(_SPLITS)}, got {self.split!r}; an attack that has seen the images "
                "that it is tested on would be told the answer"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {self.seed!r}")

    def __repr__(self) -> str:
        name = type(self.data).__name__
        return f"Examples(<{name}>, per_class={self.per_class}, split={self.split!r}, seed={self.seed})"

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1], class by class."""
        return self._tensors[0]

    @property
    def labels(self) -> Tensor:
        """(N,) int64, rising."""
        return self._tensors[1]

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        self.data.setup("fit")
        places = self.data.train_val_indices[self.split == "val"]
        labels = self.data._labels_of(self.split)[places]
        order = torch.randperm(len(places), generator=seeded_generator(self.seed))
        chosen = []
        for number in range(self.data.num_classes):
            mine = order[labels[order] == number]
            if len(mine) < self.per_class:
                raise ValueError(
                    f"class {number} of {self.data.name} has {len(mine)} images in the {self.split} split, "
                    f"per_class={self.per_class} are asked for; lower per_class"
                )
            chosen.append(mine[: self.per_class])
        images, found, _ = self.data._read(self.split, places[torch.cat(chosen)])
        return images, found
