"""What is measured of the space of images around a net's examples, see `robustlit.evaluation.geometry`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OFF_MANIFOLD = 0.95  # farther from all training images than this share of the clean test images: off them


@dataclass(frozen=True)
class Slice:
    """A plane of the space of images, as the net divides it.

    Args:
        across, up: (S,) coordinates of its points, L2 distances in pixel units; the example lies at (0, 0).
        classes: (S, S) predicted class of each point, row by row upwards, -1 for none. A point outside the box of
            pixels is judged at the nearest image in it.
        inside: (S, S) whether a point is an image: all its pixels in [0, 1].
        points: Name -> coordinates of the images that lie in the plane.
    """

    across: np.ndarray
    up: np.ndarray
    classes: np.ndarray
    inside: np.ndarray
    points: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Neighbours:
    """Nearest adversarial examples, and the training images that are nearest to them: one entry an image (N,).

    Args:
        label, taken: True class, and the class that the adversarial example is taken for.
        size: Distance of the adversarial example.
        own, other: Distance of the clean image to the nearest training image of its class, and of any other class.
        adversarial_own, adversarial_taken: The same of the adversarial example, to its true class and to `taken`.
        adversarial_any: To any training image.
    """

    label: np.ndarray
    taken: np.ndarray
    size: np.ndarray
    own: np.ndarray
    other: np.ndarray
    adversarial_own: np.ndarray
    adversarial_taken: np.ndarray
    adversarial_any: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return medians, and the shares that decide whether adversarial examples lie in vacant space."""
        names = ("size", "own", "other", "adversarial_own", "adversarial_taken")
        ordinary = np.quantile(np.minimum(self.own, self.other), OFF_MANIFOLD)
        return {
            "n": len(self.label),
            **{f"median_{name}": float(np.median(getattr(self, name))) for name in names},
            "share_nearer_to_own_class": float((self.adversarial_own < self.adversarial_taken).mean()),
            "share_off_all_training_images": float((self.adversarial_any > ordinary).mean()),
            "median_size_over_gap": float(np.median(self.size / self.other)),
        }


@dataclass(frozen=True)
class Pairs:
    """Every ordered pair of some classes: from the row's class to the column's.

    Args:
        classes: The K' classes.
        margin: (K', K') mean of logit(row) - logit(column) on clean images of the row's class.
        distance: (K', K') median L2 distance of the nearest image found that is taken for the column's class (by DDN,
            or on the line to a training image of it), NaN where there is none.
        images: Images of each class.
    """

    classes: list[int]
    margin: np.ndarray
    distance: np.ndarray
    images: int
