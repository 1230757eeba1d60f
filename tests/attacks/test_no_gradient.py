"""Nets that answer but cannot be differentiated: an error that names BPDA; WorstCase goes on without gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Function
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustlit import evaluate
from robustlit.attacks import FGSM, PGD, Square, WorstCase
from robustlit.attacks.victim import NoGradientError

NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def without(x: Tensor) -> Tensor:
    with torch.no_grad():
        return NET(x)


def half_in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        x = x * 2
    return NET(x)


HIDING = {
    "NumPy": lambda x: NET(torch.from_numpy(x.numpy())),
    "detach": lambda x: NET(x.detach()),
    "no_grad": without,
    "inference mode": half_in_inference_mode,
    "integers": lambda x: NET((x * 255).to(torch.uint8).float() / 255),
    "checkpoint of the old kind": lambda x: checkpoint(NET, x, use_reentrant=True),
}


def batch() -> tuple[Tensor, Tensor]:
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, NET(x).argmax(1)


@pytest.mark.parametrize("forward", HIDING.values(), ids=HIDING.keys())
def test_what_hides_the_gradient_is_an_error_that_names_bpda(forward: Callable[[Tensor], Tensor]) -> None:
    x, y = batch()
    for attack in (FGSM(eps=0.1), PGD(eps=0.1, steps=2)):  # the first differentiates the forward that judges
        with pytest.raises(NoGradientError, match=r"Function gives no gradient .*BPDA\(model, backward=NET\)"):
            attack.run(Function(forward), *batch())
    with pytest.raises(NoGradientError):  # before the random search, whose result would be lost
        evaluate(Function(forward), (x, y), [Square(eps=0.1, queries=10**9), PGD(eps=0.1)])


def test_a_net_that_does_not_answer_keeps_its_error() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        PGD(eps=0.1).run(Function(lambda x: NET(x[..., :3])), *batch())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_scripts_traces_and_frozen_ones_are_attacked_as_the_net() -> None:
    x, y = batch()
    expected = PGD(eps=0.2, steps=3).run(NET, x, y, seed=0).success
    script = torch.jit.script(NET.eval())
    for model in (script, torch.jit.freeze(script), torch.jit.trace(NET, x)):
        assert torch.equal(PGD(eps=0.2, steps=3).run(model, x, y, seed=0).success, expected)


def test_the_worst_case_goes_on_by_random_search_and_says_so() -> None:
    x, y = batch()
    model = Function(HIDING["NumPy"])
    with pytest.warns(UserWarning, match="random search alone.*far too high"):
        found = WorstCase(eps=0.9).run(model, x, y, seed=0)
    assert found.success.any()
    assert not found.backwards.any()
    with pytest.warns(UserWarning, match="nearest_l2 is left out: Function gives no gradient"):
        result = evaluate(model, (x, y), grid={"linf": [0.9]})
    assert result.attacks == ["worst_case"]
    assert float(result.worst_case(eps=0.9)) == 1 - float(found.success.double().mean())
    # Patches need images: nothing would be left of the plan.
    with pytest.raises(NoGradientError):
        WorstCase(eps=0.9).run(model, x.flatten(1), y)
