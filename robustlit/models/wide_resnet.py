"""Wide ResNets: the large nets of papers on robust training and of RobustBench."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from robustlit.checks import check_count, check_sizes
from robustlit.models.normalize import normalization
from robustlit.models.resnet import conv3x3

STEM = 16  # channels of the first convolution
STRIDES = (1, 2, 2)  # of the three stages, each with twice the channels of the one before


class WideBlock(nn.Module):
    """Two 3x3 convolutions, BatchNorm and ReLU before each; a shortcut that changes the channels starts after them."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(in_chans), nn.ReLU()
        self.conv1 = conv3x3(in_chans, out_chans, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(out_chans), nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_chans, out_chans)
        self.convShortcut: nn.Module | None = None  # its name in the files of trained nets
        if in_chans != out_chans:
            self.convShortcut = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(out))))) + shortcut


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: with ten classes of colour images WRN-28-10 has 36 479 194 parameters, WRN-34-10 46 160 474.

    Zagoruyko, Komodakis: Wide residual networks, 2016, https://arxiv.org/abs/1605.07146. The names of the layers and
    the initial weights are those of the code of TRADES (Zhang 2019, arXiv:1901.08573), which RobustBench has too, so
    that nets trained by it can be loaded.

    Args:
        num_classes: Number of logits K, at least 2.
        in_chans: Channels of an image.
        image_size: Side of the square image in pixels, at least 4. Any other size can be classified as well.
        mean, std: Mean and deviation of each channel in pixel units; None: no normalisation.
        depth: Number of convolutions on the longest path, 6 n + 4.
        width: Factor on the channels 16, 32 and 64 of the three stages.
        dropout: Probability of dropping a value within each block, in [0, 1); papers on robust training take 0.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, image_size: int = 32, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, depth: int = 28, width: int = 10, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size, smallest_image=4)
        check_count(width, "width")
        number, rest = divmod(depth - 4, 6)
        if rest or number < 1:
            raise ValueError(f"depth must be 6 n + 4 with n of at least 1, got {depth}; 28 and 34 are usual")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {dropout}; 0 turns it off")
        self.normalize = normalization(mean, std, in_chans)
        self.conv1 = conv3x3(in_chans, STEM)
        before = STEM
        for stage, stride in enumerate(STRIDES, 1):
            channels = STEM * width * 2 ** (stage - 1)
            others = (WideBlock(channels, channels, 1, dropout) for _ in range(1, number))
            blocks = nn.Sequential(WideBlock(before, channels, stride, dropout), *others)
            self.add_module(f"block{stage}", nn.ModuleDict({"layer": blocks}))
            before = channels
        self.bn1, self.relu = nn.BatchNorm2d(before), nn.ReLU()
        self.fc = nn.Linear(before, num_classes)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, H, W) pixels in [0, 1]; return logits (B, K)."""
        x = self.conv1(self.normalize(x))
        for stage in range(1, len(STRIDES) + 1):
            x = self.get_submodule(f"block{stage}.layer")(x)
        return self.fc(self.relu(self.bn1(x)).mean((2, 3)))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)
