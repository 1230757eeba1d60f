"""BitDepth: without an adaptive attack it looks robust."""

import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import PGD
from robustlit.classifier import attack_view, undefended
from robustlit.defenses import BitDepth


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (3, 8), (8, 256)])
def test_few_levels_remain(net: nn.Module, bits: int, levels: int) -> None:
    squeezed = BitDepth(net, bits).squeeze(torch.linspace(0, 1, 5001).view(1, 1, 1, -1))
    assert len(squeezed.unique()) == levels
    assert (squeezed.min(), squeezed.max()) == (0, 1)


def test_the_view_is_the_same_function_with_a_gradient(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense = BitDepth(net, 2).eval()
    x = digits[0][:20].clone().requires_grad_(True)
    torch.testing.assert_close(attack_view(defense)(x), defense(x))
    assert not torch.autograd.grad(defense(x).sum(), x)[0].any()
    assert torch.autograd.grad(attack_view(defense)(x).sum(), x)[0].any()
    assert undefended(defense) is net


def test_the_adaptive_attack_breaks_what_a_blind_one_does_not(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense = BitDepth(net, 3)
    attack = PGD(eps=0.2, steps=20, random_start=False)
    adaptive = evaluate(defense, digits, [attack], knowledge=["adaptive", "greybox"])
    careless_model = nn.Sequential(defense)
    careless_model.stochastic = False  # says itself that it needs no attack view
    with pytest.warns(UserWarning, match="blind"):
        careless = evaluate(careless_model, digits, [attack])
    assert careless.accuracy(eps=0.2) == careless.clean_accuracy > 0.9
    assert adaptive.accuracy(eps=0.2) < 0.2
    assert adaptive.accuracy(eps=0.2) <= adaptive.accuracy(eps=0.2, knowledge="greybox")


@pytest.mark.parametrize("bits", [0, 9, 1.5, True])
def test_bits_out_of_range_are_refused(net: nn.Module, bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 8"):
        BitDepth(net, bits)
