"""Excerpts of a test split: the first examples of one order, whatever its size and classes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from robustlit.data import MNIST
from robustlit.data.splits import nested, stratified

SPLITS = {
    "digits": [1135, 982, 892, 1010, 958],
    "small": [5, 1, 7],
    "imbalanced": [400, 80, 30, 9, 2, 1],
    "one of each": [1] * 30,
    "a large class and many small ones": [900, *[2] * 100],
    "one class": [25],
}


def labels_of(counts: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)))


@pytest.mark.parametrize("counts", SPLITS.values(), ids=SPLITS)
def test_excerpts_are_nested_and_keep_the_shares_of_the_classes(counts: list[int]) -> None:
    labels, smaller = labels_of(counts), torch.arange(0)
    shares, total = torch.tensor(counts) / sum(counts), sum(counts)
    for size in sorted({1, 2, 7, 10, 11, 13, 50, 99, 100, 101, 250, 999, 1000, 1001, total - 1, total}):
        if 0 < size <= total:
            found = nested(labels, size, "test_size", 0)
            assert len(found) == size
            assert (found.diff() > 0).all()
            assert torch.isin(smaller, found).all(), size
            assert (labels[found].bincount(minlength=len(counts)) - size * shares).abs().max() <= 1, size
            smaller = found


def test_every_class_is_present_from_as_many_examples_as_classes() -> None:
    labels = labels_of([12] * 40)
    for size in (40, 57, 230):
        assert len(labels[nested(labels, size, "test_size", 0)].unique()) == 40
    assert len(labels[nested(labels, 25, "test_size", 0)].unique()) == 25  # fewer examples: no class twice
    digits = MNIST(test_size=10)
    assert digits.tensors("test")[1].sort().values.tolist() == [*range(10)]


def test_the_seed_decides_which_examples() -> None:
    labels = labels_of([60, 60])
    one, other, again = (nested(labels, 30, "test_size", seed) for seed in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_thousand_of_ten_thousand_images_are_those_that_figures_were_printed_for() -> None:
    indices = MNIST(test_size=1000).test_indices
    digest = hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest == "99b9756d7a712b111fcaebcf9434da37ef54059a58786156215a9740a9ab63ca"
    labels = MNIST().labels_of("test")
    assert torch.equal(indices, stratified(labels, 1000, "test_size", 0)[0])
    assert torch.equal(MNIST(test_size=0.1).test_indices, indices)
    hundred = MNIST(test_size=100).test_indices
    assert torch.equal(hundred, indices[stratified(labels[indices], 100, "test_size", 0)[0]])


def test_part_of_the_test_tensors_is_the_smaller_excerpt() -> None:
    data = MNIST(test_size=300)
    assert torch.equal(data.tensors("test", 40)[2], MNIST(test_size=40).test_indices)
    assert torch.equal(data.tensors("test", 300)[2], data.test_indices)


def test_more_examples_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="test_size=14 asks for 14 of 13 examples; ask for fewer"):
        nested(labels_of([5, 1, 7]), 14, "test_size", 0)
    assert len(nested(labels_of([5, 1, 7]), 0.01, "test_size", 0)) == 1
