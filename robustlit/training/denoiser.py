"""Train a denoiser: the autoencoder in front of a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from robustlit.attacks import Attack, Transfer
from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import LogOdds
from robustlit.checks import check_choice, check_not_negative
from robustlit.classifier import undefended
from robustlit.defenses.denoiser import Denoiser
from robustlit.objectives.inner import check_inner_attack
from robustlit.objectives.objective import ObjectiveOutput
from robustlit.threat import check_eps
from robustlit.training.classifier import Batch, RobustClassifier

KNOWLEDGE = ("greybox", "adaptive")


@dataclass
class Denoising:
    """The objective of a denoiser: the distance of corrupted, then denoised inputs from the clean images.

    Three distances, each with a weight: of pixels (mean square; Meng, Chen: MagNet, 2017, arXiv:1705.09064), of the
    classifier's logits (mean absolute difference), and the cross-entropy of the true class (Liao, Liang, Dong, Pang,
    Hu, Zhu: Defense against adversarial attacks using high-level representation guided denoiser, 2018,
    arXiv:1712.02976: their logits guided and class label guided denoisers).

    Args:
        pixel_weight, logit_weight, class_weight: Weights of the three; at least one above 0.
        noise: Standard deviation, in pixel units, of the Gaussian noise on the inputs that are not adversarial, which
            are then clipped to [0, 1]; 0 leaves them clean.
        share: Share of a batch, in [0, 1], that is adversarial.
        attack: The attack that crafts them: FGSM, BIM, MIM or PGD without restarts; needed for a share above 0.
        eps: Least and largest budget in pixel units: each batch's is drawn between them; None is the attack's own.
        knowledge: "greybox" crafts them on the classifier alone; "adaptive" through the autoencoder of that step, which
            is adversarial training of the autoencoder.

    Raises:
        ValueError: An argument out of range, no weight above 0, an attack that is missing or no gradient ascent.
    """

    pixel_weight: float = 1.0
    logit_weight: float = 0.0
    class_weight: float = 0.0
    noise: float = 0.1
    share: float = 0.0
    attack: GradientAscent | None = None
    eps: Sequence[float] | None = None
    knowledge: str = "greybox"

    def __post_init__(self) -> None:
        for name in ("pixel_weight", "logit_weight", "class_weight", "noise", "share"):
            check_not_negative(getattr(self, name), name)
        if not self.pixel_weight + self.logit_weight + self.class_weight:
            raise ValueError(
                "pixel_weight, logit_weight and class_weight are all 0, so there is nothing to learn; raise one"
            )
        if self.share > 1:
            raise ValueError(f"share must be a share of the batch in [0, 1], got {self.share!r}")
        check_choice(self.knowledge, "knowledge", KNOWLEDGE)
        if self.attack is None:
            if self.share:
                raise ValueError(
                    f"share={self.share} of adversarial inputs needs an attack, e.g. PGD(eps=0.3, steps=7)"
                )
            return
        check_inner_attack(self.attack)
        if self.eps is not None:
            bounds = [check_eps(eps, self.attack.norm) for eps in self.eps]
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise ValueError(f"eps must be the least and the largest budget, e.g. [0.1, 0.3], got {self.eps!r}")

    def __call__(self, classifier: Denoiser, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the weighted loss of clean images (B, C, H, W) and (B,) classes, and the denoised images' logits."""
        net = undefended(classifier)
        denoised = classifier.denoise(self.corrupt(classifier, x, y))
        logits = net(denoised)
        loss = x.new_zeros(())
        if self.pixel_weight:
            loss = loss + self.pixel_weight * F.mse_loss(denoised.float(), x.float())
        if self.logit_weight:
            with torch.no_grad():
                clean = net(x.clone())
            loss = loss + self.logit_weight * F.l1_loss(logits.float(), clean.float())
        if self.class_weight:
            loss = loss + self.class_weight * F.cross_entropy(logits.float(), y)
        return {"loss": loss, "logits": logits.detach()}

    def corrupt(self, classifier: Denoiser, x: Tensor, y: Tensor) -> Tensor:
        """Return inputs (B, C, H, W) made from clean images: the first ones adversarial, the others noisy.

        Draws from the global generators. Batches are shuffled, so the first ones are a random choice.
        """
        # Rounded at random, so that the share holds on average for a batch of any size.
        many = min(len(x), int(self.share * len(x) + float(torch.rand(()))))
        corrupted = x
        if self.noise:
            corrupted = (x + self.noise * torch.randn_like(x)).clamp_(0, 1)
        if not many or self.attack is None:
            return corrupted
        low, high = (self.attack.eps, self.attack.eps) if self.eps is None else self.eps
        eps = low + (high - low) * float(torch.rand(()))
        source = undefended(classifier) if self.knowledge == "greybox" else classifier
        # The direction of the cross-entropy, without its vanishing gradient.
        x_adv = self.attack.maximise(source, x[:many], LogOdds(y[:many]), eps=eps)
        return torch.cat([x_adv, corrupted[many:]])


