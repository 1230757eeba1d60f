"""The average of the weights is what is validated and, in the process that trained, tested."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import Standard
from robustlit.training import AveragedWeights, RobustClassifier, load_classifier


def test_what_is_validated_and_tested_is_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw: list[Tensor] = []
    seen: dict[str, Tensor] = {}

    def weight(module: Any) -> Tensor:
        return module.net.classifier[2].weight.detach().clone()

    monkeypatch.setattr(RobustClassifier, "on_train_batch_end", lambda m, *_: raw.append(weight(m)), raising=False)
    monkeypatch.setattr(RobustClassifier, "on_validation_batch_end", lambda m, *_: seen.update(val=weight(m)))
    monkeypatch.setattr(RobustClassifier, "on_test_batch_end", lambda m, *_: seen.update(test=weight(m)))
    torch.manual_seed(0)
    module = RobustClassifier(SmallCNN(width=0.25), Standard(), partial(torch.optim.SGD, lr=0.5), num_classes=10)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/accuracy", mode="max")
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[AveragedWeights(0.5), best], logger=False, accelerator="cpu", precision="32-true",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, inference_mode=False,
    )  # fmt: skip
    data = MNIST(batch_size=50, train_size=200, val_size=50, test_size=50)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    average = raw[0]
    for step in raw[1:]:
        average = 0.5 * average + 0.5 * step
    assert len(raw) == 4
    assert not torch.allclose(average, raw[-1])
    stored = load_classifier(best.best_model_path, net=SmallCNN(width=0.25))[0].classifier[2].weight  # type: ignore
    for found in (seen["val"], seen["test"], stored):
        torch.testing.assert_close(found, average)


class Counting(nn.Module):
    """A net with buffers that have no average: a mask of infinity, as nets of sequences have, and a counter."""

    mask: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallCNN(width=0.25)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + int(self.training)
        return self.net(x)


def test_buffers_without_an_average_are_copied() -> None:
    net, average = Counting(), AveragedWeights(0.9)
    module = RobustClassifier(net, Standard(), partial(torch.optim.SGD, lr=0.5), num_classes=10)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[average], logger=False, accelerator="cpu", precision="32-true",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=2,
        inference_mode=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=MNIST(batch_size=50, train_size=400, val_size=50, test_size=50))
    assert net.steps == 8
    assert net.mask.tolist() == [0.0, -torch.inf]
    assert average._average_model is not None
    assert average._average_model.n_averaged == 4  # optimizer steps, two batches each


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_the_average_is_taken_in_every_precision(precision: Any) -> None:
    torch.manual_seed(0)
    net, average = SmallCNN(width=0.25), AveragedWeights(0.5)
    before = net.classifier[2].weight.detach().clone()  # type: ignore[union-attr]
    module = RobustClassifier(net, Standard(), partial(torch.optim.SGD, lr=0.5), num_classes=10)
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[average], logger=False, accelerator="cpu", precision=precision,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, inference_mode=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=MNIST(batch_size=50, train_size=200, val_size=50, test_size=50))
    found = net.classifier[2].weight.detach().to(before.dtype)  # type: ignore[union-attr]
    assert found.isfinite().all()
    assert not torch.allclose(found, before)
