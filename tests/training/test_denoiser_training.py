"""Training of a denoiser: its loss, its inputs, and the classifier that must not change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import BIM, FGSM, MIM, PGD, DeepFool, Transfer
from robustlit.data import MNIST
from robustlit.defenses import BitDepth, Denoiser
from robustlit.models import Autoencoder, SmallCNN
from robustlit.training import DenoiserTraining, load_classifier
from robustlit.training.denoiser import Denoising

MakeTrainer = Callable[..., pl.Trainer]

QUICK = PGD(eps=0.3, steps=2)


def defended(net: nn.Module, seed: int = 0, **changes: Any) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(net, Autoencoder(**{"width": 8, **changes}))


def module(net: nn.Module, seed: int = 0, **changes: Any) -> DenoiserTraining:
    settings: dict[str, Any] = {"share": 0.5, "attack": QUICK, "eps": [0.1, 0.3], "logit_weight": 0.01}
    settings |= {"optimizer": partial(torch.optim.Adam, lr=3e-3), "num_classes": 10, "seed": seed}
    return DenoiserTraining(defended(net, seed), **{**settings, **changes})


def data(**changes: Any) -> MNIST:
    return MNIST(**{"batch_size": 50, "train_size": 200, "val_size": 100, "test_size": 100, **changes})


def weights(net: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in net.state_dict().values()])


# The loss and the inputs


def test_each_weight_has_its_distance(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense, (x, y) = defended(net), (digits[0][:20], digits[1][:20])
    cleaned = defense.autoencoder(x)
    pixels = (cleaned - x).pow(2).sum() / (20 * 784)
    logits = (net(cleaned) - net(x)).abs().sum() / 200
    classes = -net(cleaned).log_softmax(1)[torch.arange(20), y].mean()
    for given, expected in (
        ((1.0, 0.0, 0.0), pixels),
        ((0.0, 1.0, 0.0), logits),
        ((0.0, 0.0, 1.0), classes),
        ((3.0, 0.5, 0.25), 3 * pixels + 0.5 * logits + 0.25 * classes),
    ):
        output = Denoising(*given, noise=0.0)(defense, x, y)
        torch.testing.assert_close(output["loss"], expected)
        assert torch.equal(output["logits"], net(cleaned))
        (gradient, *_) = torch.autograd.grad(output["loss"], list(defense.autoencoder.parameters()))
        assert gradient.any()


def test_noise_is_gaussian_and_stays_in_the_box(net: nn.Module) -> None:
    x, y = torch.full((40, 1, 28, 28), 0.5), torch.zeros(40, dtype=torch.int64)
    noise = Denoising(noise=0.1).corrupt(defended(net), x, y) - x
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float(noise.mean())) < 0.003
    noisy = Denoising(noise=0.5).corrupt(defended(net), x, y)
    assert (noisy.min(), noisy.max()) == (0, 1)
    assert torch.equal(Denoising(noise=0.0).corrupt(defended(net), x, y), x)


@pytest.mark.parametrize("attack", [FGSM(eps=0.3), BIM(eps=0.3, steps=3), MIM(eps=0.3, steps=3), QUICK])
def test_the_share_is_adversarial_to_the_classifier(attack: Any, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense, (x, y) = defended(net), digits
    corrupted = Denoising(noise=0.0, share=0.5, attack=attack).corrupt(defense, x, y)
    moved = (corrupted - x).abs().flatten(1).amax(1)
    assert torch.equal(moved > 0, torch.arange(200) < 100)
    assert float(moved.max()) <= 0.3 + 1e-6
    assert (corrupted >= 0).all()
    assert (corrupted <= 1).all()
    assert (net(corrupted).argmax(1) == y)[:100].float().mean() < 0.3
    assert not corrupted.requires_grad


def test_adaptive_inputs_are_crafted_through_the_autoencoder(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:50], digits[1][:50]
    defense = Denoiser(nn.Sequential(Sign(-1.0), net), Sign(-1.0))  # the same function as `net`, upside down inside
    bim = BIM(eps=0.2, steps=5)
    through = Denoising(noise=0.0, share=1.0, attack=bim, knowledge="adaptive").corrupt(defense, x, y)
    alone = Denoising(noise=0.0, share=1.0, attack=bim).corrupt(defense, x, y)
    expected = bim.maximise(net, x, lambda z: F.cross_entropy(z, y, reduction="none"))
    assert (through - expected).abs().gt(1e-5).float().mean() < 0.02  # two losses, one direction
    assert (alone - expected).abs().gt(1e-5).float().mean() > 0.1


class Sign(nn.Module):
    """Inverts the image."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * x + 1


