"""Class similarity: (K, K) matrices from a classifier's confusion or from class means, and their embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.attacks.victim import Victim
from robustlit.classifier import check_labels, default_batch_size


def confusion_similarity(reference: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the soft confusion: the mean probabilities that a reference classifier gives to the images of each class.

    Args:
        reference: From images (N, C, H, W) in [0, 1] to logits (N, K), on their device.
        images: Of the training split, never of the test split.
        labels: (N,) their classes; every class must occur.

    Returns:
        (K, K) float64 on the CPU, rows sum to 1: row y for the images of class y.

    Raises:
        ValueError: A class without an image, labels out of range, logits that are not finite.
    """
    logits = logits_of(reference, images)
    return class_means(logits.softmax(1), labels, logits.shape[1])


def class_mean_similarity(features: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Return exp(-d^2 / mean d^2) of the distances d between the class means of features.

    Args:
        features: (N, ...) images, logits or any other embedding of the training examples.
        labels: (N,) their classes; every class must occur.
        num_classes: K; None takes the highest label plus one.

    Returns:
        (K, K) float64 on the CPU, symmetric, 1 on the diagonal.

    Raises:
        ValueError: A class without an example, labels out of range, equal class means.
    """
    means = class_means(features, labels, num_classes)
    squared = (means.unsqueeze(0) - means.unsqueeze(1)).square().sum(-1)
    scale = squared.sum() / (len(means) * (len(means) - 1))
    if not scale > 0:
        raise ValueError("all classes have the same mean feature, so no distance separates them; take other features")
    return torch.exp(-squared / scale)


def class_means(features: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Return the mean feature of each class, (K, D) float64 on the CPU; see `class_mean_similarity`."""
    labels = labels.cpu()
    check_labels(labels, len(features), num_classes)
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    if count < 2:
        raise ValueError(f"similarity needs two classes or more, got labels of {count}")
    sizes = torch.bincount(labels, minlength=count)
    if missing := torch.nonzero(sizes == 0).flatten().tolist():
        raise ValueError(f"every class needs at least one example, there is none of {missing}; give more examples")
    flat = features.detach().flatten(1).cpu().double()
    return flat.new_zeros(count, flat.shape[1]).index_add_(0, labels, flat) / sizes.unsqueeze(1)


def logits_of(reference: nn.Module, images: Tensor) -> Tensor:
    """Return the reference's logits (N, K) in eval mode, batch by batch, float64 on the CPU.

    Raises:
        ValueError: Logits that are not finite.
    """
    parts = []
    for batch in images.split(default_batch_size(images.shape)):
        with Victim(reference, batch) as victim:
            parts.append(victim.logits(batch).cpu().double())
    logits = torch.cat(parts)
    if not logits.isfinite().all():
        raise ValueError(f"{type(reference).__name__} gives logits that are not finite; it cannot serve as reference")
    return logits


def similarity_embeddings(similarity: Tensor) -> Tensor:
    """Return class embeddings (K, K) whose inner products approximate the similarities best.

    From the eigenvectors of the matrix made symmetric, without its negative eigenvalues (classical scaling).

    Args:
        similarity: (K, K).
    """
    symmetric = (similarity + similarity.T).double() / 2
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values.clamp_min(0).sqrt()
