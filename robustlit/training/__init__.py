"""LightningModules and what loads their checkpoints."""

from robustlit.training.advgan import AdvGANTraining
from robustlit.training.checkpoint import CheckpointError, load_classifier, read_checkpoint
from robustlit.training.classifier import RobustClassifier
from robustlit.training.substitute import Distilled, SubstituteTraining, distil

__all__ = [
    "AdvGANTraining",
    "CheckpointError",
    "Distilled",
    "RobustClassifier",
    "SubstituteTraining",
    "distil",
    "load_classifier",
    "read_checkpoint",
]
