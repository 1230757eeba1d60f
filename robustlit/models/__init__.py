"""Networks, from (B, C, H, W) pixels in [0, 1] to (B, K) logits."""

from robustlit.models.cnn import BaseCNN, MadryCNN, SmallCNN
from robustlit.models.normalize import Normalize
from robustlit.models.parameters import count_parameters
from robustlit.models.timm_net import TimmNet

__all__ = ["BaseCNN", "MadryCNN", "Normalize", "SmallCNN", "TimmNet", "count_parameters"]
