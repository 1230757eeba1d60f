"""Lightning callbacks and loggers of robustlit; installed as `robustlit.callbacks`."""

from robustlit.tracking.logger import wandb_logger

from .adversarial_images import AdversarialImages
from .attack_sweep import AttackSweep
from .catastrophic_overfitting import CatastrophicOverfitting
from .images_by_eps import ImagesByEps
from .progress import Progress
from .save_on_interrupt import SaveOnInterrupt
from .verdict import Verdict

__all__ = [
    "AdversarialImages", "AttackSweep", "CatastrophicOverfitting", "ImagesByEps", "Progress", "SaveOnInterrupt",
    "Verdict", "wandb_logger",
]  # fmt: skip
