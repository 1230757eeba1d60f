"""AdvGAN's training: a generator against a frozen victim, or against a substitute distilled from its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from robustlit.attacks.victim import Victim
from robustlit.checks import check_choice, check_not_negative
from robustlit.classifier import check_labels
from robustlit.files import write_tensors
from robustlit.models.generator import AdvGANGenerator, perturb, save_generator
from robustlit.threat import check_eps, check_images
from robustlit.training.checkpoint import pack
from robustlit.training.classifier import step_seed
from robustlit.training.finite import Batch, GuardedTraining
from robustlit.training.fooling import Fooling, goal_of
from robustlit.training.substitute import ADAM, Oracle, distillation_loss

MODES = ("white_box", "black_box")
DISTILLATIONS = ("static", "dynamic")


class AdvGANTraining(GuardedTraining):
    """Train AdvGAN's generator; the attack that uses it is `robustlit.attacks.AdvGAN`.

    Xiao, Li, Zhu, He, Liu, Song: Generating adversarial examples with adversarial networks, 2018, arXiv:1801.02610. The
    generator minimises adversarial + `gan_weight` * gan + `hinge_weight` * hinge, each the mean over the examples, so
    that no weight depends on the batch size: the margin of Carlini and Wagner on the logits, the least-squares GAN
    loss, and max(0, |perturbation|_2 - `hinge_bound`). The discriminator separates images from generated ones.

    White box: the margin's gradient comes from the victim (through its `attack_view()`). Black box (section 4.2): it
    comes from a substitute that learns the victim's probabilities, for `distillation_epochs` from the training images
    alone, while the generator rests. After that a "static" substitute stays as it is; a "dynamic" one takes in each
    step another on the images and on what the generator makes of them. `queries` counts the images that the victim was
    shown, including those by which validation chooses among epochs.

    Logs at validation, about the victim: `val/accuracy`, `val/robust_accuracy` (under the generator),
    `val/fooling_rate` (share of the correctly classified images that the generator breaks), `val/l2` (mean norm of the
    perturbation); in a black box `val/agreement` and `val/agreement_generated` (share of equal predictions of
    substitute and victim) and `queries`. `test/...` likewise; in training each loss. Two to three optimizer steps make
    one training step, and Lightning's `global_step` counts each. It runs in one process.

    Args:
        net: The victim, from images (B, C, H, W) in [0, 1] to logits (B, K). It stays in eval mode and is not trained.
        generator: From images to perturbations, unbounded.
        discriminator: From images to scores (B,).
        mode: "white_box" or "black_box".
        substitute: The net to distil, to logits (B, K); needed in a black box, unused in a white box.
        distillation: "dynamic" or "static", in a black box.
        distillation_epochs: The first epochs, in which only the substitute is trained.
        eps: L-inf budget in pixel units.
        target: The class to reach; None: any but the true one. A generator is for one target.
        confidence: The margin, in logits, beyond which an example adds nothing (kappa).
        gan_weight, hinge_weight: Weights of the terms (the paper's alpha and beta).
        hinge_bound: L2 norm in pixel units up to which a perturbation costs nothing (the paper's c).
        optimizer: Parameters -> Optimizer, for each net; None is Adam at 1e-3.
        seed: With the step it seeds each training step.
        folder: Where `generator.pt` and, in a black box, `substitute.ckpt` are written before the test; None writes
            nothing.
        config: The composed recipe as plain containers, stored in the checkpoint.

    Raises:
        ValueError: An argument out of range; in training: no gradient of a victim in a white box, images outside
            [0, 1], an image that the nets do not take, several processes.
    """

    def __init__(
        self,
        net: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        mode: str = "white_box",
        substitute: nn.Module | None = None,
        distillation: str = "dynamic",
        distillation_epochs: int = 3,
        eps: float = 0.3,
        target: int | None = None,
        confidence: float = 0.0,
        gan_weight: float = 0.1,
        hinge_weight: float = 0.1,
        hinge_bound: float = 1.0,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice(mode, "mode", MODES)
        check_choice(distillation, "distillation", DISTILLATIONS)
        if mode == "black_box" and substitute is None:
            raise ValueError("a black box needs a net to distil: substitute=SmallCNN()")
        if isinstance(distillation_epochs, bool) or not isinstance(distillation_epochs, int) or distillation_epochs < 0:
            raise ValueError(f"distillation_epochs must be a whole number of at least 0, got {distillation_epochs!r}")
        if distillation == "static" and not distillation_epochs and mode == "black_box":
            raise ValueError("static distillation without distillation_epochs would leave the substitute untrained")
        if target is not None and (isinstance(target, bool) or not isinstance(target, int) or target < 0):
            raise ValueError(f"target must be a class, a whole number of at least 0, or None, got {target!r}")
        check_not_negative(confidence, "confidence")
        check_not_negative(gan_weight, "gan_weight")
        check_not_negative(hinge_weight, "hinge_weight")
        check_not_negative(hinge_bound, "hinge_bound")
        self.automatic_optimization = False
        self.net = net.eval()
        self.generator, self.discriminator = generator, discriminator
        self.substitute = substitute if mode == "black_box" else None
        self.mode, self.distillation = mode, distillation
        self.distillation_epochs = distillation_epochs if self.substitute is not None else 0
        self.eps, self.target = check_eps(eps), target
        self.confidence, self.hinge_bound = float(confidence), float(hinge_bound)
        self.gan_weight, self.hinge_weight = float(gan_weight), float(hinge_weight)
        self.seed, self.config = seed, config
        self.folder = None if folder is None else Path(folder)
        self._optimizer = optimizer or ADAM
        # Stored in the generator's file.
        self.generator.eps, self.generator.target = self.eps, target  # type: ignore[assignment]
        self.oracle = Oracle(net)
        self._fooling = Fooling(self.oracle, target)

    @property
    def queries(self) -> int:
        """Images that the victim was shown in a black box, training and validation together; 0 in a white box."""
        return self.oracle.queries

    def train(self, mode: bool = True) -> AdvGANTraining:
        """Set the mode of everything but the victim, which stays in eval mode."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return adversarial images (B, C, H, W) in [0, 1], which the generator makes of images."""
        return perturb(self.generator, x, self.eps)

    # Training

    def configure_optimizers(self) -> list[Optimizer]:
        """Return the optimizers of the generator, the discriminator and, in a black box, the substitute."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"AdvGAN trains in one process, got {self.trainer.world_size}; use trainer.devices=1: it takes minutes"
            )
        epochs = self.trainer.max_epochs
        if epochs is not None and 0 < epochs <= self.distillation_epochs:
            raise ValueError(
                f"trainer.max_epochs={epochs} leaves no epoch for the generator after distillation_epochs="
                f"{self.distillation_epochs}; raise the one or lower the other"
            )
        nets = [self.generator, self.discriminator, self.substitute]
        return [self._optimizer(net.parameters()) for net in nets if net is not None]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the batch, and in the first of an epoch the nets; seed the step."""
        super().on_train_batch_start(batch, batch_idx)
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))
        if batch_idx == 0:
            self._check(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Step the substitute, in a black box; then the discriminator and the generator."""
        x, y = self.pair(batch)
        optimizers: Any = self.optimizers()
        if self.current_epoch < self.distillation_epochs:
            self._distil(optimizers[2], x)
            return
        x_adv = perturb(self.generator, x, self.eps)
        if self.distillation == "dynamic" and self.substitute is not None:
            self._distil(optimizers[2], torch.cat([x, x_adv.detach()]))
        self._discriminate(optimizers[1], x, x_adv.detach())
        self._generate(optimizers[0], x, x_adv, y)

    def _distil(self, optimizer: LightningOptimizer, x: Tensor) -> None:
        assert self.substitute is not None
        loss = distillation_loss(self.substitute(x), self.oracle(x))
        self._step(optimizer, loss)
        self.log("train/distillation_loss", loss)

    def _discriminate(self, optimizer: LightningOptimizer, x: Tensor, x_adv: Tensor) -> None:
        real, fake = self.discriminator(x).float(), self.discriminator(x_adv).float()
        loss = ((real - 1).square().mean() + fake.square().mean()) / 2
        self._step(optimizer, loss)
        self.log("train/discriminator_loss", loss)

    def _generate(self, optimizer: LightningOptimizer, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        adversarial, toward = self._adversarial(x_adv.detach(), y)
        self.toggle_optimizer(optimizer)  # no gradients for the discriminator
        gan = (self.discriminator(x_adv).float() - 1).square().mean()
        length = torch.linalg.vector_norm((x_adv - x).flatten(1), dim=1)
        hinge = (length - self.hinge_bound).clamp_min(0).mean()
        # `toward` is the gradient of `adversarial` with respect to the images: this term has the same gradient, and
        # leaves none in the net that gave it.
        loss = (toward * x_adv).sum() + self.gan_weight * gan + self.hinge_weight * hinge
        self._step(optimizer, loss)
        self.untoggle_optimizer(optimizer)
        total = adversarial + self.gan_weight * gan.detach() + self.hinge_weight * hinge.detach()
        self.log("train/loss", total)
        self.log_dict({"train/adversarial_loss": adversarial, "train/gan_loss": gan, "train/hinge_loss": hinge})

    def _adversarial(self, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the criterion is missed (mean margin, at least -confidence) and its gradient (B, ...)."""
        criterion = goal_of(y, self.target)
        model = self.net if self.substitute is None else self.substitute
        # In eval mode, without gradients for weights, in the current precision, through a defended net's attack view.
        with Victim(model, x_adv, training=True) as victim:
            _, margins, gradient = victim.gradient(x_adv, lambda z: criterion.margin(z).clamp(max=self.confidence))
        return -margins.mean(), -gradient / len(x_adv)

    def _step(self, optimizer: LightningOptimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(self.guarded(loss))
        optimizer.step()

    # Evaluation

    @property
    def monitors(self) -> tuple[str, ...]:
        """What the best checkpoint can be chosen by."""
        return ("val/fooling_rate", *(() if self.substitute is None else ("val/agreement", "val/agreement_generated")))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack the victim with the generator as it is now."""
        if batch_idx == 0:
            self._check(batch)
        self._fooling.add(*self.pair(batch), self.generator, self.eps, self.substitute)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Do the same on the test split; other budgets and attacks run in the callback `AttackSweep`."""
        asked = self.oracle.queries
        self.validation_step(batch, batch_idx)
        self.oracle.queries = asked  # queries of the evaluation are not the attacker's

    def on_validation_epoch_end(self) -> None:
        """Log the means over the epoch."""
        shares, self._fooling = self._fooling.shares(), Fooling(self.oracle, self.target)
        self.log_dict({f"val/{name}": value for name, value in shares.items()})
        if self.substitute is not None:
            self.log("queries", float(self.queries))

    def on_test_start(self) -> None:
        """Write the generator, before the sweep loads it, and the substitute."""
        self._fooling = Fooling(self.oracle, self.target)
        if self.folder is None or not self.trainer.is_global_zero:
            return
        if isinstance(self.generator, AdvGANGenerator):
            save_generator(self.generator, self.folder / "generator.pt")
        if self.substitute is not None:
            weights = {f"net.{name}": value for name, value in self.substitute.state_dict().items()}
            config = None if self.config is None else {**self.config, "model": self.config["module"]["substitute"]}
            write_tensors(self.folder / "substitute.ckpt", {"state_dict": weights, "robustlit": pack(config)})

    def on_test_epoch_end(self) -> None:
        """Log the means over the test split."""
        self.log_dict({f"test/{name}": value for name, value in self._fooling.shares().items()})

    def results(self) -> dict[str, Any]:
        """Return what was measured on the test split, for results.json: shares in [0, 1], L2 in pixel units."""
        shares = self._fooling.shares()
        found: dict[str, Any] = {"mode": self.mode, "eps": self.eps, "target": self.target}
        names = ["fooling_rate", "l2"]
        if self.substitute is not None:
            found |= {"distillation": self.distillation, "queries": self.queries}
            names += ["agreement", "agreement_generated"]
        return {"advgan": found | {name: shares[name] for name in names}}

    def _check(self, batch: Batch) -> None:
        x, y = self.pair(batch)
        check_images(x)
        with Victim(self.net, x[:1]) as victim:
            classes = victim.logits(x[:1]).shape[1]
        check_labels(y, len(x), classes)
        self.num_classes = classes  # of the victim: those of every batch are checked
        if self.target is not None and self.target >= classes:
            raise ValueError(f"target must be a class in [0, {classes - 1}] of this victim, got {self.target}")
        if self.substitute is not None:
            with Victim(self.substitute, x[:1]) as victim:
                own = victim.logits(x[:1]).shape[1]
            if own != classes:
                raise ValueError(f"the substitute returns {own} logits where the victim answers with {classes} classes")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not finite; add the recipe and the count of queries.

        The victim's weights are `net.*`, as those of any classifier.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["robustlit"] = pack(self.config)
        checkpoint["queries"] = self.queries

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the count of queries; going back to an earlier epoch does not lower it."""
        self.oracle.queries = max(self.queries, int(checkpoint["queries"]))
