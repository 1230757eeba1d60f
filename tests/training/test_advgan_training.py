"""AdvGAN's training: properties of its steps, not scores (one slow test trains in earnest)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks.advgan import AdvGAN
from robustlit.data import MNIST
from robustlit.models import AdvGANDiscriminator, AdvGANGenerator, SmallCNN, load_generator
from robustlit.models.generator import perturb
from robustlit.training import AdvGANTraining, load_classifier
from robustlit.training.advgan import DISTILLATIONS

MakeTrainer = Callable[..., pl.Trainer]
MakeVictim = Callable[[nn.Module], Any]


def module(victim: nn.Module, seed: int = 0, channels: int = 1, size: int = 28, **changes: Any) -> AdvGANTraining:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = AdvGANGenerator(channels, size, width=4, blocks=1), AdvGANDiscriminator(channels, size, width=4)
        if changes.get("mode") == "black_box":
            changes.setdefault("substitute", SmallCNN(width=0.5, hidden=32))
    return AdvGANTraining(victim, *nets, **{"distillation_epochs": 1, "seed": seed, **changes})


def data(**changes: Any) -> MNIST:
    return MNIST(**{"batch_size": 50, "train_size": 200, "val_size": 60, "test_size": 60, **changes})


def weights(net: nn.Module | None) -> Tensor:
    assert net is not None
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


# The steps


def test_a_white_box_learns_to_fool_and_leaves_the_victim_alone(net: nn.Module, trainer: MakeTrainer) -> None:
    victim = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.3), net).train()
    kept = {name: value.clone() for name, value in victim.state_dict().items()}
    rates = []

    class Watch(pl.Callback):
        def on_validation_end(self, fit: pl.Trainer, *args: Any) -> None:
            rates.append(float(fit.callback_metrics["val/fooling_rate"]))

    lit = module(victim, confidence=5.0, optimizer=partial(torch.optim.Adam, lr=1e-2))
    trainer(max_epochs=5, callbacks=[Watch()]).fit(lit, datamodule=data())
    assert rates[-1] > 0.4
    assert rates[-1] > rates[0]
    for name, value in victim.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert all(p.grad is None and p.requires_grad for p in victim.parameters())
    assert not lit.train().net.training
    assert lit.generator.training


@pytest.mark.parametrize("target", [None, 1])
def test_the_adversarial_term_is_the_mean_margin_on_logits_up_to_the_confidence(target: int | None) -> None:
    weight = torch.tensor([[100.0, 0.0], [0.0, 100.0], [0.0, 0.0]])  # softmax saturates here
    x = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.2, 0.1], [0.5, 0.6]]).view(4, 1, 1, 2)
    y = torch.tensor([0, 0, 0, 0])
    lit = module(Linear(weight), confidence=20.0, target=target)
    value, toward = lit._adversarial(x, y)
    margins = torch.tensor([-80.0, 80.0, -10.0, 10.0])  # of class 1 over class 0; the third class is never first
    torch.testing.assert_close(value, -margins.clamp(max=20).mean())
    slope = torch.tensor([100.0, -100.0])  # the way that raises the margin, taken downhill
    expected = torch.stack([slope, slope * 0, slope, slope]).view(4, 1, 1, 2) / 4
    torch.testing.assert_close(toward, expected)
    torch.testing.assert_close(lit._adversarial(x[:1], y[:1])[0], torch.tensor(80.0))  # a batch of one


def test_the_victim_is_in_eval_mode(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    victim = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), net)
    lit = module(victim)
    victim.train()  # as other code may leave it
    x, y = digits[0][:20], digits[1][:20]
    first, second = lit._adversarial(x, y), lit._adversarial(x, y)
    assert torch.equal(first[1], second[1])
    assert int(victim[0].num_batches_tracked) == 0
    expected = module(net)._adversarial(victim[0].eval()(x), y)[0]
    torch.testing.assert_close(first[0], expected)


class Still:
    """An optimizer that takes no step, so that the gradients can be read."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def zero_grad(self) -> None:
        self.net.zero_grad()

    def step(self) -> None:
        return