class DenoiserTraining(RobustClassifier):
    """Train the autoencoder of a `Denoiser`; the classifier behind it is frozen and in eval mode.

    Logs what `RobustClassifier` logs and `val/greybox_accuracy`, under `validation_attack` crafted on the classifier
    alone. `val/robust_accuracy` is under the same attack through the autoencoder.

    Args:
        net: The defended classifier. The parameters of the classifier in it no longer require gradients.
        optimizer: Parameters -> Optimizer, for the autoencoder.
        num_classes: K.
        pixel_weight, logit_weight, class_weight, noise, share, attack, eps, knowledge: see `Denoising`.
        schedule, validation_attack, seed, config: see `RobustClassifier`.

    Raises:
        ValueError: An argument out of range; a net without an autoencoder; in the first batch of an epoch, images that
            the autoencoder was not built for.
    """

    def __init__(
        self,
        net: Denoiser,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        num_classes: int,
        pixel_weight: float = 1.0,
        logit_weight: float = 0.0,
        class_weight: float = 0.0,
        noise: float = 0.1,
        share: float = 0.0,
        attack: GradientAscent | None = None,
        eps: Sequence[float] | None = None,
        knowledge: str = "greybox",
        schedule: Callable[..., LRScheduler] | None = None,
        validation_attack: Attack | None = None,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(net, Denoiser):
            raise ValueError(
                f"net must be a robustlit.defenses.Denoiser, got {type(net).__name__}; wrap the classifier: "
                "Denoiser(net, Autoencoder())"
            )
        super().__init__(
            net,
            Denoising(pixel_weight, logit_weight, class_weight, noise, share, attack, eps, knowledge),  # type: ignore[arg-type]
            lambda parameters: optimizer([p for p in parameters if p.requires_grad]),
            num_classes=num_classes,
            schedule=schedule,
            validation_attack=validation_attack,
            seed=seed,
            config=config,
        )
        net.undefended().requires_grad_(False)  # DDP would wait for gradients that never come
        net.undefended().eval()
        self.val_greybox_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def train(self, mode: bool = True) -> DenoiserTraining:
        """Set the mode of everything but the classifier, which stays in eval mode."""
        super().train(mode)
        undefended(self.net).eval()
        return self

    @property
    def monitors(self) -> tuple[str, ...]:
        """See the base class."""
        attacked = ("val/greybox_accuracy",) if self.validation_attack is not None else ()
        return (*super().monitors, *attacked)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure clean, adaptive and grey-box accuracy on the held-out split."""
        super().validation_step(batch, batch_idx)
        if self.validation_attack is None:
            return
        x, y = self.pair(batch)
        index = batch[2] if len(batch) > 2 else torch.arange(len(y), device=y.device) + batch_idx * len(y)
        attack = Transfer(self.validation_attack, undefended(self.net))
        result = attack.run(self.net, x, y, index=index, seed=0)
        self.val_greybox_accuracy.update(torch.where(result.success, (y + 1) % self.num_classes, y), y)
        self.log("val/greybox_accuracy", self.val_greybox_accuracy, on_step=False, on_epoch=True)
