"""LightningModules and what loads their checkpoints."""

from robustlit.training.checkpoint import CheckpointError, load_classifier, read_checkpoint
from robustlit.training.classifier import RobustClassifier

__all__ = ["CheckpointError", "RobustClassifier", "load_classifier", "read_checkpoint"]
