"""Small convolutional networks of the robustness literature, for grey digits and small colour images."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from robustlit.checks import check_integer, check_sizes
from robustlit.models.normalize import normalization


class CNN(nn.Module):
    """Base: a network of three parts, whose every activation is a module of its own so that it can be replaced.

    Args:
        num_classes: Number of logits K, at least 2.
        in_chans: Channels of an image.
        image_size: Side of the square image in pixels.
        mean: Mean of each channel in pixel units; with `std` it puts a `Normalize` layer first.
        std: Standard deviation of each channel in pixel units.

    Raises:
        ValueError: An argument is out of its range.
    """

    normalize: nn.Module
    features: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, H, W) pixels in [0, 1]; return logits (B, K)."""
        return self.classifier(self.features(self.normalize(x)))


def _convolutions(
    *channels: int, kernel: int, stride: int = 1, padding: int = 0, batch_norm: bool = False
) -> list[nn.Module]:
    """Return the convolutions from each number of channels to the next, after each BatchNorm where asked and a ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        norms = [nn.BatchNorm2d(after)] if batch_norm else []
        layers += [nn.Conv2d(before, after, kernel, stride, padding), *norms, nn.ReLU()]
    return layers


def _scaled(width: float, *sizes: int) -> list[int]:
    """Return the published sizes times `width`, rounded.

    Raises:
        ValueError: None of the smallest is left.
    """
    least = min(sizes)
    if not (math.isfinite(width) and round(least * width) >= 1):
        raise ValueError(f"width must leave at least one of {least} channels, got {width}; 1 is the published network")
    return [round(size * width) for size in sizes]


class BaseCNN(CNN):
    """The base network of the 2019 report: four 3x3 convolutions, two linear layers, 594 922 parameters on MNIST.

    Source: A. Martin, "Adversarial Examples", 2019.

    Args:
        num_classes, in_chans, mean, std: See `CNN`.
        image_size: Side of the square image in pixels, at least 16.
        dropout: Probability of dropping a unit before the last layer, in [0, 1).
        width: Factor on the 32 and 64 channels and the 512 hidden units (rounded); at 0.5 it has 150 266 parameters.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, image_size: int = 28, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, dropout: float = 0.0, width: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size, smallest_image=16)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {dropout}; 0 turns it off")
        narrow, wide, hidden = _scaled(width, 32, 64, 512)
        # Two convolutions without padding take 4 pixels off, the pooling halves; twice: 28 -> 12 -> 4.
        side = ((image_size - 4) // 2 - 4) // 2
        self.normalize = normalization(mean, std, in_chans)
        first, second = _convolutions(in_chans, narrow, narrow, kernel=3), _convolutions(narrow, wide, wide, kernel=3)
        self.features = nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(wide * side**2, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )


class MadryCNN(CNN):
    """The network of the MNIST adversarial training challenge: 3 274 634 parameters on MNIST.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
    https://arxiv.org/abs/1706.06083

    Args:
        num_classes, in_chans, mean, std: See `CNN`.
        image_size: Side of the square image in pixels, at least 4.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, image_size: int = 28, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size, smallest_image=4)
        side = image_size // 2 // 2  # the convolutions keep the size, each pooling halves it
        self.normalize = normalization(mean, std, in_chans)
        first, second = (_convolutions(*pair, kernel=5, padding=2) for pair in ((in_chans, 32), (32, 64)))
        self.features = nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(64 * side**2, 1024), nn.ReLU(), nn.Linear(1024, num_classes))


class SmallCNN(CNN):
    """Two strided 4x4 convolutions and two linear layers: 166 406 parameters on MNIST, trained in seconds.

    Source: Wong et al., "Fast is better than free: Revisiting adversarial training", 2020,
    https://arxiv.org/abs/2001.03994

    Args:
        num_classes, in_chans, mean, std: See `CNN`.
        image_size: Side of the square image in pixels, at least 4.
        width: Factor on the 16 and 32 channels of the convolutions (rounded).
        hidden: Units of the hidden linear layer; 256 at `width=2` make 839 018 parameters.
        batch_norm: Put BatchNorm before each ReLU, as certified training likes it (Shi et al. 2021, arXiv:2103.12528).
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, image_size: int = 28, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, width: float = 1.0, hidden: int = 100, batch_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size, smallest_image=4)
        check_integer("hidden", hidden, 1, "the paper has 100")
        first, second = _scaled(width, 16, 32)
        side = image_size // 2 // 2  # each convolution halves the size
        self.normalize = normalization(mean, std, in_chans)
        convolutions = _convolutions(in_chans, first, second, kernel=4, stride=2, padding=1, batch_norm=batch_norm)
        self.features = nn.Sequential(*convolutions, nn.Flatten())
        norms = [nn.BatchNorm1d(hidden)] if batch_norm else []
        self.classifier = nn.Sequential(
            nn.Linear(second * side**2, hidden), *norms, nn.ReLU(), nn.Linear(hidden, num_classes)
        )


class CNN7(CNN):
    """Five 3x3 convolutions and two linear layers, BatchNorm between them: 13 259 338 parameters on MNIST.

    Source: Shi et al., "Fast certified robust training with short warmup", 2021, https://arxiv.org/abs/2103.12528

    Args:
        num_classes, in_chans, mean, std: See `CNN`.
        image_size: Side of the square image in pixels, at least 1.
        width: Channels of the first two convolutions; the other three have twice as many.
        hidden: Units of the hidden linear layer.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, image_size: int = 28, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, width: int = 64, hidden: int = 512,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size, smallest_image=1)
        check_integer("width", width, 1, "the papers have 64")
        check_integer("hidden", hidden, 1, "the papers have 512")
        self.normalize = normalization(mean, std, in_chans)
        channels, strides = (in_chans, width, width, 2 * width, 2 * width, 2 * width), (1, 1, 2, 1, 1)
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(channels), strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        side = -(-image_size // 2)  # the third convolution halves the size
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * side**2, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
