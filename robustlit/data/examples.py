"""A few clean images of every class, for attacks that a recipe gives them to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustlit.checks import check_count, check_integer
from robustlit.data.base import ClassificationData
from robustlit.data.batches import seeded_generator

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Examples:
    """Clean images of every class of a data module, chosen at random and read when they are first used.

    In a recipe: `{_target_: robustlit.data.Examples, data: ${data}}`. The test split is not offered.

    Args:
        data: A data module of this package, with or without a Trainer.
        per_class: Images of each class.
        split: "train" (what is left after validation) or "val".
        seed: Decides which images; 0 or more.

    Raises:
        ValueError: An argument out of range; when they are read: a class with fewer images.
    """

    data: ClassificationData
    per_class: int = 10
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.data, ClassificationData):
            raise ValueError(f"data must be a data module of robustlit.data, such as MNIST(), got {self.data!r}")
        check_count(self.per_class, "per_class")
        if self.split not in _SPLITS:
            raise ValueError(
                f"split must be one of {', '.join(_SPLITS)}, got {self.split!r}; an attack that has the test "
                "images would know the answer"
            )
        check_integer("seed", self.seed, 0, "0 is the default")

    def __repr__(self) -> str:
        name = type(self.data).__name__
        return f"Examples(<{name}>, per_class={self.per_class}, split={self.split!r}, seed={self.seed})"

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1], class by class."""
        return self._tensors[0]

    @property
    def labels(self) -> Tensor:
        """(N,) int64, ascending."""
        return self._tensors[1]

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        self.data.setup("fit")
        places = self.data.train_val_indices[self.split == "val"]
        labels = self.data.labels_of(self.split)[places]
        order = torch.randperm(len(places), generator=seeded_generator(self.seed))
        chosen = []
        for number in range(self.data.num_classes):
            members = order[labels[order] == number]
            if len(members) < self.per_class:
                raise ValueError(
                    f"class {number} of {self.data.name} has {len(members)} images in the {self.split} split, "
                    f"per_class={self.per_class} are asked for; lower per_class"
                )
            chosen.append(members[: self.per_class])
        images, found, _ = self.data.examples(self.split, places[torch.cat(chosen)])
        return images, found
