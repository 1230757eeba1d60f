"""Lightning callbacks and loggers of robustlit; installed as `robustlit.callbacks`."""

from .adversarial_images import AdversarialImages
from .attack_sweep import AttackSweep
from .catastrophic_overfitting import CatastrophicOverfitting
from .progress import Progress
from .save_on_interrupt import SaveOnInterrupt
from .wandb_logger import wandb_logger

__all__ = [
    "AdversarialImages",
    "AttackSweep",
    "CatastrophicOverfitting",
    "Progress",
    "SaveOnInterrupt",
    "wandb_logger",
]
