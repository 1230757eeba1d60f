"""ResNets for small images: a 3x3 stem, which keeps the size, in place of ImageNet's 7x7 stem and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from robustlit.checks import check_count, check_sizes
from robustlit.models.normalize import normalization

STRIDES = (1, 2, 2, 2)  # of the four stages, each with twice the channels of the one before
BLOCKS = (2, 2, 2, 2)  # of ResNet-18


def check_stages(width: int, blocks: Sequence[int]) -> None:
    """Raise a ValueError unless `width` is a count, and `blocks` four of them."""
    check_count(width, "width")
    if len(blocks) != len(STRIDES):
        raise ValueError(f"blocks must have {len(STRIDES)} numbers, one a stage, got {list(blocks)}; {BLOCKS} is usual")
    for number in blocks:
        check_count(number, "blocks")


def add_stages(
    net: nn.Module, block: Callable[[int, int, int], nn.Module], width: int, blocks: Sequence[int]
) -> int:  # fmt: skip
    """Give a net the stages `layer1` to `layer4` of blocks; return the channels of the last."""
    before = width
    for stage, (number, stride) in enumerate(zip(blocks, STRIDES, strict=True), 1):
        channels = width * 2 ** (stage - 1)
        others = (block(channels, channels, 1) for _ in range(1, number))
        net.add_module(f"layer{stage}", nn.Sequential(block(before, channels, stride), *others))
        before = channels
    return before


def conv3x3(in_chans: int, out_chans: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias (a BatchNorm follows) that keeps the size or divides it by `stride`."""
    return nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; BatchNorm after each convolution, ReLU after the sum."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_chans, out_chans, stride), nn.BatchNorm2d(out_chans)
        self.conv2, self.bn2 = conv3x3(out_chans, out_chans), nn.BatchNorm2d(out_chans)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or in_chans != out_chans:
            projection = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 with a 3x3 stem: 11 173 962 parameters with ten classes of colour images.

    He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2016, https://arxiv.org/abs/1512.03385. The stem
    for small images, and the names of the layers, are those that papers on CIFAR-10 share. timm's `resnet18` has
    ImageNet's stem, which makes a map of 1x1 of an image of 32 pixels.

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
        self.conv1, self.bn1, self.relu = conv3x3(in_chans, width), nn.BatchNorm2d(width), nn.ReLU()
        self.linear = nn.Linear(add_stages(self, Block, width, blocks), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, H, W) pixels in [0, 1]; return logits (B, K)."""
        x = self.relu(self.bn1(self.conv1(self.normalize(x))))
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))
