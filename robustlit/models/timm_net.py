"""Any network of the timm library as a classifier of small images in pixel space."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.checks import check_integer, check_sizes, did_you_mean
from robustlit.models.normalize import normalization

SMALLEST_SIDE = 32  # pixels: DenseNet and VGG halve five times, and fail on 28


class TimmNet(nn.Module):
    """A timm network behind a differentiable resize and a normalisation: pixels of the data in, logits out.

    Attacks see the data's own pixels: the resize is part of the model, so eps and distances are unaffected by it.

    Source: R. Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models

    Args:
        name: A timm name (`timm.list_models()` has them all), with a pretrained tag if you like.
        num_classes: Number of logits K, at least 2.
        in_chans: Channels of an image.
        image_size: Side of the data's square images in pixels.
        resize_to: Side in pixels that images are resized to (bilinear, no antialiasing) before the network sees them.
            None: `img_size` where `model_kwargs` has it; the network's own size where that is fixed (transformers: 224
            as a rule, slow); 32 for smaller images; else no resize.
        pretrained: Start from timm's weights, downloaded or from the cache of Hugging Face. A last layer without
            weights starts as PyTorch's own where timm's start is too wide for few classes (EfficientNet, MobileNet).
        mean, std: Mean and deviation of each channel in pixel units; None: those of the pretrained weights, or without
            such weights no normalisation.
        model_kwargs: Further arguments of the network, as timm calls them: `{"drop_rate": 0.2}`, or
            `{"img_size": 32, "patch_size": 4}` for a transformer that is quick on small images.

    Raises:
        ValueError: An unknown name, an argument out of range, or images of a size that the network cannot classify.
        OSError: The pretrained weights could not be loaded.
    """

    def __init__(
        self, name: str, num_classes: int = 10, in_chans: int = 1, image_size: int = 28, resize_to: int | None = None,
        pretrained: bool = False, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(num_classes, in_chans, image_size)
        if resize_to is not None:
            check_integer("resize_to", resize_to, 1, "leave it out (null) to have it chosen")
        options = dict(model_kwargs or {})
        net = _create(name, num_classes, in_chans, pretrained, options)
        origin = cast(Mapping[str, Any], net.pretrained_cfg)  # how timm's weights of this name were trained
        if pretrained and mean is None and std is None:
            mean, std = _per_channel(origin["mean"], in_chans), _per_channel(origin["std"], in_chans)

        if not pretrained or origin.get("num_classes") != num_classes:
            _narrow_classifier(net)
        self.resize_to = resize_to or _choose_side(image_size, origin, options)
        self.normalize = normalization(mean, std, in_chans)
        self.net = net
        self._try_one_image(name, num_classes, in_chans, image_size)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, H, W) pixels in [0, 1]; return logits (B, K)."""
        side = self.resize_to
        if side is not None and x.shape[-2:] != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=False)
        return self.net(self.normalize(x))

    def _try_one_image(self, name: str, num_classes: int, in_chans: int, image_size: int) -> None:
        """Classify one black image, so that a wrong size is an error here and not later in a run."""
        device = next(self.parameters()).device
        self.eval()  # BatchNorm's averages and the random numbers stay as they are
        try:
            with torch.no_grad():
                logits = self(torch.zeros(1, in_chans, image_size, image_size, device=device))
        except (RuntimeError, AssertionError) as error:
            side = self.resize_to or image_size
            raise ValueError(
                f"{name} cannot classify images of {side}x{side} pixels ({error}); set resize_to to a side it can "
                f"take, or, where it has a size of its own, model_kwargs={{'img_size': {side}}}"
            ) from error
        self.train()
        if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{name} must return logits of shape (B, {num_classes}), got {found}; remove what changes its head "
                "from model_kwargs, or choose a classifier"
            )


def _create(name: str, num_classes: int, in_chans: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Build the timm network; raise errors that name the argument to change."""
    import timm  # here, because it takes seconds that the other networks do not need

    taken = sorted({"num_classes", "in_chans", "pretrained"} & set(options))
    if taken:
        raise ValueError(f"model_kwargs must not repeat an argument of TimmNet, got {taken}; set it directly")
    # "hf-hub:owner/name" and "local-dir:folder" are sources of timm, not names in its list.
    if ":" not in name and not timm.is_model(name):
        advice = did_you_mean(name, timm.list_models(), most=5, cutoff=0.5) or "timm.list_models() has them all"
        raise ValueError(f"name must be a network that timm {timm.__version__} knows, got {name!r}; {advice}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **options)
    except TypeError as error:
        raise ValueError(f"{name} does not take model_kwargs={options} ({error}); see its class in timm") from error
    except RuntimeError as error:
        raise ValueError(
            f"timm cannot build {name} with pretrained={pretrained}: {error} The tags that have weights: "
            f"timm.list_pretrained({name.split('.')[0] + '*'!r})"
        ) from error
    except OSError as error:
        raise OSError(
            f"tried to load the pretrained weights of {name} from the local cache and from the network, and could "
            f"not ({type(error).__name__}: {error}); use pretrained=false, or fill the cache where there is a network "
            f"(`timm.create_model({name!r}, pretrained=True)`) and copy it (HF_HOME says where it is)"
        ) from error


def _narrow_classifier(net: nn.Module) -> None:
    """Draw the untrained last layer as PyTorch does where timm draws it wider than 1 / sqrt(its inputs).

    The EfficientNet and MobileNet families draw it by the number of classes, which suits ImageNet's 1 000. With 10
    classes their first loss is 5 to 8 instead of log(10): after two epochs of 10 000 digits EfficientNet-B3 was right
    on 63.2 % of the validation images, and on 92.5 % with this start (`recipe=standard model=efficientnet_b3
    optimizer.lr=5e-3 data.batch_size=64 data.train_size=10000 data.val_size=1000 trainer.max_epochs=2
    trainer.precision=32-true channels_last=true validation_attack=null sweep=none`).
    """
    head: Any = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]
    for layer in head if isinstance(head, Sequence) else [head]:
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.std() > layer.weight[0].numel() ** -0.5:
            layer.reset_parameters()


def _choose_side(image_size: int, origin: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    """Choose the side in pixels to resize to; None for no resize."""
    if isinstance(options.get("img_size"), int):
        side = int(options["img_size"])
    elif origin.get("fixed_input_size") and not options.get("dynamic_img_size"):
        side = int(origin["input_size"][-1])
    else:
        side = max(image_size, SMALLEST_SIDE)
    return None if side == image_size else side


def _per_channel(colours: Sequence[float], in_chans: int) -> list[float]:
    """Carry the statistics of red, green and blue over to the channels of the data, as timm carries the weights.

    For one channel timm adds up the first layer's weights over the colours, as for a grey image in three channels that
    are normalised alike: hence the average. For other numbers timm deals out the weights in turn.
    """
    if in_chans == 1:
        return [sum(colours) / len(colours)]
    return [colours[channel % len(colours)] for channel in range(in_chans)]