def gradients(lit: AdvGANTraining, x: Tensor, y: Tensor) -> list[Tensor]:
    """Those of a step of the generator, and those of one of the discriminator."""
    lit.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
    lit.toggle_optimizer = lit.untoggle_optimizer = lambda optimizer: None  # type: ignore[method-assign, assignment]
    lit.log = lit.log_dict = lambda *args: None  # type: ignore[method-assign, assignment]
    found: list[Tensor] = []
    for net, step in (
        (lit.generator, lambda o, x_adv: lit._generate(o, x, x_adv, y)),
        (lit.discriminator, lambda o, x_adv: lit._discriminate(o, x, x_adv.detach())),
    ):
        step(Still(net), perturb(lit.generator, x, lit.eps))  # type: ignore[no-untyped-call]
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("only", ["all", "adversarial", "gan", "hinge"])
def test_no_weight_drifts_with_the_batch_size(only: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net, x, y = net.double(), digits[0][:6].double(), digits[1][:6]
    settings = {
        "all": {},
        "adversarial": {"gan_weight": 0.0, "hinge_weight": 0.0},
        "gan": {"confidence": 0.0, "hinge_weight": 0.0},
        "hinge": {"confidence": 0.0, "gan_weight": 0.0, "hinge_bound": 0.0},
    }[only]
    lit = module(net, **{"gan_weight": 1.0, "hinge_weight": 1.0, "confidence": 5.0, **settings}).double()
    if only in ("gan", "hinge"):
        y = (net(x).argmax(1) + 1) % 10  # fooled already, so this term is 0
    once, thrice = gradients(lit, x, y), gradients(lit, x.repeat(3, 1, 1, 1), y.repeat(3))
    for one, three in zip(once, thrice, strict=True):
        assert one.abs().max() > 1e-6
        torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_loss_as_it_is_written(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net, x, y = net.double(), digits[0][:5].double() * 0.3 + 0.35, digits[1][:5]  # the box plays no part
    lit = module(net, confidence=3.0, gan_weight=0.7, hinge_weight=0.2, hinge_bound=0.5).double()
    (found, _) = gradients(lit, x, y)
    delta = 0.3 * lit.generator(x).tanh()
    logits, score = net(x + delta), lit.discriminator(x + delta)
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    other = logits.scatter(1, y.unsqueeze(1), -1e9).amax(1)
    loss = (own - other).clamp(min=-3.0).mean() + 0.7 * (score - 1).pow(2).mean()
    loss = loss + 0.2 * (delta.flatten(1).norm(dim=1) - 0.5).clamp(min=0).mean()
    expected = torch.autograd.grad(loss, list(lit.generator.parameters()))
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), rtol=1e-4, atol=1e-6)


# Black box


@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_a_black_box_uses_answers_alone_and_counts_them(
    distillation: str, net: nn.Module, trainer: MakeTrainer, answers_only: MakeVictim
) -> None:
    victim = answers_only(net)
    after: list[Tensor] = []
    moved: list[Tensor] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, fit: pl.Trainer, lit: Any) -> None:
            after.append(weights(lit.substitute))
            moved.append(weights(lit.generator))

    lit = module(victim, mode="black_box", distillation=distillation)
    start = weights(lit.generator)
    fit = trainer(max_epochs=3, callbacks=[Watch()])
    fit.fit(lit, datamodule=data())
    assert torch.equal(moved[0], start)  # rests while the substitute is distilled
    assert not torch.equal(moved[1], start)
    assert torch.equal(after[1], after[0]) == (distillation == "static")
    assert torch.equal(after[2], after[1]) == (distillation == "static")
    right = round(float(fit.callback_metrics["val/accuracy"]) * 60)
    trained = 200 + (2 * 2 * 200 if distillation == "dynamic" else 0)
    assert lit.queries == trained + 3 * (60 + right)
    assert victim.seen - lit.queries == 2 * 3  # one image at the start of each pass, to check its shape
    metrics = fit.callback_metrics
    assert {*lit.monitors} == {"val/fooling_rate", "val/agreement", "val/agreement_generated"} <= {*metrics}
    assert float(metrics["queries"]) == lit.queries
    assert 0 < float(metrics["val/agreement"]) <= 1
    assert 0 <= float(metrics["val/agreement_generated"]) <= 1


def test_a_white_box_differentiates_the_victim(net: nn.Module, trainer: MakeTrainer, answers_only: MakeVictim) -> None:
    with pytest.raises(AssertionError, match="gradient was asked for"):
        trainer().fit(module(answers_only(net)), datamodule=data())


# What it measures


