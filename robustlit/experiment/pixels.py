"""Warn of a net that seems to have been trained on pixels of another scale than those that it gets here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from robustlit.classifier import predicted
from robustlit.results import Accuracy

IMAGES = 200  # of the test split: a share near 1/2 is then known to 7 points
_GOOD = 0.9  # from here on nothing can be clearly better
# Mean and standard deviation per channel, as published with the data sets' usual training scripts.
_USUAL = {
    3: (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
        ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),  # CIFAR-10
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),  # pixels in 0..255
    ),
    1: (((0.1307,), (0.3081,)), ((0.286,), (0.353,)), ((0.5,), (0.5,)), ((0.0,), (1 / 255,))),  # MNIST, Fashion-MNIST
}


def warn_of_pixels(net: nn.Module, data: Any, origin: str) -> None:
    """Warn where a net classifies the first test images at about chance, or much better on another scale of pixels.

    Args:
        net: The net, in eval mode; what its random layers draw here does not change later draws.
        data: The DataModule, set up for the test.
        origin: The net's name in the message.
    """
    x, y = _first(data.test_dataloader())
    share = _judge_of(net, x, y)
    found = share(x)
    if float(found) >= _GOOD:
        return
    scales = {_constructor(*usual): _scaled(x, *usual) for usual in _USUAL.get(x.shape[1], ())}
    tried = {name: share(pixels) for name, pixels in scales.items()}
    name, best = max(tried.items(), key=lambda item: item[1], default=("", found))
    orders = {"": x, name: scales.get(name, x)} if x.shape[1] == 3 else {}
    flipped, scale = max(((share(pixels.flip(1)), n) for n, pixels in orders.items()), default=(found, ""))
    if flipped.interval[0] > max(found.interval[1], best.interval[1]):
        better, how = flipped, "with the channels in the order blue, green, red"
        way = f"give it {f'{scale}(x.flip(1))' if scale else 'x.flip(1)'} in its forward"
    elif best.interval[0] > found.interval[1]:
        better, how = best, f"behind {name}"
        way = f"its normalisation seems to be missing, build nn.Sequential(robustlit.models.{name}, net)"
    elif found.interval[0] <= 1 / data.num_classes:
        rank_zero_warn(
            f"{origin} classifies {found} of the first test images, about chance for {data.num_classes} classes. If it "
            "was trained on normalised pixels, build nn.Sequential(robustlit.models.Normalize(mean, std), net) with "
            "the mean and std of its training, as it gets pixels in [0, 1]; else look at its weights and classes"
        )
        return
    else:
        return
    rank_zero_warn(f"{origin} classifies {found} of the first test images, and {better} {how}: {way}")


def _first(loader: Any) -> tuple[Tensor, Tensor]:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        images.append(batch[0])
        labels.append(batch[1])
        if sum(map(len, images)) >= IMAGES:
            break
    return torch.cat(images)[:IMAGES], torch.cat(labels)[:IMAGES]


def _judge_of(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Accuracy]:
    device = next((p.device for p in net.parameters()), x.device)

    def share(pixels: Tensor) -> Accuracy:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                answers = [predicted(net(part.to(device))).cpu() for part in pixels.split(50)]
            except Exception:  # a net may refuse pixels outside [0, 1]
                return Accuracy(0, len(y))
        return Accuracy(int((torch.cat(answers) == y.cpu()).sum()), len(y))

    return share


def _scaled(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (x - x.new_tensor(mean).view(1, -1, 1, 1)) / x.new_tensor(std).view(1, -1, 1, 1)


def _constructor(mean: Sequence[float], std: Sequence[float]) -> str:
    if std[0] == 1 / 255:
        return f"Normalize(mean={list(mean)}, std=[1 / 255] * {len(std)})"
    return f"Normalize(mean={list(mean)}, std={list(std)})"
