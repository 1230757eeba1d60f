"""Preactivation ResNets for small images, as papers on robust training of CIFAR-10 use them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustlit.checks import check_sizes
from robustlit.models.normalize import normalization
from robustlit.models.resnet import BLOCKS, add_stages, check_stages, conv3x3


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, BatchNorm and ReLU before each, and a shortcut from the input of the block."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(in_chans), nn.ReLU()
        self.conv1 = conv3x3(in_chans, out_chans, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(out_chans), nn.ReLU()
        self.conv2 = conv3x3(out_chans, out_chans)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_chans != out_chans:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu1(self.bn1(x)))
        return self.conv2(self.relu2(self.bn2(out))) + self.shortcut(x)


class PreActResNet(nn.Module):
    """PreActResNet-18: 11 172 170 parameters with ten classes of colour images.

    He, Zhang, Ren, Sun: Identity mappings in deep residual networks, 2016, https://arxiv.org/abs/1603.05027. The 3x3
    stem, the last BatchNorm, the shortcuts and the names of the layers are those of the code of Wong 2020
    (arXiv:2001.03994) and de Jorge 2022 (arXiv:2202.01181), so that nets trained by it can be loaded. In He's own code
    a shortcut that changes the number of channels starts after the first BatchNorm and ReLU.

    Args:
        num_classes: Number of logits K, at least 2.
        in_chans: Channels of an image.
        image_size: Side of the square image in pixels, at least 8. Any other size can be classified as well.
        mean, std: Mean and deviation of each channel in pixel units; None: no normalisation.
        width: Channels of the first stage; 64 in the paper.
        blocks: Blocks of each of the four stages.

    Raises:
        ValueError: An argument out of range.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, image_size: int = 32, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, width: int = 64, blocks: Sequence[int] = BLOCKS,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size, smallest_image=8)
        check_stages(width, blocks)
        self.normalize = normalization(mean, std, in_chans)
        self.conv1 = conv3x3(in_chans, width)
        channels = add_stages(self, PreActBlock, width, blocks)
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, H, W) pixels in [0, 1]; return logits (B, K)."""
        x = self.conv1(self.normalize(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.relu(self.bn(x)).mean((2, 3)))
