"""What evaluate() refuses, and the way out that it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import FGSM, PGD


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (["pgd"], r"each of attacks must be an attack, got 'pgd'; for example attacks=\[PGD\(eps=0\.3\)\]"),
        ([PGD], r"PGD is the class of an attack; make one of it, with its budget: PGD\(eps=\.\.\.\)"),
        ({"mine": PGD}, "PGD is the class of an attack"),
        ([FGSM(eps=0.1), None], "each of attacks must be an attack, got NoneType"),
        ("pgd", "attacks must be a list of attacks, or a mapping from names to them, got 'pgd'"),
        (FGSM(eps=0.1), r"attacks must be a list .* got FGSM\("),
        (PGD, "attacks must be a list .* got "),
        (3, "attacks must be a list .* got int"),
        ((attack for attack in [FGSM(eps=0.1)]), "attacks must be a list .* got generator"),
    ],
)
def test_what_is_no_attack_is_told_from_one(
    attacks: Any, message: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    with pytest.raises(TypeError, match=message):
        evaluate(net, (x[:4], y[:4]), attacks)


def test_arrays_are_told_from_tensors(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], digits[1][:4]
    for data, kinds in (
        ((x.numpy(), y.numpy()), "ndarray and ndarray"),
        ((x, y.numpy()), "Tensor and ndarray"),
        ([x.tolist(), y], "list and Tensor"),
        ([(x.numpy(), y.numpy())], "ndarray and ndarray"),
    ):
        with pytest.raises(TypeError, match=rf"must be torch tensors, got {kinds}; .* torch\.from_numpy\(x\)"):
            evaluate(net, data, [FGSM(eps=0.1)])
    with pytest.raises(TypeError, match=r"a batch must be \(x, y\) or \(x, y, index\), got dict"):
        evaluate(net, [{"image": x, "label": y}], [FGSM(eps=0.1)])
    # Two batches in a list are no pair of tensors.
    assert evaluate(net, [(x, y), (x, y)], [FGSM(eps=0.1)]).n == 8


def test_images_of_another_precision_are_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], digits[1][:4]
    with pytest.raises(
        ValueError, match=r"images are torch\.float64, and the model's weights torch\.float32; use x\.float"
    ):
        evaluate(net, (x.double(), y), [FGSM(eps=0.1)])
    with pytest.raises(ValueError, match=r"for uint8 use x\.float\(\) / 255"):
        evaluate(net, ((x * 255).to(torch.uint8), y), [FGSM(eps=0.1)])
    assert evaluate(net.double(), (x.double(), y), [FGSM(eps=0.1)]).n == 4
