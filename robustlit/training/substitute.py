"""Distillation: train a substitute to answer as a victim does, from the victim's answers alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks.memory import OutOfMemoryError, is_out_of_memory
from robustlit.attacks.victim import Victim
from robustlit.classifier import as_weights, default_batch_size, names_class, predicted
from robustlit.threat import check_images
from robustlit.training.checkpoint import pack
from robustlit.training.classifier import step_seed
from robustlit.training.finite import Batch, GuardedTraining

ADAM = partial(torch.optim.Adam, lr=1e-3)  # the optimizer where none is given


class Oracle:
    """A black box around a model: class probabilities without gradients, and a count of the images shown.

    It is not an nn.Module, so that a module that holds one neither trains the model nor saves its weights.

    Args:
        model: From images (B, ...) in [0, 1] to logits (B, K).

    Attributes:
        queries: How many images it was shown (for a stochastic model: how many forwards it made).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.queries = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return probabilities (B, K) of images (B, ...), in float32."""
        with Victim(self._model, x) as victim:
            logits = victim.logits(x)
            self.queries += int(victim.passes.forwards.sum())
        # A single +inf is a class, of probability 1; logits that name no class become NaN.
        chances = logits.float().clamp(max=torch.finfo(torch.float32).max).softmax(1)
        return torch.where(names_class(logits).unsqueeze(1), chances, torch.nan)

    def to(self, device: torch.device) -> None:
        """Move the model to the device of the images."""
        self._model.to(device)


def distillation_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the mean over the batch of KL(answers || softmax(logits)); both (B, K). NaN as answer teaches nothing."""
    return F.kl_div(logits.float().log_softmax(1), answers.nan_to_num(), reduction="batchmean")


class SubstituteTraining(GuardedTraining):
    """Distil a net from a victim's probabilities: the substitute of a black-box transfer attack.

    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015, arXiv:1503.02531, at temperature 1,
    because saturated probabilities do not give the logits back. Labels are not used. Logs `train/loss`,
    `val/agreement` (share of images on which both predict the same class) and `queries`.

    Args:
        victim: From images (B, ...) in [0, 1] to logits; only its answers are used, and it is not in the checkpoint.
        net: The substitute. Its weights are the checkpoint's `net.*`.
        optimizer: Parameters -> Optimizer; None is Adam at 1e-3.
        seed: With the step it seeds each training step.
        config: The composed recipe, stored in the checkpoint so that `load_classifier` can rebuild the net.
    """

    def __init__(
        self,
        victim: nn.Module,
        net: nn.Module,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.oracle = Oracle(victim)
        self.net = net
        self.seed = seed
        self.config = config
        self._optimizer = optimizer or ADAM
        self._equal: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the substitute's logits (B, K)."""
        return self.net(x)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer of the substitute."""
        return self._optimizer(self.net.parameters())

    def on_fit_start(self) -> None:
        """Move the victim to the device of the images."""
        self.oracle.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the batch and seed the step."""
        super().on_train_batch_start(batch, batch_idx)
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss against the victim's answers on the batch."""
        loss = distillation_loss(self.net(batch[0]), self.oracle(batch[0]))
        self.log("train/loss", loss)
        return self.guarded(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the predictions of both."""
        self._equal.append(agrees(self.net, self.oracle(batch[0]), batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Log the agreement; its queries are counted too."""
        equal, self._equal = torch.cat(self._equal), []
        self.log("val/agreement", equal.float().mean())
        self.log("queries", float(self.oracle.queries))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe, as plain containers, and the count of queries."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["robustlit"] = pack(self.config)
        checkpoint["queries"] = self.oracle.queries

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the count of queries."""
        self.oracle.queries = max(self.oracle.queries, int(checkpoint["queries"]))


def agrees(substitute: nn.Module, answers: Tensor, x: Tensor) -> Tensor:
    """Return (B,) bool: the substitute predicts for images (B, ...) the most probable class of the answers (B, K)."""
    with Victim(substitute, x) as held:
        ours, theirs = predicted(held.logits(x)), predicted(answers)
    return (ours == theirs) & (ours >= 0)  # two that name no class do not agree


@dataclass
class Distilled:
    """What `distil` returns.

    Attributes:
        net: The substitute, in eval mode.
        agreement: Share of the held-out images on which it predicts as the victim does.
        queries: Images that the victim was shown, including the held-out ones.
    """

    net: nn.Module
    agreement: float
    queries: int


def distil(
    victim: nn.Module,
    net: nn.Module,
    images: Tensor,
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 128,
    held_out: float = 0.1,
    seed: int = 0,
) -> Distilled:
    """Distil `net` from a victim on images, without labels: a surrogate for `robustlit.attacks.Transfer`.

    Args:
        victim: From images (B, ...) in [0, 1] to logits (B, K); only its probabilities are used.
        net: The substitute, trained in place.
        images: (N, ...) in [0, 1], at least 2, that the attacker has.
        epochs: Passes over them.
        lr: Learning rate of Adam.
        batch_size: Images per step.
        held_out: Share of the images, the last ones, on which the agreement is measured.
        seed: Seed of the order of the images.

    Where memory does not suffice, it starts anew with batches of half the size.

    Raises:
        ValueError: Images outside [0, 1] or too few, epochs or held_out out of range.
        OutOfMemoryError: Memory does not suffice for a single image.
    """
    check_images(images)
    images = as_weights(net, images)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not 0 < held_out < 1 or len(images) < 2:
        raise ValueError(f"held_out must be a share in (0, 1) of at least 2 images, got {held_out} of {len(images)}")
    kept = min(len(images) - 1, max(1, round(held_out * len(images))))
    before, sizes = (
        {name: value.clone() for name, value in net.state_dict().items()},
        (batch_size, max(batch_size, default_batch_size(images.shape))),
    )
    while True:
        module = SubstituteTraining(victim, net, optimizer=partial(torch.optim.Adam, lr=lr), seed=seed)
        try:
            return _distilled(module, images, kept, epochs, sizes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if sizes[0] == 1:
                raise OutOfMemoryError(
                    "out of memory in distilling a substitute on a single image: free memory, run on a device that has "
                    "more, or give a net that is distilled elsewhere: substitute=CHECKPOINT"
                ) from None
        sizes = (sizes[0] // 2, sizes[0] // 2)
        warnings.warn(f"out of memory in distilling a substitute: again with batches of {sizes[0]}", stacklevel=2)
        net.load_state_dict(before)
        if images.is_cuda:
            torch.cuda.empty_cache()


def _distilled(module: SubstituteTraining, images: Tensor, kept: int, epochs: int, sizes: tuple[int, int]) -> Distilled:
    """Fit a module on all but the last `kept` images, in batches of these sizes in training and validation."""
    net, order = module.net, torch.Generator().manual_seed(module.seed)
    train, val = TensorDataset(images[:-kept]), TensorDataset(images[-kept:])
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="auto" if images.is_cuda else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the images are in memory
        trainer.fit(module, DataLoader(train, sizes[0], shuffle=True, generator=order), DataLoader(val, sizes[1]))
    net.to(images.device).eval()  # Lightning leaves it on the CPU
    return Distilled(net, float(trainer.callback_metrics["val/agreement"]), module.oracle.queries)
