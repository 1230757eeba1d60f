"""Denoiser: an autoencoder cleans the image before it is classified."""

from __future__ import annotations

from torch import Tensor, nn

from robustlit.classifier import attack_view, is_stochastic

_OTHER_SHAPE = "the autoencoder must return images of the shape that it is given, {given}, got {returned}"


class Denoiser(nn.Module):
    """A trained classifier behind a trained autoencoder: classify(denoise(x)).

    The second defense of the 2019 report (section 9.2, figure 12); MagNet's reformer (Meng, Chen: MagNet: a two-pronged
    defense against adversarial examples, 2017, arXiv:1705.09064). `robustlit.training.DenoiserTraining` trains the
    autoencoder. The whole is differentiable and is its own attack view: an attacker who knows of the autoencoder takes
    gradients through it, under which MagNet fell (Carlini, Wagner: MagNet and "Efficient defenses against adversarial
    attacks" are not robust to adversarial examples, 2017, arXiv:1711.08478).

    Args:
        net: from images (B, C, H, W) in [0, 1] to logits (B, K). Itself defended, it keeps its own attack view.
        autoencoder: from images to images of the same shape in [0, 1], e.g. `robustlit.models.Autoencoder`.

    Raises:
        ValueError: net or autoencoder is no module; in `forward`, an autoencoder that returns another shape.
    """

    def __init__(self, net: nn.Module, autoencoder: nn.Module) -> None:
        super().__init__()
        for name, value in (("net", net), ("autoencoder", autoencoder)):
            if not isinstance(value, nn.Module):
                raise ValueError(f"{name} must be a network (nn.Module), got {value!r}")
        self.net = net
        self.autoencoder = autoencoder

    @property
    def stochastic(self) -> bool:
        """That of the classifier; the autoencoder draws nothing."""
        return is_stochastic(self.net)

    def denoise(self, x: Tensor) -> Tensor:
        """The images (B, C, H, W) as the classifier gets to see them."""
        cleaned = self.autoencoder(x)
        if cleaned.shape != x.shape:
            raise ValueError(_OTHER_SHAPE.format(given=tuple(x.shape), returned=tuple(cleaned.shape)))
        return cleaned

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the denoised images."""
        return self.net(self.denoise(x))

    def attack_view(self) -> nn.Module:
        """Itself, differentiable end to end; for a defended classifier, the autoencoder in front of that one's view."""
        inner = attack_view(self.net)
        return self if inner is self.net else Denoiser(inner, self.autoencoder)

    def undefended(self) -> nn.Module:
        """The classifier behind the autoencoder."""
        return self.net
