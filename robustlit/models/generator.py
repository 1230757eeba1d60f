"""The networks of AdvGAN, a generator of perturbations and a discriminator, and the file format of a generator."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.checks import check_integer, check_sizes
from robustlit.classifier import check_finite
from robustlit.files import write_tensors

FORMAT = 1
_HYPERPARAMETERS = ("in_chans", "image_size", "width", "blocks")


class AdvGANGenerator(nn.Module):
    """Encoder, residual blocks, decoder: from an image to the perturbation that `perturb` bounds and adds.

    Xiao et al.: Generating adversarial examples with adversarial networks, 2018, arXiv:1801.02610: c3s1-8, d16, d32,
    four blocks r32, u16, u8, c3s1-1, with instance normalisation, so that examples of a batch do not mix. 85 729
    parameters on MNIST. Fully convolutional; sides need not be multiples of 4.

    Args:
        in_chans: Channels of an image.
        image_size: Side of the images in pixels; where the encoder leaves a single pixel it is not normalised.
        width: Channels of the first convolution; the blocks have four times as many.
        blocks: Residual blocks.

    Attributes:
        eps: The L-inf budget in pixel units that it was trained for, or None.
        target: The class that it was trained to reach; None: any but the true one.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(self, in_chans: int = 1, image_size: int = 28, width: int = 8, blocks: int = 4) -> None:
        super().__init__()
        check_sizes(2, in_chans, image_size)
        check_integer("width", width, 1, "the paper has 8")
        check_integer("blocks", blocks, 0, "the paper has 4")
        self.in_chans, self.image_size, self.width, self.blocks = in_chans, image_size, width, blocks
        self.eps: float | None = None
        self.target: int | None = None
        half, wide = -(-image_size // 2), 4 * width
        quarter = -(-half // 2)
        self.full = _layer(nn.Conv2d(in_chans, width, 3, padding=1), image_size)
        self.down1 = _layer(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), half)
        self.down2 = _layer(nn.Conv2d(2 * width, wide, 3, stride=2, padding=1), quarter)
        self.residual = nn.Sequential(*[_Residual(wide, quarter) for _ in range(blocks)])
        self.up1 = nn.ConvTranspose2d(wide, 2 * width, 3, stride=2, padding=1)
        self.after1 = nn.Sequential(_normalisation(2 * width, half), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1)
        self.after2 = nn.Sequential(_normalisation(width, image_size), nn.ReLU())
        self.last = nn.Conv2d(width, in_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return perturbations (B, C, H, W), not bounded yet, for images (B, C, H, W) in [0, 1]."""
        full = self.full(x)
        half = self.down1(full)
        deep = self.residual(self.down2(half))
        # With the output size given, a transposed convolution undoes a halving that rounded up.
        up = self.after1(self.up1(deep, output_size=half.shape[-2:]))
        return self.last(self.after2(self.up2(up, output_size=full.shape[-2:])))


class AdvGANDiscriminator(nn.Module):
    """Three strided convolutions and a linear layer (C8, C16, C32, FC of the paper): score clean images against others.

    Arguments as `AdvGANGenerator`.
    """

    def __init__(self, in_chans: int = 1, image_size: int = 28, width: int = 8) -> None:
        super().__init__()
        check_sizes(2, in_chans, image_size)
        check_integer("width", width, 1, "the paper has 8")
        layers: list[nn.Module] = []
        channels, side = in_chans, image_size
        for number in range(3):
            out, side = width * 2**number, -(-side // 2)
            normalisation = [_normalisation(out, side)] if number else []
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), *normalisation, nn.LeakyReLU(0.2)]
            channels = out
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B,) of images (B, C, H, W): 1 for a clean image, 0 for a generated one (least squares)."""
        return self.net(x)[:, 0]  # not squeeze(): a batch of one would lose its dimension


class _Residual(nn.Module):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.first = _layer(nn.Conv2d(channels, channels, 3, padding=1), side)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), _normalisation(channels, side))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def _normalisation(channels: int, side: int) -> nn.Module:
    return nn.InstanceNorm2d(channels) if side > 1 else nn.Identity()


def _layer(convolution: nn.Conv2d, side: int) -> nn.Module:
    return nn.Sequential(convolution, _normalisation(convolution.out_channels, side), nn.ReLU())


def perturb(generator: nn.Module, x: Tensor, eps: float | Tensor) -> Tensor:
    """Return x + eps tanh(G(x)), clipped to [0, 1]; the gradient ignores the clipping.

    With a clipped gradient a black pixel that is pushed below 0 would stay there, and most of a digit is black.

    Args:
        generator: From images (B, ...) to numbers of the same shape.
        x: Images (B, ...) in [0, 1].
        eps: Largest change in pixel units, shaped to broadcast against `x`.

    Raises:
        ValueError: The generator returns another shape.
    """
    raw = generator(x)
    if raw.shape != x.shape:
        raise ValueError(
            f"the generator must return the shape of its images, {tuple(x.shape)}, got {tuple(raw.shape)}; it was made "
            "for other images"
        )
    free = x + eps * raw.to(x.dtype).tanh()
    return free.detach().clamp(0, 1) + (free - free.detach())  # the difference is 0 and carries the gradient


def save_generator(generator: AdvGANGenerator, path: str | Path) -> None:
    """Write a generator with its hyper-parameters, eps and target: plain values and tensors."""
    saved = {"eps": generator.eps, "target": generator.target, "state_dict": generator.state_dict()}
    hyperparameters = {name: getattr(generator, name) for name in _HYPERPARAMETERS}
    write_tensors(path, {"robustlit_generator": FORMAT, "hyperparameters": hyperparameters, **saved})


def load_generator(path: str | Path) -> AdvGANGenerator:
    """Return a generator from its file, in eval mode, on the CPU.

    The file need not be trusted: it is read without running code from it, and names no class.

    Raises:
        ValueError: The file is missing, damaged, or holds something else, or weights that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no generator at {path}; train one: python train.py recipe=advgan leaves "
            "runs/NAME/checkpoints/generator.pt"
        )
    try:
        # A file of torch's old format would be unpickled, but by the same restricted reader.
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a generator that can be read safely ({type(error).__name__}); it is damaged, or holds "
            "pickled objects that could run code"
        ) from error
    if not isinstance(saved, dict) or "robustlit_generator" not in saved:
        raise ValueError(f"{path} was not written by save_generator; give the generator.pt of a run of recipe=advgan")
    if saved["robustlit_generator"] != FORMAT:
        raise ValueError(f"{path} has generator format {saved['robustlit_generator']!r}, this version reads {FORMAT}")
    try:
        with torch.device("meta"):  # allocates nothing before the weights confirm the sizes
            generator = AdvGANGenerator(**{name: saved["hyperparameters"][name] for name in _HYPERPARAMETERS})
        generator.load_state_dict(saved["state_dict"], assign=True)
        eps, target = saved["eps"], saved["target"]
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds a generator that does not fit together: {error}") from error
    check_finite(generator, f"{path} holds", ValueError)
    generator.eps = None if eps is None else float(eps)
    generator.target = None if target is None else int(target)
    return generator.eval()
