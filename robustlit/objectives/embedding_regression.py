"""Embedding regression: train an image's embedding towards that of its class; the nearest one gives the class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class EmbeddingRegression:
    """Mean of ||e(x) - t_y||^2: the distance of the image's embedding to the fixed one of its class.

    The embeddings belong to the classifier (`robustlit.models.EmbeddingClassifier`), whose forward returns
    -||e(x) - t_k||^2 / T, so that the trained function is the one deployed and attacked.

    Raises:
        ValueError: When called, for a classifier without embeddings.
    """

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the mean squared distance of the (B, C, H, W) images' embeddings to those of their (B,) classes."""
        embed, classify = getattr(classifier, "embed", None), getattr(classifier, "classify", None)
        targets = getattr(classifier, "embeddings", None)
        if not callable(embed) or not callable(classify) or not isinstance(targets, Tensor):
            raise ValueError(
                f"EmbeddingRegression needs a classifier with class embeddings, got {type(classifier).__name__}; wrap "
                "it: robustlit.models.EmbeddingClassifier(net)"
            )
        e = embed(x)  # (B, D)
        return {"loss": (e - targets[y]).square().sum(1).mean(), "logits": classify(e)}