def test_budgets_are_drawn_and_small_shares_hold_on_average(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    defense, x, y = defended(net), digits[0][:1] * 0.2 + 0.4, digits[1][:1]  # far from the box: FGSM moves by eps
    loss = Denoising(noise=0.0, share=0.25, attack=FGSM(eps=0.4), eps=[0.1, 0.3])
    moved = torch.stack([(loss.corrupt(defense, x, y) - x).abs().max() for _ in range(400)])
    drawn = moved[moved > 0]
    assert 0.19 < len(drawn) / 400 < 0.31
    assert float(drawn.min()) >= 0.1 - 1e-6
    assert float(drawn.max()) <= 0.3 + 1e-6
    assert float(drawn.mean()) == pytest.approx(0.2, abs=0.02)


# Training


class Fragile(nn.Module):
    """A classifier with BatchNorm and dropout, whose averages a forward in training mode would move."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.net = nn.BatchNorm2d(1), nn.Dropout(0.5), net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(self.norm(x)))


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_the_classifier_stays_as_it_is(precision: Any, net: nn.Module, trainer: MakeTrainer) -> None:
    base = Fragile(net)
    before, modes = weights(base), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, fit: pl.Trainer, lit: Any, *args: Any) -> None:
            modes.append((lit.net.autoencoder.training, any(part.training for part in lit.net.net.modules())))

    for knowledge in ("greybox", "adaptive"):
        lit = module(base, class_weight=0.1, knowledge=knowledge)
        start = weights(lit.net.autoencoder)
        fit = trainer(max_epochs=1, callbacks=[Watch()], precision=precision, check_val_every_n_epoch=1)
        fit.fit(lit, datamodule=data())
        assert torch.equal(weights(base), before)
        assert not torch.equal(weights(lit.net.autoencoder), start)
    assert set(modes) == {(True, False)}
    assert lit.train().net.autoencoder.training
    assert not any(part.training for part in lit.net.net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in base.parameters())
    (group,) = lit.optimizers().param_groups  # type: ignore[union-attr]
    assert len(group["params"]) == len(list(lit.net.autoencoder.parameters()))


@pytest.mark.slow
def test_it_raises_accuracy_under_a_grey_box_attack_and_logs_it(
    net: nn.Module, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    attack = PGD(eps=0.2, steps=5)
    lit = module(net, validation_attack=attack)
    fit = trainer(max_epochs=2)
    fit.fit(lit, datamodule=data(train_size=4000))
    some = (digits[0][:100], digits[1][:100])
    undefended = evaluate(net, some, [attack])
    found = evaluate(lit.net, some, [attack], knowledge=["greybox", "adaptive"])
    assert float(found.clean_accuracy) > float(undefended.clean_accuracy) - 0.06
    greybox = found.accuracy(eps=0.2, knowledge="greybox")
    assert greybox > undefended.accuracy(eps=0.2) + 0.4
    assert greybox > found.accuracy(eps=0.2) + 0.2  # most of which an adaptive attack takes away
    # What it logs is what these attacks do to the held-out digits.
    x, y, index = (torch.cat(parts) for parts in zip(*data(train_size=4000).val_dataloader(), strict=True))
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert {*lit.monitors} == {name for name in metrics if name.startswith("val/")}
    for name, crafted in (("val/robust_accuracy", attack), ("val/greybox_accuracy", Transfer(attack, net))):
        robust = ~crafted.run(lit.net, x, y, index=index, seed=0).success
        assert metrics[name] == pytest.approx(float(robust.float().mean()), abs=0.011)
    assert metrics["val/accuracy"] == pytest.approx(float((lit.net(x).argmax(1) == y).float().mean()), abs=1e-6)
    assert metrics["train/accuracy"] > 0.5


def test_the_same_seed_gives_the_same_autoencoder(net: nn.Module, trainer: MakeTrainer) -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # the surroundings must not matter
        lit = module(net, seed)
        trainer(max_epochs=1, limit_val_batches=0).fit(lit, datamodule=data(shuffle_seed=seed))
        return weights(lit.net.autoencoder)

    first = run(0)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


@pytest.mark.parametrize("step", [2, 6])
def test_stop_and_resume_equals_an_uninterrupted_run(
    step: int, net: nn.Module, trainer: MakeTrainer, interrupted: Callable[..., Path]
) -> None:
    one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=3e-3)
    config = {
        "model": {
            "_target_": "robustlit.defenses.Denoiser",
            "net": {"_target_": "robustlit.models.SmallCNN"},
            "autoencoder": {"_target_": "robustlit.models.Autoencoder", "width": 8},
        }
    }
    whole = module(net, schedule=one_cycle)
    trainer().fit(whole, datamodule=data())
    path = interrupted(module(net, schedule=one_cycle, config=config), data(), step)
    resumed = module(SmallCNN(), 1, schedule=one_cycle)  # other weights, the classifier's too, until it is read
    resumed.seed = 0
    trainer().fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    assert torch.equal(weights(resumed.net), weights(whole.net))
    loaded, _ = load_classifier(path)  # the checkpoint holds the defended classifier
    assert torch.equal(weights(loaded.net), weights(net))


# Bad arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_weight": 0.0, "logit_weight": 0.0}, "are all 0, so there is nothing to learn"),
        ({"pixel_weight": -1.0}, "pixel_weight must be at least 0 and finite, got -1.0"),
        ({"logit_weight": float("nan")}, "logit_weight must be at least 0 and finite"),
        ({"noise": -0.1}, "noise must be at least 0 and finite"),
        ({"share": 1.5}, r"share must be a share of the batch in \[0, 1\], got 1.5"),
        ({"share": -0.5}, "share must be at least 0 and finite"),
        ({"attack": None}, "needs an attack, e.g."),
        ({"attack": DeepFool(norm="l2")}, "attack must be FGSM, BIM, MIM or PGD, got DeepFool"),
        ({"attack": PGD(eps=0.3, restarts=2)}, "restarts must be 1 in training"),
        ({"eps": [0.1, 8]}, "did you mean 8/255"),
        ({"eps": [0.3, 0.1]}, "the least and the largest budget"),
        ({"eps": [0.1]}, "the least and the largest budget"),
        ({"knowledge": "blackbox"}, "knowledge must be one of greybox, adaptive, got 'blackbox'"),
    ],
)
def test_bad_arguments(net: nn.Module, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(net, **changes)


def test_only_a_denoiser_is_trained(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"must be a robustlit.defenses.Denoiser, got BitDepth"):
        DenoiserTraining(BitDepth(net), partial(torch.optim.Adam, lr=1e-3), num_classes=10)  # type: ignore[arg-type]


def test_images_of_another_size_are_refused(net: nn.Module, trainer: MakeTrainer) -> None:
    lit = module(net)
    lit.net = defended(net, image_size=32)
    with pytest.raises(ValueError, match=r"built for images \(1, 32, 32\), got \(1, 28, 28\)"):
        trainer().fit(lit, datamodule=data())