@pytest.mark.parametrize("target", [None, 3])
def test_what_is_measured_is_what_the_attack_does(
    tmp_path: Path, target: int | None, net: nn.Module, trainer: MakeTrainer
) -> None:
    lit = module(net, confidence=5.0, target=target, folder=tmp_path / "files")
    fit = trainer(max_epochs=1, precision="bf16-mixed")
    fit.fit(lit, datamodule=data())
    fit.test(lit, datamodule=data(), verbose=False)
    x, y, _ = (torch.cat(parts) for parts in zip(*data().test_dataloader(), strict=True))
    asked = None if target is None else torch.full_like(y, target)
    result = AdvGAN(generator=tmp_path / "files" / "generator.pt").run(net, x, y, target=asked)
    rows = net(x).argmax(1) == y
    rows = rows if target is None else rows & (y != target)
    found = lit.results()["advgan"]
    assert found["fooling_rate"] == pytest.approx(float(result.success[rows].float().mean()), abs=1e-6)
    l2 = (result.x_adv - x).flatten(1).norm(dim=1)[rows].mean()
    assert found["l2"] == pytest.approx(float(l2), rel=1e-4)
    assert (found["mode"], found["target"], found["eps"]) == ("white_box", target, 0.3)
    assert float(fit.callback_metrics["test/accuracy"]) == pytest.approx(float((net(x).argmax(1) == y).float().mean()))
    saved = load_generator(tmp_path / "files" / "generator.pt")
    assert (saved.eps, saved.target) == (0.3, target)


