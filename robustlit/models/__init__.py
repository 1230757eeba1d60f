"""Networks, from (B, C, H, W) pixels in [0, 1] to (B, K) logits, and those of AdvGAN."""

from robustlit.models.cnn import BaseCNN, MadryCNN, SmallCNN
from robustlit.models.generator import AdvGANDiscriminator, AdvGANGenerator, load_generator, save_generator
from robustlit.models.normalize import Normalize
from robustlit.models.parameters import count_parameters
from robustlit.models.timm_net import TimmNet

__all__ = [
    "AdvGANDiscriminator",
    "AdvGANGenerator",
    "BaseCNN",
    "MadryCNN",
    "Normalize",
    "SmallCNN",
    "TimmNet",
    "count_parameters",
    "load_generator",
    "save_generator",
]
