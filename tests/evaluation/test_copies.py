"""Each distinct image counts once, however often the data repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlit import Evaluation, evaluate
from robustlit.attacks import FGSM, PGD
from robustlit.evaluation.columns import image_digests
from robustlit.results.table import IMAGE

Digits = tuple[Tensor, Tensor]
COPIES = r"57 of 60 test images are copies of others; each image counts once, so n is 3"


def test_twenty_copies_are_one_image(net: nn.Module, digits: Digits, tmp_path: Path) -> None:
    x, y = digits[0][:3].repeat(20, 1, 1, 1), digits[1][:3].repeat(20)
    with pytest.warns(UserWarning, match=COPIES):
        found = evaluate(net, (x, y), [FGSM(eps=0.01)], batch_size=7, folder=tmp_path)
    assert (found.n, found.clean_accuracy.n, found.accuracy(eps=0.01).n, found.copies) == (3, 3, 3, 57)
    assert (
        found.accuracy(eps=0.01).interval == evaluate(net, (x[:3], y[:3]), [FGSM(eps=0.01)]).accuracy(eps=0.01).interval
    )
    assert "57 copies left out" in found.caveat
    assert "57 copies left out" in repr(found)
    assert not (tmp_path / "parts").exists()  # the copies' batches too
    again = Evaluation.load(tmp_path)
    assert (again.n, again.copies, again.digest) == (3, 57, found.digest)


def test_the_same_image_in_two_classes_counts_twice(net: nn.Module, digits: Digits) -> None:
    x = digits[0][:1].repeat(2, 1, 1, 1)
    assert evaluate(net, (x, torch.tensor([7, 3])), [FGSM(eps=0.01)]).n == 2


def test_the_copy_that_was_broken_is_kept(net: nn.Module, digits: Digits) -> None:
    found = evaluate(net, (digits[0][:3], digits[1][:3]), [PGD(eps=0.01, steps=1)])
    table = found.table.assign(image=[5, 6, 5], label=[7, 7, 7], success=[False, False, True])
    columns: Any = {name: table[name].to_numpy() for name in table}
    with pytest.warns(UserWarning, match="1 of 3 test images"):
        assert sorted(Evaluation.from_columns(columns, {}).table["index"]) == [1, 2]
    del columns[IMAGE]  # a table of an older version
    assert Evaluation.from_columns(columns, {}).n == 3


def test_the_digest_is_that_of_the_pixels_at_8_bits(digits: Digits) -> None:
    x = digits[0][:5]
    digests = image_digests(x)
    assert digests.dtype == np.int64
    assert len({*digests.tolist()}) == 5
    np.testing.assert_array_equal(image_digests(x.double()), digests)
    np.testing.assert_array_equal(image_digests(x + 1e-7), digests)
    np.testing.assert_array_equal(image_digests(x.flip(0)), digests[::-1])
    assert not (image_digests((x - 1 / 255).clamp(min=0)) == digests).any()
    assert image_digests(torch.zeros(1, 1, 4, 9))[0] != image_digests(torch.zeros(1, 1, 6, 6))[0]


def test_the_digest_of_a_table_depends_on_its_images(net: nn.Module, digits: Digits) -> None:
    found = evaluate(net, (digits[0][:3], digits[1][:3]), [FGSM(eps=0.01)])
    assert found.digest.startswith("v2:")
    assert Evaluation(found.table.assign(image=[1, 2, 3])).digest != found.digest
    assert Evaluation(found.table.drop(columns=IMAGE)).digest.startswith("v1:")
