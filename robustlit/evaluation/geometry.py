"""Where adversarial examples lie: slices of the decision regions, distances of classes, training images nearby.

Section 10 of the 2019 report explains adversarial examples by vacant space between the manifolds of the classes. Here
it is measured: the manifold of a class is represented by its training images, distances are L2 in pixel units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks import DDN, NearestL2
from robustlit.classifier import names_class, predicted
from robustlit.results.geometry import Neighbours, Pairs, Slice

Report = Callable[[str, float], None]  # what is computed, share of it done
_BATCH = 256  # images that are classified at once
_STEPS, _HALVINGS = 100, 12  # of the search for an image that is taken for a class
_SQUARE = 1.15  # half the side of a random slice, in distances to the other example


def slice_through(net: nn.Module, corners: Sequence[tuple[str, Tensor]], side: int) -> Slice:
    """Return the plane through three images (C, H, W), by name; the first is the origin, the second lies to its right.

    Raises:
        ValueError: The three lie on one line.
    """
    (first, origin), (second, right), (third, far) = corners
    u, reach = _direction(right - origin)
    rest = far - origin
    along = float((rest * u).sum())
    v, height = _direction(rest - along * u)
    points = {first: (0.0, 0.0), second: (reach, 0.0), third: (along, height)}
    across, up = np.array([p[0] for p in points.values()]), np.array([p[1] for p in points.values()])
    longest = max(float(np.ptp(across)), float(np.ptp(up)))
    middle = ((across.min() + across.max()) / 2, (up.min() + up.max()) / 2)
    edges = [np.linspace(m - 0.7 * longest, m + 0.7 * longest, side) for m in middle]
    return _slice(net, origin, (u, v), (edges[0], edges[1]), points)


def random_slice(net: nn.Module, origin: tuple[str, Tensor], reach: float, side: int, seed: int) -> Slice:
    """Return the plane through an image (C, H, W) along two random directions, over `reach` to each side."""
    name, image = origin
    draws = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, *image.shape, generator=draws).to(image)
    u, _ = _direction(first)
    v, _ = _direction(second - (second * u).sum() * u)
    edge = np.linspace(-_SQUARE * reach, _SQUARE * reach, side)
    return _slice(net, image, (u, v), (edge, edge), {name: (0.0, 0.0)})


def _direction(vector: Tensor) -> tuple[Tensor, float]:
    """Return a vector of length 1, and the length."""
    length = float(vector.double().norm())
    if length < 1e-6:
        raise ValueError("the three images of a slice lie on one line: choose another example")
    return vector / length, length


@torch.no_grad()
def _slice(
    net: nn.Module, origin: Tensor, axes: tuple[Tensor, Tensor], edges: tuple[np.ndarray, np.ndarray],
    points: dict[str, tuple[float, float]],
) -> Slice:  # fmt: skip
    across, up = (torch.as_tensor(edge).to(origin) for edge in edges)
    b, a = (grid.flatten() for grid in torch.meshgrid(up, across, indexing="ij"))
    classes, inside = [], []
    for first, second in zip(a.split(_BATCH), b.split(_BATCH), strict=True):
        shape = (-1, *[1] * origin.ndim)
        images = origin + first.view(shape) * axes[0] + second.view(shape) * axes[1]
        boxed = images.clamp(0, 1)
        inside.append(((images - boxed).abs().flatten(1).amax(1) < 1e-4).cpu())
        classes.append(predicted(net(boxed)).cpu())
    shape = (len(up), len(across))
    return Slice(*edges, torch.cat(classes).view(shape).numpy(), torch.cat(inside).view(shape).numpy(), points)


def nearest_adversarials(
    net: nn.Module, x: Tensor, y: Tensor, index: Tensor, report: Report | None = None, batch: int = 50
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest adversarial examples (M, C, H, W) that NearestL2 finds, their classes (M,), and which (M,).

    Images that are misclassified without an attack, and those without a known adversarial example, are left out.
    """
    found = []
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        result = NearestL2().run(net, x[rows], y[rows], index=index[rows], seed=0)
        kept = torch.nonzero(result.success & (result.distance > 0)).flatten()
        found.append((result.x_adv[kept], result.prediction[kept], kept.to(x.device) + start))
        if report is not None:
            report("nearest adversarial examples", min(1.0, (start + batch) / len(x)))
    images, classes, which = (torch.cat(parts) for parts in zip(*found, strict=True))
    return images, classes, which


