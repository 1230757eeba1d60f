"""AdvGAN's networks, the cut to the box, and the file that a generator is kept in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from robustlit.models import AdvGANDiscriminator, AdvGANGenerator, SmallCNN, load_generator, save_generator
from robustlit.models.generator import perturb


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["PLANTED"],)


def test_files_that_are_no_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "generator.pt"
    save_generator(AdvGANGenerator(), path)
    whole = torch.load(path, weights_only=True)
    (tmp_path / "torn.pt").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        load_generator(tmp_path / "torn.pt")
    torch.save(SmallCNN().state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="not written by save_generator"):
        load_generator(tmp_path / "foreign.pt")
    for change, message in (
        ({"robustlit_generator": 99}, "format 99"),
        ({"hyperparameters": {"in_chans": 1}}, "does not fit together"),
        ({"hyperparameters": {**whole["hyperparameters"], "width": 100_000}}, "does not fit together"),
        ({"hyperparameters": {**whole["hyperparameters"], "width": "8"}}, "width must be an integer"),
        ({"state_dict": {}}, "does not fit together"),
    ):
        torch.save({**whole, **change}, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=message):
            load_generator(tmp_path / "bad.pt")
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    torch.save({**whole, "x": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="read safely"):
        load_generator(tmp_path / "evil.pt")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 27, 28, 32])
def test_networks_take_any_image_and_a_batch_of_one(size: int, channels: int) -> None:
    generator = AdvGANGenerator(channels, size).train()
    discriminator = AdvGANDiscriminator(channels, size).train()
    for batch in (1, 3):
        x = torch.rand(batch, channels, size, size)
        assert generator(x).shape == x.shape
        assert discriminator(x).shape == (batch,)
        assert generator(x).isfinite().all()


def test_the_cut_to_the_box_does_not_stop_the_gradient() -> None:
    x = torch.tensor([[0.0, 0.05, 0.5, 0.95, 1.0]])
    pattern = torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5], requires_grad=True)
    x_adv = perturb(lambda images: pattern.expand(images.shape), x, 0.3)  # type: ignore[arg-type]
    tanh = pattern.detach().tanh()
    assert torch.equal(x_adv.detach(), (x + 0.3 * tanh).clamp(0, 1))
    assert (x_adv.detach()[0] == torch.tensor([0.0, 0.0, float(x_adv.detach()[0, 2]), 1.0, 1.0])).all()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (weights * x_adv).sum().backward()
    torch.testing.assert_close(pattern.grad, weights * 0.3 * (1 - tanh**2))
