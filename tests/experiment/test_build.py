"""Recipes that put a defense around a trained classifier, or an objective on what one has learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustlit.classifier import undefended
from robustlit.defenses import BitDepth, Smoothed
from robustlit.models import SmallCNN
from robustlit.training import load_classifier

Run = Callable[..., int]
RECIPE = """# A defense of the test's.
defaults: [override /model: small_cnn]
base: null
base_epochs: 1
defense: {{_target_: {target}, bits: 1}}
objective: {{_target_: {objective}}}
optimizer: {{_target_: torch.optim.Adam, _partial_: true, lr: 2e-3}}
monitor: val/accuracy
trainer: {{max_epochs: 1}}
"""
TINY = ["data.train_size=1500", "data.batch_size=50", "data.val_size=100", "data.test_size=60", "logger=none",
        "sweep.attacks.pgd.steps=3", "sweep.attacks.bim.steps=2", "~sweep.attacks.worst_case"]  # fmt: skip
PLAIN = [a for a in TINY if "sweep." not in a] + ["sweep=none"]


class Fitted(BitDepth):
    """A fitted defense: it stores the numbers of examples it was fitted to."""

    mean: Tensor

    def __init__(self, net: nn.Module, bits: int = 1) -> None:
        super().__init__(net, bits)
        self.register_buffer("mean", torch.zeros(2))

    def fit(self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int) -> None:
        """Store the numbers of examples."""
        if seed == 13:
            raise ValueError("these images cannot be fitted to")
        assert len(clean[0]) == len(clean[1])
        self.mean.copy_(torch.tensor([len(clean[0]), len(held_out[0])]))


class OnSimilarity:
    """An objective that learns one matrix from a trained classifier."""

    needs_reference = True

    def __init__(self, similarity: list[list[float]] | str = "learned") -> None:
        self.similarity_matrix = None if isinstance(similarity, str) else torch.tensor(similarity)

    def prepare(self, reference: nn.Module | None, images: Tensor, labels: Tensor) -> None:
        """Mean probabilities of each class."""
        assert reference is not None
        with torch.no_grad():
            found = reference(images).softmax(1)
        self.similarity_matrix = torch.stack([found[labels == k].mean(0) for k in range(10)])

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Any:
        """Cross-entropy against the matrix."""
        assert self.similarity_matrix is not None
        logits = classifier(x)
        return {"loss": F.cross_entropy(logits, self.similarity_matrix[y]), "logits": logits}


def write(folder: Path, name: str, target: str, objective: str = "robustlit.objectives.Standard") -> str:
    folder.mkdir(exist_ok=True)
    text = RECIPE.format(target=target, objective=objective)
    if target == "none":
        text = text.replace("defense: {_target_: none, bits: 1}\n", "")
    (folder / f"{name}.yaml").write_text(text)
    return f"--config-dir={folder}"


@pytest.fixture
def recipes(tmp_path: Path) -> str:
    """A folder of recipes of the tests."""
    write(tmp_path / "own", "bits", "robustlit.defenses.BitDepth")
    write(tmp_path / "own", "fitted", f"{__name__}.Fitted")
    return write(tmp_path / "own", "similar", "none", f"{__name__}.OnSimilarity")


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_defense_around_a_classifier_that_is_trained_first(run: Run, recipes: str, tmp_path: Path) -> None:
    assert run("train", recipes, "recipe=bits", *TINY, "sweep.knowledge=[greybox, adaptive]") == 0
    folder = tmp_path / "runs" / "bits"
    assert {f.name for f in (folder / "checkpoints").iterdir()} == {"base.ckpt", "best.ckpt"}
    base, best = (load_classifier(folder / "checkpoints" / f"{name}.ckpt")[0] for name in ("base", "best"))
    assert isinstance(best, BitDepth)
    for one, other in zip(base.state_dict().values(), undefended(best).state_dict().values(), strict=True):
        assert torch.equal(one, other)
    results = results_of(folder)
    assert results["clean"]["accuracy"] > 0.5
    assert {"pgd", "pgd-greybox"} <= set(results["attacks"])
    # Again, and with the defense's own value changed.
    assert run("evaluate", "runs/bits", "logger=none") == 0
    again = results_of(tmp_path / "runs" / "bits-eval")
    assert again["attacks"] == results["attacks"]
    assert run("evaluate", "runs/bits", "logger=none", "model.bits=8") == 0
    assert results_of(tmp_path / "runs" / "bits-eval-2")["attacks"] != results["attacks"]
    # On that classifier, without training.
    assert run("train", recipes, "recipe=bits", *TINY, "base=runs/bits/checkpoints/base.ckpt", "name=second") == 0
    assert {f.name for f in (tmp_path / "runs/second/checkpoints").iterdir()} == {"best.ckpt"}
    assert results_of(tmp_path / "runs" / "second")["attacks"]["pgd"] == results["attacks"]["pgd"]


@pytest.mark.slow
def test_a_classifier_trained_with_noise_is_smoothed_and_certified(run: Run, tmp_path: Path) -> None:
    tiny = ["data.train_size=1500", "data.batch_size=50", "data.val_size=100", "data.test_size=30", "logger=none",
            "base_epochs=1", "sweep.attacks.pgd.steps=2", "sweep.certificates.randomized_smoothing.n=200"]  # fmt: skip
    assert run("train", "recipe=smoothing", *tiny, "eps=0.4") == 0
    found = results_of(tmp_path / "runs" / "smoothing")
    model = load_classifier(tmp_path / "runs" / "smoothing")[0]
    assert isinstance(model, Smoothed)
    assert model.sigma == 0.4
    assert (found["certified"]["norm"], found["certified"]["eps"]) == ("l2", 0.4)
    assert 0 < found["certified"]["accuracy"] <= found["worst_case"]["accuracy"] < found["clean"]["accuracy"]
    # At another budget the classifier keeps the noise that it was trained with.
    assert run("evaluate", "runs/smoothing", "eps=0.8", "data.test_size=30", "logger=none") == 0
    again = results_of(tmp_path / "runs" / "smoothing-eval")
    assert again["certified"]["eps"] == 0.8
    assert again["certified"]["accuracy"] < found["certified"]["accuracy"]
    assert load_classifier(tmp_path / "runs" / "smoothing")[0].extra_repr() == "sigma=0.4"


@pytest.mark.slow
def test_a_defense_is_fitted_to_the_training_split_and_set_on_the_validation_split(
    run: Run, recipes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", recipes, "recipe=fitted", *PLAIN) == 0
    folder = tmp_path / "runs" / "fitted"
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert state["net.mean"].tolist() == [1500, 100]
    package = __name__.split(".")[0]
    best, _ = load_classifier(folder, trusted=[package])
    assert best.mean.tolist() == [1500, 100]
    # A trained base is kept when the fit fails; an empty run directory is removed.
    assert run("train", recipes, "recipe=fitted", *PLAIN, "seed=13", "name=failed") == 1
    assert "cannot be fitted to" in capsys.readouterr().err
    assert (tmp_path / "runs/failed/checkpoints/base.ckpt").is_file()
    base = "base=runs/fitted/checkpoints/base.ckpt"
    assert run("train", recipes, "recipe=fitted", *PLAIN, "seed=13", "name=empty", base) == 1
    assert not (tmp_path / "runs/empty").exists()


@pytest.mark.slow
def test_a_learned_similarity_matrix_is_stored_and_survives_a_resume(run: Run, recipes: str, tmp_path: Path) -> None:
    assert run("train", recipes, "recipe=similar", *PLAIN) == 0
    folder = tmp_path / "runs" / "similar"
    config = OmegaConf.load(folder / "config.yaml")
    matrix = torch.tensor(OmegaConf.to_object(config.objective.similarity))
    assert matrix.shape == (10, 10)
    assert torch.allclose(matrix.sum(1), torch.ones(10), atol=1e-4)
    assert {f.name for f in (folder / "checkpoints").iterdir()} == {"base.ckpt", "best.ckpt", "last.ckpt"}
    # A resumed run takes the matrix that it began with, and trains no other classifier.
    more = ["ckpt_path=runs/similar/checkpoints/last.ckpt", "trainer.max_epochs=2"]
    (folder / "checkpoints" / "base.ckpt").unlink()
    assert run("train", recipes, "recipe=similar", *PLAIN, *more) == 0
    assert not (folder / "checkpoints" / "base.ckpt").exists()
    assert OmegaConf.load(folder / "config.yaml").objective.similarity == config.objective.similarity


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["pixels", "confusion"])
def test_an_outer_objective_learns_its_similarity_too(run: Run, tmp_path: Path, similarity: str) -> None:
    outer = f"+objective.outer={{_target_: robustlit.objectives.SoftLabelEmbedding, similarity: {similarity}}}"
    short = [
        "recipe=pgd_adv_train",
        "model=small_cnn",
        *PLAIN,
        "trainer.max_epochs=1",
        "objective.attack.steps=1",
        outer,
    ]
    assert run("train", *short, "name=outer", *(["+base_epochs=1"] if similarity == "confusion" else [])) == 0
    folder = tmp_path / "runs" / "outer"
    config = OmegaConf.load(folder / "config.yaml")
    assert torch.tensor(OmegaConf.to_object(config.objective.outer.similarity)).shape == (10, 10)
    assert config.objective.attack.steps == 1
    assert (folder / "checkpoints" / "base.ckpt").exists() == (similarity == "confusion")


@pytest.mark.slow
def test_a_base_of_other_data_is_an_error_before_training(
    run: Run, recipes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model": {"_target_": "robustlit.models.SmallCNN"}, "data": {"_target_": "robustlit.data.CIFAR10"}}
    weights = {f"net.{k}": v for k, v in SmallCNN().state_dict().items()}
    torch.save({"state_dict": weights, "robustlit": {"format": 1, "config": config}}, tmp_path / "other.ckpt")
    for override, message in (
        ("base=other.ckpt", "base=other.ckpt was trained on CIFAR10, this recipe runs on MNIST"),
        ("base=nowhere", "no checkpoint at nowhere"),
        ("defense.bits=11", "bits must be a whole number from 1 to 8, got 11"),
        ("ckpt_path=other.ckpt", "nothing to resume"),
    ):
        assert run("train", recipes, "recipe=bits", *TINY, override) == 1
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))
