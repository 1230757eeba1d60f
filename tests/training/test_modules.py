"""The LightningModules by name: each trains, and its checkpoint can be loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.data import MNIST
from robustlit.defenses.jumprelu import JumpReLUDefense, RandomJumpReLUDefense
from robustlit.experiment.recipes import recipe_files
from robustlit.models import BaseCNN, SmallCNN
from robustlit.objectives import TRADES, AdversarialTraining
from robustlit.training import load_classifier
from robustlit.training.classifier import RobustClassifier
from robustlit.training.modules import (
    BaseCNNClassifier,
    JumpReLUClassifier,
    LabelEmbeddingClassifier,
    PGDAdversarialClassifier,
    RandomJumpReLUClassifier,
    TRADESClassifier,
)

MakeTrainer = Callable[..., pl.Trainer]

MAKE: dict[str, Callable[[], RobustClassifier]] = {
    "base": lambda: BaseCNNClassifier(dropout=0.1),
    "jump": lambda: JumpReLUClassifier(0.05, net=SmallCNN()),
    "random": lambda: RandomJumpReLUClassifier(0.02, 0.05, net=SmallCNN()),
    "label": lambda: LabelEmbeddingClassifier(),
    "pgd": lambda: PGDAdversarialClassifier(0.1, steps=2, net=SmallCNN()),
    "trades": lambda: TRADESClassifier(0.1, steps=2, net=SmallCNN()),
}
EMPTY: dict[str, Callable[[], nn.Module]] = {
    "base": lambda: BaseCNN(dropout=0.1),
    "jump": lambda: JumpReLUDefense(SmallCNN(), 0.05),
    "random": lambda: RandomJumpReLUDefense(SmallCNN(), 0.02, 0.05),
    "label": SmallCNN,
    "pgd": SmallCNN,
    "trades": SmallCNN,
}
TEN = (torch.eye(10) + 0.1).tolist()


def data(**changes: Any) -> MNIST:
    return MNIST(**{"batch_size": 50, "train_size": 500, "val_size": 50, "test_size": 100, **changes})


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("base", "pgd", "trades") else n for n in MAKE]
)
def test_it_learns_and_its_checkpoint_comes_back(
    name: str, tmp_path: Path, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    torch.manual_seed(0)
    module = MAKE[name]()
    fit = trainer(max_epochs=1 if name == "base" else 2, limit_val_batches=0)
    fit.fit(module, datamodule=data(train_size=1500))
    module.eval()
    assert (module(digits[0]).argmax(1) == digits[1]).float().mean() > 0.6
    fit.save_checkpoint(tmp_path / "a.ckpt")
    net, config = load_classifier(tmp_path / "a.ckpt", net=EMPTY[name]())
    assert config is None
    x = digits[0][:20]
    if not getattr(net, "stochastic", False):
        assert torch.equal(net(x), module.net(x))
    for key, value in module.net.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)


def test_the_networks_are_those_of_the_papers() -> None:
    assert sum(p.numel() for p in BaseCNNClassifier().parameters()) == 594_922
    assert sum(p.numel() for p in JumpReLUClassifier().parameters()) == 594_922
    assert sum(p.numel() for p in PGDAdversarialClassifier().parameters()) == 150_266
    assert sum(p.numel() for p in TRADESClassifier().parameters()) == 839_018
    colour = BaseCNNClassifier(num_classes=7, in_chans=3, image_size=32)
    assert colour(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_adversarial_modules_are_the_recipes() -> None:
    module = PGDAdversarialClassifier()
    objective = module.objective
    assert isinstance(objective, AdversarialTraining)
    assert objective.attack == PGD(eps=0.3, steps=3, relative_step_size=1.65 / 3)
    recipe = OmegaConf.load(recipe_files()["pgd_adv_train"])
    assert objective.attack.relative_step_size == pytest.approx(recipe.objective.attack.relative_step_size)
    assert (objective.warmup, objective.eps_scale) == (recipe.objective.warmup, recipe.objective.eps_scale)
    assert module._optimizer([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == recipe.optimizer.lr
    assert module.validation_attack == PGD(eps=0.3, steps=10)
    trades = TRADESClassifier(1.5, norm="l2", beta=3.0, validation_attack=PGD(eps=1.0, norm="l2")).objective
    assert isinstance(trades, TRADES)
    assert (trades.beta, trades.attack.norm, trades.attack.eps) == (3.0, "l2", 1.5)


def test_the_jump_is_in_the_forward(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    module = JumpReLUClassifier(0.2, net=net).eval()
    assert not torch.equal(module(digits[0]), net(digits[0]))
    assert torch.equal(module.net.undefended()(digits[0]), net(digits[0]))  # type: ignore[operator]
    random = RandomJumpReLUClassifier(0.0, 0.3, net=net).eval()
    assert not torch.equal(random(digits[0]), random(digits[0]))


@pytest.mark.parametrize("similarity", ["pixels", "confusion", TEN], ids=["pixels", "confusion", "given"])
def test_similarities_are_computed_when_training_starts(
    similarity: Any, net: nn.Module, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    module = LabelEmbeddingClassifier(similarity, reference=net if similarity == "confusion" else None, floor=0.7)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    trainer(limit_val_batches=0).fit(module, datamodule=data())
    matrix = module.objective.similarity_matrix
    assert matrix is not None
    assert (matrix.argmax(1) == torch.arange(10)).all()
    assert not any("reference" in key for key in module.state_dict())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_resumed_run_keeps_its_matrix(tmp_path: Path, trainer: MakeTrainer) -> None:
    whole = LabelEmbeddingClassifier("pixels", net=_same())
    trainer(limit_val_batches=0).fit(whole, datamodule=data())
    half = LabelEmbeddingClassifier("pixels", net=_same())
    # The schedule spans two epochs: the run is stopped in between.
    fit = trainer(limit_val_batches=0, callbacks=[_StopAfterOne()])
    fit.fit(half, datamodule=data())
    fit.save_checkpoint(tmp_path / "half.ckpt")
    resumed = LabelEmbeddingClassifier("pixels", net=SmallCNN())
    other = data()
    other.tensors = None  # type: ignore[assignment,method-assign]  # nothing is computed again
    path = tmp_path / "half.ckpt"
    trainer(limit_val_batches=0).fit(resumed, datamodule=other, ckpt_path=path, weights_only=True)
    assert torch.equal(resumed.objective.similarity_matrix, whole.objective.similarity_matrix)  # type: ignore[arg-type]
    for a, b in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(a, b)


class _StopAfterOne(pl.Callback):
    def on_train_epoch_end(self, fit: pl.Trainer, module: pl.LightningModule) -> None:
        fit.should_stop = True


def _same() -> SmallCNN:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SmallCNN()


def test_bad_use(digits: tuple[Tensor, Tensor], trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="needs a trained classifier: reference=NET"):
        LabelEmbeddingClassifier("logits")
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        BaseCNNClassifier(lr=0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*digits), batch_size=50)
    with pytest.raises(ValueError, match="computed from a DataModule"):
        trainer(max_steps=2).fit(LabelEmbeddingClassifier(), loader)
