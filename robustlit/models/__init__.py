"""Networks, from (B, C, H, W) pixels in [0, 1] to (B, K) logits, and those of AdvGAN."""

from robustlit.models.activations import JumpReLU, RandomJumpReLU, replace_activations
from robustlit.models.autoencoder import Autoencoder
from robustlit.models.cnn import CNN7, BaseCNN, MadryCNN, SmallCNN
from robustlit.models.embedding import EmbeddingClassifier
from robustlit.models.generator import AdvGANDiscriminator, AdvGANGenerator, load_generator, save_generator
from robustlit.models.normalize import Normalize
from robustlit.models.parameters import count_parameters
from robustlit.models.preact_resnet import PreActResNet
from robustlit.models.resnet import ResNet
from robustlit.models.timm_net import TimmNet
from robustlit.models.wide_resnet import WideResNet

__all__ = [
    "CNN7", "AdvGANDiscriminator", "AdvGANGenerator", "Autoencoder", "BaseCNN", "EmbeddingClassifier", "JumpReLU",
    "MadryCNN", "Normalize", "PreActResNet", "RandomJumpReLU", "ResNet", "SmallCNN", "TimmNet", "WideResNet",
    "count_parameters", "load_generator", "replace_activations", "save_generator",
]  # fmt: skip
