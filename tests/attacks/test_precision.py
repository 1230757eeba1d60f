"""Nets, logits and a default dtype of other precisions: attacks run with the figures of float32, or refuse at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import FGSM
from robustlit.classifier import predicted

# With a budget at which every image breaks soon: what is left would be searched for long.
EVERY = sorted({str(c): replace(c, settings={"eps": 0.5}) if c.kind == "WorstCase" else c for c in CASES}.items())


class Cast(nn.Module):
    """Shows a net images in one dtype and returns its logits in another."""

    def __init__(self, net: nn.Module, images: torch.dtype, logits: torch.dtype) -> None:
        super().__init__()
        self.net, self.images, self.logits = net, images, logits

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.images)).to(self.logits)


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def small() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        net[1].weight.mul_(3), net[3].weight.mul_(3)
    return net


def successes(case: Case, model: nn.Module) -> int:
    """Attack some images, and check that the model itself classifies what comes out as the result says."""
    x = torch.rand(16, 1, 6, 6, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    y = predicted(model(x.to(next(model.parameters()).dtype) if isinstance(model, nn.Sequential) else x))
    target = None if case.attack.untargeted else (y + 1) % 4
    result = case.attack.run(model, x, y, seed=0, target=target)
    assert result.x_adv.dtype == torch.float32
    seen = result.x_adv.to(next(model.parameters()).dtype) if isinstance(model, nn.Sequential) else result.x_adv
    now = predicted(model(seen))
    assert torch.equal(result.success, now != y if target is None else now == target)
    return int(result.success.sum())


@pytest.mark.parametrize("case", [case for _, case in EVERY], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_logits_and_nets_of_another_precision(case: Case) -> None:
    plain = successes(case, small())
    double, half, bfloat = torch.float64, torch.float16, torch.bfloat16
    for net in (small().double(), Cast(small().double(), double, double), Cast(small(), torch.float32, double)):
        assert successes(case, net) == plain
    for dtype in (half, bfloat):
        assert abs(successes(case, Cast(small(), torch.float32, dtype)) - plain) <= 1
    net = small()
    torch.set_default_dtype(double)
    assert successes(case, net) == plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_net_in_half_precision_is_refused_with_the_way_out(dtype: torch.dtype) -> None:
    x, y = torch.rand(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64)
    net = small().to(dtype)
    with pytest.raises(ValueError, match=rf"weights of Sequential {dtype}.* attack model\.float\(\)"):
        FGSM(eps=0.1).run(net, x, y)
    with pytest.raises(ValueError, match=r"attack model\.float\(\)"):
        evaluate(net, (x, y), [FGSM(eps=0.1)])
    assert len(FGSM(eps=0.1).run(Cast(net, dtype, torch.float32), x, y).success) == 4  # the way out
    with pytest.raises(ValueError, match="images are in half precision"):
        FGSM(eps=0.1).run(net, x.to(dtype), y)
