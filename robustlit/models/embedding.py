"""A classifier by distance: a net embeds the image, and the nearest class embedding gives its class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlit.checks import check_integer, check_positive


class EmbeddingClassifier(nn.Module):
    """Logits -||e(x) - t_k||^2 / T of fixed class embeddings t_k.

    The head of regression to label embeddings; train it on `robustlit.objectives.EmbeddingRegression`.

    Args:
        net: From images (B, C, H, W) in [0, 1] to their embeddings e (B, D).
        num_classes: Number of classes K, at least 2.
        embeddings: (K, D), no two equal; None takes the one-hot vectors, D = K.
        temperature: T, positive. It scales the logits and does not change the predicted class.

    Raises:
        ValueError: An argument is out of its range.
    """

    embeddings: Tensor

    def __init__(
        self, net: nn.Module, num_classes: int = 10, embeddings: Sequence[Sequence[float]] | Tensor | None = None,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("num_classes", num_classes, 2, "a classifier needs two classes or more")
        check_positive(temperature, "temperature", "; 1 changes nothing")
        given = torch.eye(num_classes) if embeddings is None else torch.as_tensor(embeddings, dtype=torch.float32)
        if given.ndim != 2 or len(given) != num_classes:
            raise ValueError(f"embeddings must be (K, D), num_classes={num_classes}, got shape {tuple(given.shape)}")
        if not given.isfinite().all():
            raise ValueError("embeddings must be finite, found NaN or infinity")
        if len(given.unique(dim=0)) < num_classes:
            raise ValueError("two classes have the same embedding and could not be separated; make them differ")
        self.net = net
        self.temperature = float(temperature)
        self.register_buffer("embeddings", given.detach().clone())

    def embed(self, x: Tensor) -> Tensor:
        """Return embeddings e (B, D) of the images, float32 or wider."""
        e, size = self.net(x), self.embeddings.shape[1]
        if e.ndim != 2 or e.shape[1] != size:
            raise ValueError(
                f"the net must return embeddings (B, {size}), got shape {tuple(e.shape)}; build it with "
                f"num_classes={size}"
            )
        return e.to(torch.promote_types(e.dtype, torch.float32))

    def classify(self, e: Tensor) -> Tensor:
        """Return logits (B, K) of embeddings (B, D)."""
        with torch.autocast(e.device.type, enabled=False):  # small distances are differences of large numbers
            t = self.embeddings.to(e.dtype)
            squared = e.square().sum(1, keepdim=True) - 2 * e @ t.T + t.square().sum(1)
        return -squared / self.temperature

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, H, W) pixels in [0, 1]; return logits (B, K)."""
        return self.classify(self.embed(x))
