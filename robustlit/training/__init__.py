"""LightningModules and what loads their checkpoints."""

from robustlit.training.advgan import AdvGANTraining
from robustlit.training.averaging import AveragedWeights
from robustlit.training.checkpoint import CheckpointError, load_classifier, read_checkpoint
from robustlit.training.classifier import RobustClassifier
from robustlit.training.denoiser import DenoiserTraining
from robustlit.training.finite import NonFiniteError
from robustlit.training.loading import load
from robustlit.training.modules import (
    BaseCNNClassifier,
    JumpReLUClassifier,
    LabelEmbeddingClassifier,
    PGDAdversarialClassifier,
    RandomJumpReLUClassifier,
    TRADESClassifier,
)
from robustlit.training.schedules import piecewise
from robustlit.training.substitute import Distilled, SubstituteTraining, distil

__all__ = [
    "AdvGANTraining", "AveragedWeights", "BaseCNNClassifier", "CheckpointError", "DenoiserTraining", "Distilled",
    "JumpReLUClassifier", "LabelEmbeddingClassifier", "NonFiniteError", "PGDAdversarialClassifier",
    "RandomJumpReLUClassifier", "RobustClassifier", "SubstituteTraining", "TRADESClassifier", "distil", "load",
    "load_classifier", "piecewise", "read_checkpoint",
]  # fmt: skip
