"""An autoencoder with a bottleneck, from images to images: the network in front of a denoised classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.checks import check_integer

_SMALLEST = 8
_OTHER_IMAGES = (
    "this autoencoder was built for images {own}, got {got} (channels, height, width); build and train one for these "
    "images: in_chans={channels}, image_size={side}"
)


class Autoencoder(nn.Module):
    """Encoder, bottleneck, decoder, sigmoid: 14 217 parameters on MNIST, a code of 8 x 7 x 7 = 392 numbers for 784.

    The denoiser of the 2019 report (section 9.2, figure 12), which gives no sizes. The layers are MagNet's (Meng, Chen:
    MagNet: a two-pronged defense against adversarial examples, 2017, arXiv:1705.09064): 3x3 convolutions, average
    pooling on the way down, nearest-neighbour enlargement on the way up, no normalisation, so that examples of a batch
    do not mix and training and evaluation compute the same. Its output lies in [0, 1] and is differentiable.

    Args:
        in_chans: Channels of an image, 1 or 3.
        image_size: Side of the square images in pixels, at least 8.
        width: Channels of the first convolution, doubled at every halving.
        depth: Halvings of the side, at least 1.
        bottleneck: Channels of the code. Fewer remove more of the perturbation, and of the image.

    Raises:
        ValueError: An argument out of range; a code no smaller than the image, or of a single pixel; other images.
    """

    def __init__(
        self, in_chans: int = 1, image_size: int = 28, width: int = 16, depth: int = 2, bottleneck: int = 8
    ) -> None:
        super().__init__()
        check_integer("in_chans", in_chans, 1, "1 for grey images, 3 for colour")
        check_integer("image_size", image_size, _SMALLEST, "smaller images leave nothing for a bottleneck")
        check_integer("width", width, 1, "16 is the default")
        check_integer("depth", depth, 1, "without halving there is no bottleneck")
        check_integer("bottleneck", bottleneck, 1, "8 is the default")
        sides = [image_size]
        for _ in range(depth):
            sides.append(-(-sides[-1] // 2))
        if sides[-1] < 2:
            raise ValueError(
                f"depth={depth} leaves a single pixel of images of side {image_size}; at most "
                f"{sum(side > 2 for side in sides)} for these"
            )
        self.code_shape = (bottleneck, sides[-1], sides[-1])  # channels, height, width
        code, pixels = bottleneck * sides[-1] ** 2, in_chans * image_size**2
        if code >= pixels:
            raise ValueError(
                f"bottleneck={bottleneck} makes a code of {code} numbers for images of {pixels}, which is no "
                f"bottleneck; lower it below {-(-pixels // sides[-1] ** 2)}, or raise depth"
            )
        self.in_chans, self.image_size = in_chans, image_size
        widths = [width * 2**level for level in range(depth)]
        down: list[nn.Module] = []
        for before, after in zip([in_chans, *widths], widths, strict=False):
            # At the edge of an odd side the window averages the pixels inside.
            down += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], bottleneck, 3, padding=1), nn.ReLU())
        up: list[nn.Module] = []
        channels = bottleneck
        for after, side in zip(reversed(widths), reversed(sides[:-1]), strict=True):
            up += [nn.Upsample(size=(side, side)), nn.Conv2d(channels, after, 3, padding=1), nn.ReLU()]
            channels = after
        last = nn.Conv2d(channels, in_chans, 3, padding=1)
        self.decoder = nn.Sequential(*up, last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # Starts with dark images: from grey ones the first steps on digits overshoot to black, where sigmoid is flat.
        assert last.bias is not None
        nn.init.constant_(last.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for images (B, C, H, W) in [0, 1]."""
        own = (self.in_chans, self.image_size, self.image_size)
        if tuple(x.shape[1:]) != own:
            channels, side = (x.shape[1], x.shape[-1]) if x.ndim == 4 else ("?", "?")
            raise ValueError(_OTHER_IMAGES.format(own=own, got=tuple(x.shape[1:]), channels=channels, side=side))
        return torch.sigmoid(self.decoder(self.encoder(x)))
