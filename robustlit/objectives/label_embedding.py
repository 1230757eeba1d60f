"""Label embedding: targets that give small probability to the classes that look alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.objectives.class_similarity import class_mean_similarity, confusion_similarity, logits_of
from robustlit.objectives.objective import ObjectiveOutput

SOURCES = ("confusion", "logits", "pixels")


@dataclass
class SoftLabelEmbedding:
    """Cross-entropy against row y of a class-similarity matrix in place of the one-hot vector.

    The idea is that of section 11 of the 2019 report, which gives no method. Row y of the target matrix is
    S[y] ** (1 / temperature), normalised; where the true class would get less than `floor` it gets `floor`, and the
    others share the rest in proportion. Such targets squeeze the logits, which alone makes attacks on the
    cross-entropy weaker: judge it by margin losses, targeted attacks and transfer.

    Args:
        similarity: (K, K) not negative, larger where classes are more alike, with a positive diagonal; or where to take
            it from, by `prepare`: "confusion" (of a reference classifier on training images), "logits" (distances of
            its class means), "pixels" (of the images' own class means, without a reference).
        temperature: positive; above 1 it evens the similarities out.
        floor: least probability of the true class, in (0, 1].

    Attributes:
        similarity_matrix: (K, K) float64, None before `prepare`; as a list of lists it is a `similarity` again.
        targets: (K, K) float32, the rows that are trained on.

    Raises:
        ValueError: an unknown source, a matrix that is not square, negative, not finite, or zero on its diagonal,
            temperature or floor out of range.
    """

    similarity: str | Sequence[Sequence[float]]
    temperature: float = 1.0
    floor: float = 0.9
    similarity_matrix: Tensor | None = field(init=False, default=None, repr=False, compare=False)
    targets: Tensor | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}; 1 changes nothing")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must be a probability in (0, 1], got {self.floor}; 1 is the one-hot target")
        if not isinstance(self.similarity, str):
            self._take(torch.as_tensor(self.similarity, dtype=torch.float64))
        elif self.similarity not in SOURCES:
            raise ValueError(f"similarity must be a matrix or one of {', '.join(SOURCES)}, got {self.similarity!r}")

    @property
    def needs_data(self) -> bool:
        """Whether `prepare` must be called before training."""
        return self.similarity_matrix is None

    @property
    def needs_reference(self) -> bool:
        """Whether `prepare` must be called, and with a trained classifier."""
        return self.needs_data and self.similarity != "pixels"

    def prepare(self, reference: nn.Module | None, images: Tensor, labels: Tensor) -> None:
        """Computes the matrix from training images; once, before training.

        Args:
            reference: a trained classifier on the images' device; unused, and may be None, for "pixels".
            images: (N, C, H, W) in [0, 1], a few thousand of the training split.
            labels: (N,) their classes; every class must be there.

        Raises:
            ValueError: no reference where one is needed, a class without an image, a matrix was given.
        """
        if not isinstance(self.similarity, str):
            raise ValueError("similarity was given as a matrix: there is nothing to prepare")
        if self.similarity == "pixels":
            self._take(class_mean_similarity(images, labels))
            return
        if reference is None:
            raise ValueError(f"similarity={self.similarity!r} needs a reference classifier: a trained one (base=RUN)")
        if self.similarity == "confusion":
            self._take(confusion_similarity(reference, images, labels))
        else:
            logits = logits_of(reference, images)
            self._take(class_mean_similarity(logits, labels, logits.shape[1]))

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Mean cross-entropy of (B, C, H, W) images against the target rows of their (B,) classes."""
        if self.targets is None:
            raise ValueError(
                f"similarity={self.similarity!r} is not computed yet: call prepare(reference, images, labels) with "
                "training images before training"
            )
        logits = classifier(x)
        if logits.shape[1] != len(self.targets):
            raise ValueError(
                f"the similarity matrix is for {len(self.targets)} classes, the classifier has {logits.shape[1]}"
            )
        if self.targets.device != logits.device:  # moved once, then kept there
            self.targets = self.targets.to(logits.device)
        return {"loss": F.cross_entropy(logits, self.targets[y]), "logits": logits}

    def _take(self, matrix: Tensor) -> None:
        matrix = matrix.detach().cpu()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
            raise ValueError(f"similarity must be a square matrix (K, K) with K >= 2, got shape {tuple(matrix.shape)}")
        if not matrix.isfinite().all() or (matrix < 0).any():
            wrong = matrix[~(matrix.isfinite() & (matrix >= 0))][0].item()
            raise ValueError(f"similarities must be finite and at least 0, found {wrong:g}; shift or exponentiate them")
        if not (matrix.diagonal() > 0).all():
            number = int(torch.nonzero(matrix.diagonal() <= 0)[0])
            raise ValueError(f"a class must be similar to itself, but similarity[{number}][{number}] is 0")
        self.similarity_matrix = matrix
        self.targets = target_rows(matrix, self.temperature, self.floor).float()


def target_rows(similarity: Tensor, temperature: float, floor: float) -> Tensor:
    """Row-stochastic targets (K, K) of a similarity matrix (K, K); see `SoftLabelEmbedding`."""
    rows = (similarity.log() / temperature).softmax(1)
    own = rows.diagonal()
    raised = own.clamp_min(floor)
    others = rows - torch.diag(own)
    rest = torch.where(own < 1, (1 - raised) / others.sum(1).clamp_min(torch.finfo(rows.dtype).tiny), 0.0)
    return others * rest.unsqueeze(1) + torch.diag(raised)
