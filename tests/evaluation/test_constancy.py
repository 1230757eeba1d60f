"""The warnings about a model that is random and does not declare it, or answers by the batch."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import EOT, FGSM
from robustlit.evaluation import evaluate
from robustlit.evaluation.constancy import differing

Digits = tuple[Tensor, Tensor]


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


class BatchDependent(Noisy):
    """A deterministic model whose answers depend on the other images of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


class Rounded(Noisy):
    """A net in bfloat16, which may be rounded in another way in a batch of another size."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(copy.deepcopy(net).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.bfloat16()).float()


def test_an_undeclared_random_model_is_warned_of(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    with pytest.warns(UserWarning, match=r"Noisy answers the same images differently .*EOT\(Noisy, 20\)"):
        evaluate(Noisy(net), (x, y), [FGSM(eps=0.1)])


@pytest.mark.parametrize("seed", range(4))
def test_a_random_choice_of_one_net_for_each_forward_is_warned_of(seed: int, net: nn.Module, digits: Digits) -> None:
    class OneOfTwo(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x if random.random() < 0.5 else x.roll(1, 3))

    random.seed(seed)
    with pytest.warns(UserWarning, match="OneOfTwo answers the same images differently each time"):
        evaluate(OneOfTwo(net), (digits[0][:40], digits[1][:40]), [FGSM(eps=0.1)])


@pytest.mark.parametrize("size", [7, 40])
def test_a_model_that_answers_by_the_batch_is_warned_of(size: int, net: nn.Module, digits: Digits) -> None:
    given = (digits[0][:40], digits[1][:40])
    with pytest.warns(UserWarning, match="BatchDependent answers an image differently beside other images"):
        evaluate(BatchDependent(net), given, [FGSM(eps=0.1)], batch_size=size)


@pytest.mark.parametrize("wrapped", [lambda net: net, lambda net: EOT(Noisy(net), 2), lambda net: Rounded(net)])
def test_other_models_are_not_warned_of(wrapped: type, net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate(wrapped(net), (x, y), [FGSM(eps=0.1)])


def test_rounding_does_not_count_as_a_difference() -> None:
    logits = torch.tensor([[5.0, -3.0], [2.0, 1.0], [0.0, 0.0]])
    moved = logits + torch.tensor([[0.004, 0.0], [0.0, 0.004], [0.0, 0.0]])
    assert differing(torch.stack([logits, moved])).tolist() == [False, True, False]


@pytest.mark.parametrize("masked", [-float("inf"), -1e4, -1e9])
def test_a_masked_class_hides_no_difference(masked: float) -> None:
    logits = torch.tensor([[5.0, -3.0, masked], [2.0, 1.0, masked]])
    moved = logits + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.004, 0.0]])
    assert differing(torch.stack([logits, moved])).tolist() == [False, True]
    unmasked = logits.clone()
    unmasked[0, 2] = 0.0
    assert differing(torch.stack([logits, unmasked])).tolist() == [True, False]


def test_noise_is_seen_however_small_the_logits_are(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    small = nn.Sequential(Noisy(net), _Times(1e-12))
    with pytest.warns(UserWarning, match="answers the same images differently"):
        evaluate(small, (x, y), [FGSM(eps=0.1)])


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits
