"""Label embedding: soft targets that give small probabilities to similar classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.checks import check_choice, check_positive
from robustlit.objectives.class_similarity import class_mean_similarity, confusion_similarity, logits_of
from robustlit.objectives.objective import ObjectiveOutput

SOURCES = ("confusion", "logits", "pixels")


@dataclass
class SoftLabelEmbedding:
    """Cross-entropy against row y of a class-similarity matrix in place of the one-hot vector.

    The idea is from section 11 of the 2019 report, which gives no method. Row y of the target matrix is
    S[y] ** (1 / temperature), normalised; where the true class would get less than `floor` it gets `floor`, and the
    others share the rest in proportion. Such targets reduce the logits, which alone makes attacks on the
    cross-entropy weaker: judge it by margin losses, targeted attacks and transfer.

    Args:
        similarity: (K, K) not negative, larger where classes are more similar, with a positive diagonal; or what
            `prepare` computes it from: "confusion" (of a reference classifier on training images), "logits" (distances
            of its class means), "pixels" (of the images' own class means, without a reference).
        temperature: Positive; above 1 it makes the similarities more equal.
        floor: Least probability of the true class, in (0, 1].

    Attributes:
        similarity_matrix: (K, K) float64, None before `prepare`; as a list of lists it can be passed as `similarity`.
        targets: (K, K) float32, the target rows.

    Raises:
        ValueError: An unknown source, a matrix that is not square, negative, not finite, or zero on its diagonal,
            temperature or floor out of range.
    """

    similarity: str | Sequence[Sequence[float]]
    temperature: float = 1.0
    floor: float = 0.9
    similarity_matrix: Tensor | None = field(init=False, default=None, repr=False, compare=False)
    targets: Tensor | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_positive(self.temperature, "temperature", "; 1 changes nothing")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must be a probability in (0, 1], got {self.floor}; 1 is the one-hot target")
        if not isinstance(self.similarity, str):
            self._take(torch.as_tensor(self.similarity, dtype=torch.float64))
        else:
            check_choice(self.similarity, "similarity, where it is not a matrix,", SOURCES)

    @property
    def needs_data(self) -> bool:
        """Whether `prepare` must be called before training."""
        return self.similarity_matrix is None

    @property
    def needs_reference(self) -> bool:
        """Whether `prepare` must be called, and with a trained classifier."""
        return self.needs_data and self.similarity != "pixels"

    def prepare(self, reference: nn.Module | None, images: Tensor, labels: Tensor) -> None:
        """Compute the matrix from training images, once, before training.

        Args:
            reference: A trained classifier on the images' device; None is enough for "pixels".
            images: (N, C, H, W) in [0, 1], a few thousand of the training split.
            labels: (N,) their classes; every class must occur.

        Raises:
            ValueError: No reference where one is needed, a class without an image, a matrix was given.
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
        """Return the mean cross-entropy of (B, C, H, W) images against the target rows of their (B,) classes."""
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
    """Return row-stochastic targets (K, K) of a similarity matrix (K, K); see `SoftLabelEmbedding`."""
    rows = (similarity.log() / temperature).softmax(1)
    own = rows.diagonal()
    raised = own.clamp_min(floor)
    others = rows - torch.diag(own)
    rest = torch.where(own < 1, (1 - raised) / others.sum(1).clamp_min(torch.finfo(rows.dtype).tiny), 0.0)
    return others * rest.unsqueeze(1) + torch.diag(raised)