def neighbours(x: Tensor, y: Tensor, adversarial: Tensor, taken: Tensor, training: tuple[Tensor, Tensor]) -> Neighbours:
    """Return how near clean images (N, C, H, W) and their adversarial examples lie to training images (M, ...)."""
    clean, moved = (_by_class(images, training) for images in (x, adversarial))  # (N, K)
    row, own = torch.arange(len(x)), y.cpu()
    others = clean.clone()
    others[row, own] = torch.inf
    refused = taken.cpu().clamp(0, clean.shape[1] - 1)  # a refusal has no training images: the last class stands for it
    values = {
        "label": own, "taken": taken.cpu(), "size": (adversarial - x).flatten(1).norm(dim=1).cpu(),
        "own": clean[row, own], "other": others.amin(1), "adversarial_own": moved[row, own],
        "adversarial_taken": moved[row, refused], "adversarial_any": moved.amin(1),
    }  # fmt: skip
    return Neighbours(**{name: value.numpy() for name, value in values.items()})


def _by_class(images: Tensor, training: tuple[Tensor, Tensor]) -> Tensor:
    """Return the distance (N, K) of each image to the nearest training image of each class, inf where it has none."""
    flat, nearest = images.flatten(1), []
    for number in range(int(training[1].max()) + 1):
        members = training[0][training[1] == number].flatten(1).to(flat)
        each = torch.cdist(flat, members).amin(1) if len(members) else flat.new_full((len(flat),), torch.inf)
        nearest.append(each.cpu())
    return torch.stack(nearest, 1)


def pairs(
    net: nn.Module, x: Tensor, y: Tensor, training: tuple[Tensor, Tensor], classes: Sequence[int], images: int,
    report: Report | None = None,
) -> Pairs:  # fmt: skip
    """Measure every ordered pair of classes on the first `images` images of each that the net classifies correctly."""
    with torch.no_grad():
        logits = torch.cat([net(part.clone()) for part in x.split(_BATCH)])
    right = (logits.argmax(1) == y) & names_class(logits)
    number = len(classes)
    margin, distance = np.full((number, number), np.nan), np.full((number, number), np.nan)
    for row, a in enumerate(classes):
        members = torch.nonzero(right & (y == a)).flatten()
        if not len(members):
            continue
        margin[row] = [float((logits[members, a] - logits[members, b]).mean()) for b in classes]
        members = members[:images]
        targets = [b for b in classes if b != a]
        rows = members.repeat(len(targets))
        target = torch.tensor(targets, device=x.device).repeat_interleave(len(members))
        result = DDN(steps=_STEPS).run(net, x[rows], y[rows], target=target, index=rows, seed=0)
        reach = torch.where(result.success, result.distance, torch.inf).view(len(targets), -1).cpu()
        for b, found in zip(targets, reach, strict=True):
            nearest = torch.minimum(found, _along_the_line(net, x[members], training, b))
            middle = float(np.quantile(nearest.numpy(), 0.5, method="lower"))
            distance[row, classes.index(b)] = middle if np.isfinite(middle) else np.nan
        if report is not None:
            report("pairs of classes", (row + 1) / number)
    return Pairs(list(classes), margin, distance, images)


@torch.no_grad()
def _along_the_line(net: nn.Module, x: Tensor, training: tuple[Tensor, Tensor], target: int) -> Tensor:
    """Return the distances (N,) at which the lines to the nearest training images of a class enter its region.

    An attack may fail to reach a class that lies far away; this finds a point of its region wherever the net classifies
    one of its training images correctly. The distance is inf elsewhere.
    """
    theirs = training[0][training[1] == target][:_BATCH].to(x)
    theirs = theirs[predicted(net(theirs.clone())) == target] if len(theirs) else theirs
    if not len(theirs):
        return torch.full((len(x),), torch.inf)
    gaps, which = torch.cdist(x.flatten(1), theirs.flatten(1)).min(1)
    way, shape = theirs[which] - x, (-1, *[1] * (x.ndim - 1))
    low, high = torch.zeros_like(gaps), torch.ones_like(gaps)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        there = predicted(net(x + middle.view(shape) * way)) == target
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    return (high * gaps).cpu()
