"""Slices, pairs of classes and training images nearby, on a net whose regions are known: half-spaces."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlit.evaluation.geometry import nearest_adversarials, neighbours, pairs, random_slice, slice_through


class Halves(nn.Module):
    """Class 1 where the mean of the pixels is above a half, else class 0: the boundary is a known plane."""

    def forward(self, x: Tensor) -> Tensor:
        above = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-above, above], 1)


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels).view(1, 2, 2)


def test_a_slice_shows_the_known_boundary_and_its_images() -> None:
    dark, bright, mixed = image(0.1, 0.1, 0.1, 0.1), image(0.6, 0.6, 0.6, 0.6), image(0.9, 0.1, 0.1, 0.1)
    found = slice_through(Halves(), [("dark", dark), ("bright", bright), ("mixed", mixed)], 61)
    assert found.points["dark"] == (0.0, 0.0)
    assert found.points["bright"] == pytest.approx((1.0, 0.0))  # .5 in each of four pixels
    assert np.hypot(*found.points["mixed"]) == pytest.approx(0.8)
    # "Right" makes all pixels brighter: the boundary is the vertical line at .8, wherever no pixel is clipped.
    right = np.broadcast_to(found.across, found.classes.shape)
    clear = found.inside & (np.abs(right - 0.8) > 1e-3)
    assert clear.sum() > 100
    np.testing.assert_array_equal(found.classes[clear], (right > 0.8)[clear])
    assert not found.inside.all()  # the corners leave the box


def test_three_images_on_a_line_span_no_plane() -> None:
    first, second = image(0.1, 0.2, 0.3, 0.4), image(0.2, 0.3, 0.4, 0.5)
    with pytest.raises(ValueError, match="lie on one line: choose another"):
        slice_through(Halves(), [("a", first), ("b", second), ("c", 2 * second - first)], 5)


def test_a_random_slice_repeats_and_is_centred() -> None:
    first, again = (random_slice(Halves(), ("dark", image(0.4, 0.4, 0.4, 0.4)), 0.3, 9, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.classes, again.classes)
    assert first.classes[4, 4] == 0
    assert first.across[4] == pytest.approx(0)


def test_nearest_adversarials_and_their_training_images() -> None:
    torch.manual_seed(0)
    x = torch.rand(6, 1, 2, 2) * 0.2 + 0.2
    y = torch.tensor([0, 0, 0, 0, 0, 1])  # the last is misclassified: left out
    adversarial, taken, which = nearest_adversarials(Halves(), x, y, torch.arange(6))
    assert which.tolist() == [0, 1, 2, 3, 4]
    assert taken.tolist() == [1] * 5
    training = torch.cat([x[:5], torch.full((1, 1, 2, 2), 0.9)]), torch.tensor([0] * 5 + [1])
    found = neighbours(x[which], y[which], adversarial, taken, training)
    exact = 2 * (0.5 - x[:5].flatten(1).mean(1))  # to the plane where the mean is a half
    np.testing.assert_allclose(found.size, exact, rtol=0.05)
    np.testing.assert_allclose(found.own, 0, atol=1e-3)  # each is a training image itself
    np.testing.assert_allclose(found.other, (x[:5] - 0.9).flatten(1).norm(dim=1), rtol=1e-3)
    assert (found.adversarial_own <= found.size + 1e-3).all()
    summary = found.summary()
    assert summary["n"] == 5
    assert summary["share_nearer_to_own_class"] == pytest.approx(
        float((found.adversarial_own < found.adversarial_taken).mean())
    )
    assert summary["share_off_all_training_images"] == 1  # the clean ones lie on training images


def test_pairs_of_classes_by_hand() -> None:
    x = torch.stack([image(0.3, 0.3, 0.3, 0.3), image(0.8, 0.8, 0.8, 0.8)])
    y = torch.tensor([0, 1])
    found = pairs(Halves(), x, y, (x, y), [0, 1], 1)
    np.testing.assert_allclose(found.distance, [[np.nan, 0.4], [0.6, np.nan]], rtol=0.03)
    np.testing.assert_allclose(found.margin, [[0, 8], [12, 0]], rtol=1e-4)


def test_a_pair_that_no_gradient_reaches_is_found_on_the_line() -> None:
    class Flat(Halves):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sign() + 0 * x.sum()

    x, y = torch.stack([image(0.3, 0.3, 0.3, 0.3), image(0.8, 0.8, 0.8, 0.8)]), torch.tensor([0, 1])
    np.testing.assert_allclose(pairs(Flat(), x, y, (x, y), [0, 1], 1).distance[0, 1], 0.4, rtol=1e-2)
