"""Distillation: from the victim's answers alone, each of which is counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from robustlit.data import MNIST, load_mnist
from robustlit.models import SmallCNN
from robustlit.training import SubstituteTraining, distil, load_classifier
from robustlit.training.substitute import Oracle, distillation_loss

MakeVictim = Callable[[nn.Module], Any]


def images(n: int = 1500) -> Tensor:
    return load_mnist()[0][30_000 : 30_000 + n].float() / 255


def small() -> SmallCNN:
    torch.manual_seed(3)
    return SmallCNN(width=0.5, hidden=32)


def test_an_oracle_answers_with_probabilities_and_counts(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Dropout(0.5), net).train()
    oracle, x = Oracle(model), digits[0][:30].requires_grad_()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = oracle(x.detach().clone())
    answers = oracle(x)
    torch.testing.assert_close(answers, net(x).softmax(1).detach())
    assert torch.equal(inside, answers)
    assert not answers.requires_grad
    assert oracle.queries == 60
    assert model.training
    assert not isinstance(oracle, nn.Module)


def test_the_loss_is_the_divergence_of_the_mean_example() -> None:
    logits, answers = torch.randn(6, 4), torch.randn(6, 4).softmax(1)
    answers[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    p = answers.clamp_min(1e-30)
    expected = (answers * (p.log() - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, answers), expected)
    torch.testing.assert_close(distillation_loss(logits.repeat(3, 1), answers.repeat(3, 1)), expected)
    torch.testing.assert_close(distillation_loss(answers[1:].log(), answers[1:]), torch.zeros(()))


def test_a_substitute_learns_to_agree_from_answers_alone(net: nn.Module, answers_only: MakeVictim) -> None:
    victim, x = answers_only(net), images()
    weights = [p.detach().clone() for p in net.parameters()]
    student = small()
    before = (student(x[-150:]).argmax(1) == net(x[-150:]).argmax(1)).float().mean()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*srun.*")  # of Lightning, where SLURM is installed
        found = distil(victim, student, x, epochs=3, lr=3e-3)
    assert found.net is student
    assert not student.training
    after = (student(x[-150:]).argmax(1) == net(x[-150:]).argmax(1)).float().mean()
    assert found.agreement == pytest.approx(float(after))
    assert after > max(0.75, before + 0.3)
    assert found.queries == victim.seen == 3 * 1350 + 150
    for p, kept in zip(net.parameters(), weights, strict=True):
        assert torch.equal(p, kept)
        assert p.grad is None
        assert p.requires_grad


def test_distilling_repeats_with_its_seed(net: nn.Module) -> None:
    def weights(seed: int) -> Tensor:
        student = distil(net, small(), images(200), epochs=1, seed=seed).net
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    first = weights(0)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_bad_arguments(net: nn.Module) -> None:
    for changes, message in (
        ({"images": images(10) - 0.5}, "lie in"),
        ({"images": images(1)}, "at least 2 images"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"held_out": 1.0}, "held_out must be a share"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(net, small(), **{"images": images(10), **changes})


def test_its_checkpoint_is_the_substitutes_alone(
    tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor], answers_only: MakeVictim
) -> None:
    model = {"_target_": "robustlit.models.SmallCNN", "width": 0.5, "hidden": 32}
    module = SubstituteTraining(answers_only(net), small(), config={"model": model})
    fit = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    fit.fit(module, datamodule=MNIST(batch_size=50, train_size=200, val_size=100))
    assert float(fit.callback_metrics["queries"]) == module.oracle.queries == 300
    x = digits[0]
    assert 0 < float(fit.callback_metrics["val/agreement"]) <= 1
    fit.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"net"}
    loaded, config = load_classifier(tmp_path / "a.ckpt")
    assert config == {"model": model}
    assert torch.equal(loaded(x), module.net.eval()(x))
