"""Our bounds of the margins against those of auto_LiRPA, in an environment of its own: its release wants an old torch.

python3.10 -m venv lirpa
lirpa/bin/pip install "torch==1.12.1" "torchvision==0.13.1" "numpy<2" packaging appdirs pyyaml
lirpa/bin/pip install --no-deps "auto_LiRPA==0.3"
AUTO_LIRPA_PYTHON=$PWD/lirpa/bin/python pytest -m peers tests/peers/test_auto_lirpa.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlit.certify.bounds import Refine, logits_of, margins_of
from robustlit.certify.crown import tightened
from robustlit.certify.ibp import interval_margins
from robustlit.certify.region import Region

pytestmark = pytest.mark.peers
PYTHON = os.environ.get("AUTO_LIRPA_PYTHON")
KINDS = (torch.float32, torch.float64)
NORMS = {"linf": np.inf, "l2": 2.0}
_CLOSE = 2e-5  # of the largest logit or bound: both sum in float32
_ROUNDING = 1e-3  # likewise: what our proofs in float64 subtract for the rounding of the net in float32


@pytest.fixture(params=[2, 10])
def trained(request: pytest.FixtureRequest, digits: tuple[Tensor, Tensor]) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A strided CNN after a few steps on digits, 12 images and their classes."""
    torch.manual_seed(0)
    classes = request.param
    net = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 20),
        nn.ReLU(), nn.Linear(20, classes),
    )  # fmt: skip
    x, y = digits[0], digits[1] % classes
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x[:12], y[:12]


def margins(net: nn.Module, region: Region, y: Tensor) -> dict[str, Tensor]:
    """Return our lower bounds (B, K): in float32 estimates, in float64 proofs."""

    def linear(refine: Refine | None) -> Tensor:
        tape, logits = logits_of(net, region, refine)
        return margins_of(tape, logits, y, through_activations=True)

    with torch.no_grad():
        return {"ibp": interval_margins(net, region, y)[0], "crown_ibp": linear(None), "crown": linear(tightened)}


@pytest.mark.skipif(not PYTHON, reason="AUTO_LIRPA_PYTHON names no Python with auto_LiRPA: see the file's first lines")
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("linf", 0.06), ("l2", 0.1), ("l2", 0.5)])
def test_the_bounds_are_those_of_auto_lirpa(
    trained: tuple[nn.Sequential, Tensor, Tensor], norm: str, eps: float, tmp_path: Path
) -> None:
    net, x, y = trained
    weights = {f"net.{name}": value.numpy() for name, value in net.state_dict().items()}
    np.savez(tmp_path / "given.npz", **weights, x=x.numpy(), y=y.numpy(), eps=eps, norm=NORMS[norm])
    script = Path(__file__).with_name("auto_lirpa_bounds.py")
    subprocess.run([str(PYTHON), str(script), "given.npz", "found.npz"], cwd=tmp_path, check=True)
    theirs = {name: torch.from_numpy(value) for name, value in np.load(tmp_path / "found.npz").items()}
    estimates, proofs = (margins(net, Region(x.to(kind), torch.full((len(x),), eps), norm), y) for kind in KINDS)
    for name, expected in theirs.items():
        size = 1 + torch.maximum(net(x).detach().abs().max(), expected.abs().max())
        assert (estimates[name] > expected - _CLOSE * size).all(), name
        if norm == "linf":  # in L2 our balls are cut to the box, which makes the bounds narrower
            assert (estimates[name] < expected + _CLOSE * size).all(), name
        assert (proofs[name] < estimates[name] + _CLOSE * size).all(), name
        assert (proofs[name] > estimates[name] - _ROUNDING * size).all(), name
