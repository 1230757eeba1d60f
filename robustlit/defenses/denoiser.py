"""Denoiser: an autoencoder cleans the image before it is classified."""

from __future__ import annotations

from torch import Tensor, nn

from robustlit.classifier import attack_view
from robustlit.defenses.transformed import Transformed


class Denoiser(Transformed):
    """A trained classifier behind a trained autoencoder: classify(denoise(x)).

    The second defense of the 2019 report (section 9.2, figure 12); MagNet's reformer (Meng, Chen: MagNet: a two-pronged
    defense against adversarial examples, 2017, arXiv:1705.09064). `robustlit.training.DenoiserTraining` trains the
    autoencoder. The model is differentiable and is its own attack view: gradients through the autoencoder broke MagNet
    (Carlini, Wagner: MagNet and "Efficient defenses against adversarial attacks" are not robust to adversarial
    examples, 2017, arXiv:1711.08478).

    Args:
        net: The classifier, from images (B, C, H, W) in [0, 1] to logits (B, K). A defended one keeps its attack view.
        autoencoder: From images to images of the same shape in [0, 1], e.g. `robustlit.models.Autoencoder`.

    Raises:
        ValueError: An argument is not a module; in `forward`, the autoencoder changes the shape.
    """

    def __init__(self, net: nn.Module, autoencoder: nn.Module) -> None:
        for name, value in (("net", net), ("autoencoder", autoencoder)):
            if not isinstance(value, nn.Module):
                raise ValueError(f"{name} must be a network (nn.Module), got {value!r}")
        super().__init__(net)
        self.autoencoder = autoencoder

    def denoise(self, x: Tensor) -> Tensor:
        """Return the images (B, C, H, W) after the autoencoder."""
        cleaned = self.autoencoder(x)
        if cleaned.shape != x.shape:
            raise ValueError(f"the autoencoder must keep the shape {tuple(x.shape)}, got {tuple(cleaned.shape)}")
        return cleaned

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of the denoised images."""
        return self.net(self.denoise(x))

    def attack_view(self) -> nn.Module:
        """Return the model itself; for a defended classifier, the autoencoder in front of its attack view."""
        inner = attack_view(self.net)
        return self if inner is self.net else Denoiser(inner, self.autoencoder)