def test_a_substitute_is_written_and_can_be_loaded(
    tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    own = {"_target_": "robustlit.models.SmallCNN", "width": 0.5, "hidden": 32}
    lit = module(net, mode="black_box", folder=tmp_path, config={"model": {}, "module": {"substitute": own}})
    fit = trainer()
    fit.fit(lit, datamodule=data())
    asked = lit.queries
    fit.test(lit, datamodule=data(), verbose=False)
    assert lit.queries == lit.results()["advgan"]["queries"] == asked  # queries of the test are not the attacker's
    loaded, _ = load_classifier(tmp_path / "substitute.ckpt")
    assert lit.substitute is not None
    x = torch.cat([batch[0] for batch in data().test_dataloader()])
    assert torch.equal(loaded(x), lit.substitute.eval()(x))
    equal = (loaded(x).argmax(1) == net(x).argmax(1)).float().mean()
    assert lit.results()["advgan"]["agreement"] == pytest.approx(float(equal))


# Repeating


def test_the_same_seed_gives_the_same_generator(net: nn.Module, trainer: MakeTrainer) -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # the surroundings must not matter
        lit = module(net, seed)
        trainer(max_epochs=1).fit(lit, datamodule=data(shuffle_seed=seed))
        return weights(lit.generator)

    first = run(0)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


@pytest.mark.parametrize("batch", [2, 6])  # while distilling; while all three nets train
def test_stop_and_resume_equals_an_uninterrupted_run(
    batch: int, net: nn.Module, trainer: MakeTrainer, interrupted: Callable[..., Path]
) -> None:
    def black_box(victim: nn.Module, seed: int = 0) -> AdvGANTraining:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            substitute = nn.Sequential(nn.Dropout(0.2), SmallCNN(width=0.5, hidden=32))
        return module(victim, seed, mode="black_box", substitute=substitute)

    whole = black_box(net)
    trainer().fit(whole, datamodule=data())
    path = interrupted(black_box(net), data(), batch)
    resumed = black_box(SmallCNN(), 1)  # other weights, the victim's too, until it is read
    resumed.seed = 0
    trainer().fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    for name in ("net", "generator", "discriminator", "substitute"):
        assert torch.equal(weights(getattr(resumed, name)), weights(getattr(whole, name))), name
    assert resumed.queries == whole.queries


# Other data, bad arguments


@pytest.mark.parametrize("mode", ["white_box", "black_box"])
def test_colour_odd_sizes_two_classes_and_a_last_batch_of_one(mode: str, trainer: MakeTrainer) -> None:
    x, y = torch.rand(9, 3, 9, 9), torch.arange(9) % 2
    victim, other = SmallCNN(2, 3, 9), SmallCNN(2, 3, 9, width=0.5)
    lit = module(victim, channels=3, size=9, mode=mode, substitute=other)
    fit = trainer(check_val_every_n_epoch=1)
    fit.fit(lit, DataLoader(TensorDataset(x, y), batch_size=4), DataLoader(TensorDataset(x, y), batch_size=4))
    assert all(torch.isfinite(p).all() for p in lit.generator.parameters())
    assert weights(lit.generator).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "grey"}, "mode must be one of white_box, black_box, got 'grey'"),
        ({"distillation": "none"}, "distillation must be one of static, dynamic"),
        ({"mode": "black_box", "substitute": None}, "needs a net to distil"),
        ({"distillation_epochs": -1}, "distillation_epochs must be a whole number"),
        ({"mode": "black_box", "distillation": "static", "distillation_epochs": 0}, "leave the substitute untrained"),
        ({"eps": 8}, "8/255"),
        ({"target": -1}, "target must be a class"),
        ({"confidence": -1.0}, "confidence must be at least 0 and finite"),
        ({"hinge_weight": float("nan")}, "hinge_weight must be at least 0 and finite"),
    ],
)
def test_bad_arguments(net: nn.Module, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(net, **changes)


def test_a_training_that_cannot_work_is_refused_at_once(net: nn.Module, trainer: MakeTrainer) -> None:
    for lit, changes, message in (
        (module(net, target=10), {}, r"target must be a class in \[0, 9\]"),
        (module(net, mode="black_box", substitute=SmallCNN(7)), {}, "7 logits where the victim answers with 10"),
        (module(net, mode="black_box"), {"max_epochs": 1}, "leaves no epoch for the generator"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(**changes).fit(lit, datamodule=data())
    several = module(net)
    several._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="one process, got 2"):
        several.configure_optimizers()


# The command


TINY = ["data.train_size=300", "data.batch_size=50", "data.val_size=60", "data.test_size=60", "logger=none",
        "sweep.attacks.pgd.steps=2", "sweep.attacks.bim.steps=2", "module.generator.width=2"]  # fmt: skip


@pytest.mark.slow
def test_the_recipe_from_nothing_and_on_a_checkpoint(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("train", "recipe=advgan", *TINY, "trainer.max_epochs=1", "name=white") == 0
    white = json.loads((tmp_path / "runs/white/results.json").read_text())
    assert white["advgan"]["mode"] == "white_box"
    assert 0 <= white["advgan"]["fooling_rate"] <= 1
    assert set(white["attacks"]) == {"advgan", "fgsm", "bim", "pgd"}
    assert "fooling_rate" in capsys.readouterr().out
    checkpoints = tmp_path / "runs/white/checkpoints"
    assert {f.name for f in checkpoints.iterdir()} == {"victim.ckpt", "best.ckpt", "last.ckpt", "generator.pt"}
    victim, attacked = (load_classifier(checkpoints / f"{name}.ckpt")[0] for name in ("victim", "best"))
    assert torch.equal(weights(victim), weights(attacked))
    # Attacked again: the same generator, from where it lies.
    assert run("evaluate", "runs/white", "logger=none") == 0
    again = json.loads((tmp_path / "runs/white-eval/results.json").read_text())
    assert again["attacks"]["advgan"] == white["attacks"]["advgan"]
    # In a black box, on that victim.
    black = ["mode=black_box", "distillation=static", "trainer.max_epochs=2", "victim=runs/white", "name=black"]
    assert run("train", "recipe=advgan", *TINY, *black) == 0
    found = json.loads((tmp_path / "runs/black/results.json").read_text())["advgan"]
    assert found["distillation"] == "static"
    assert 0 < found["agreement"] <= 1
    assert found["queries"] >= 300 + 2 * 60
    assert torch.equal(weights(load_classifier(tmp_path / "runs/black")[0]), weights(victim))
    assert (
        load_classifier(tmp_path / "runs/black/checkpoints/substitute.ckpt")[0](torch.rand(1, 1, 28, 28)).numel() == 10
    )
    assert run("train", "recipe=advgan", *TINY, "victim=nowhere") == 1
    assert "no checkpoint at nowhere" in capsys.readouterr().err
    assert not (tmp_path / "runs/advgan").exists()


@pytest.mark.slow
def test_it_fools_most(net: nn.Module, trainer: MakeTrainer) -> None:
    torch.manual_seed(0)
    lit = AdvGANTraining(net, AdvGANGenerator(), AdvGANDiscriminator(), confidence=5.0)
    fit = trainer(max_epochs=1)
    fit.fit(lit, datamodule=data(train_size=10_000, val_size=500, batch_size=100))
    assert float(fit.callback_metrics["val/fooling_rate"]) > 0.8
