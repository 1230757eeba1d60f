"""Switches of a recipe: averaged weights, compilation, memory layout, TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.experiment.composition import composed
from robustlit.experiment.layout import lay_channels_last
from robustlit.experiment.plan import normalised
from robustlit.experiment.recipes import ConfigError, recipe_files, register_recipes, stored
from robustlit.models import SmallCNN
from robustlit.objectives import AdversarialTraining
from robustlit.training import RobustClassifier, load_classifier, read_checkpoint

SHORT = ("recipe=standard", "model=small_cnn", "data.train_size=300", "data.val_size=50", "data.test_size=20",
         "validation_attack.steps=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
         "callbacks.images=null")  # fmt: skip
SWEEP = ("sweep.attacks.pgd.steps=2", "~sweep.attacks.bim", "~sweep.attacks.fgsm", "sweep.grid={}")
DECAY = 0.7


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-6) for name, value in expected.items())


def of(checkpoint: dict[str, Any], key: str) -> dict[str, Tensor]:
    return {name.removeprefix("net."): v for name, v in checkpoint[key].items() if name.startswith("net.")}


@pytest.mark.slow
def test_the_average_is_validated_saved_and_attacked(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw: list[dict[str, Tensor]] = []
    seen: dict[str, dict[str, Tensor]] = {}

    def after_step(module: RobustClassifier, *_: Any) -> None:
        raw.append(weights(module.net))

    def attacked(attack: PGD, model: nn.Module, *arguments: Any, **more: Any) -> Any:
        seen["sweep" if attack.steps == 2 else "validation"] = weights(model)
        return original(attack, model, *arguments, **more)

    original = PGD.run
    monkeypatch.setattr(RobustClassifier, "on_train_batch_end", after_step)
    monkeypatch.setattr(PGD, "run", attacked)
    assert run("train", *SHORT, *SWEEP, f"ema={DECAY}", "trainer.max_epochs=1", "logger=none", "name=x") == 0
    average = raw[0]
    for step in raw[1:]:
        average = {name: DECAY * value + (1 - DECAY) * step[name] for name, value in average.items()}
    assert not same(average, raw[-1])
    best = tmp_path / "runs" / "x" / "checkpoints" / "best.ckpt"
    stored = {"best.ckpt": weights(load_classifier(best)[0]), **seen}
    assert {where: same(found, average) for where, found in stored.items()} == {
        "best.ckpt": True, "validation": True, "sweep": True,
    }  # fmt: skip
    assert same(of(read_checkpoint(best), "current_model_state"), raw[-1])  # to go on from


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_average(run: Callable[..., int], tmp_path: Path) -> None:
    short = (*SHORT, f"ema={DECAY}", "schedule=null", "sweep=none", "logger=none")
    assert run("train", *short, "trainer.max_epochs=2", "name=whole") == 0
    assert run("train", *short, "trainer.max_epochs=1", "name=halves") == 0
    assert run("train", *short, "trainer.max_epochs=2", "ckpt_path=runs/halves") == 0
    whole, halves = (read_checkpoint(tmp_path / "runs" / n / "checkpoints" / "last.ckpt") for n in ("whole", "halves"))
    assert whole["global_step"] == halves["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, of(halves, key)[name]) for name, value in of(whole, key).items()), key


def digits() -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(8, 1, 28, 28), torch.arange(8), torch.arange(8)


def test_the_compiled_net_is_trained_and_the_net_itself_is_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []

    class Compiled(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.net)
            return self.net(x)

    monkeypatch.setattr(torch, "compile", Compiled)
    net = SmallCNN()
    objective = AdversarialTraining(PGD(eps=0.1, steps=3))
    module = RobustClassifier(net, objective, torch.optim.Adam, num_classes=10, compile_net=True)
    before = list(module.state_dict())
    for _ in range(2):
        module.objective(module.trained_net, *digits()[:2])
    assert calls == [net] * 8  # one wrapper, attack and loss alike
    assert list(module.state_dict()) == before
    assert module.net is net
    assert RobustClassifier(net, objective, torch.optim.Adam, num_classes=10).trained_net is net


@pytest.mark.slow
def test_a_compiled_run_learns_what_a_plain_one_does(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing and gradients as ever, without the minutes that generating code takes on a small machine.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    short = (*SHORT, "recipe=pgd_adv_train", "sweep=none", "logger=none", "trainer.max_epochs=1", "data.train_size=200")
    for name, more in {
        "plain": ("channels_last=false",),
        "compiled": ("compile=true",),
        "last": ("channels_last=true",),
    }.items():
        assert run("train", *short, *more, f"name={name}") == 0
    plain, *others = (load_classifier(tmp_path / "runs" / name)[0] for name in ("plain", "compiled", "last"))
    x = digits()[0]
    for net in others:
        torch.testing.assert_close(net(x), plain(x), rtol=1e-2, atol=1e-2)


def test_channels_last_is_a_layout_of_the_same_net(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    layouts: set[bool] = set()

    def after_step(module: Any, *_: Any) -> None:
        weight = module.net.features[2].weight  # (32, 16, 4, 4)
        layouts.add(weight.is_contiguous(memory_format=torch.channels_last))

    monkeypatch.setattr(RobustClassifier, "on_train_batch_end", after_step)
    command = ("train", *SHORT, "sweep=none", "logger=none", "trainer.max_epochs=1")
    assert run(*command, "channels_last=true", "name=x") == 0
    assert layouts == {True}
    assert load_classifier("runs/x")[0](digits()[0]).shape == (8, 10)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).view(len(x), -1))


def test_a_net_that_fails_with_channels_last_trains_without(capsys: pytest.CaptureFixture[str]) -> None:
    net, data = Views().train(), SimpleNamespace(in_chans=3, image_size=8)
    lay_channels_last(net, data)
    assert net.features.weight.is_contiguous()
    assert net.training
    assert "channels_last is left out: Views fails with it" in capsys.readouterr().err
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    good = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    lay_channels_last(good, data)
    assert good[0].weight.is_contiguous(memory_format=torch.channels_last)
    lay_channels_last(good, SimpleNamespace(in_chans=1, image_size=8))  # takes no such images: not the layout's fault
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ema=1", "ema must be null or .* got 1"),
        ("ema=fast", "got fast"),
        ("compile=yes please", "compile must be true"),
    ],
)
def test_a_wrong_switch_is_refused(override: str, message: str) -> None:
    register_recipes(recipe_files())
    with pytest.raises(ConfigError, match=message):
        normalised(OmegaConf.create({**stored(composed([*SHORT, override, "name=x"])), "recipe": "standard"}))


@pytest.mark.slow
def test_tensorboard_gets_the_metrics(run: Callable[..., int], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = (*SHORT, "data.train_size=100", "trainer.log_every_n_steps=1", *SWEEP)
    assert run("train", *short, "logger=tensorboard", "trainer.max_epochs=1", "name=x") == 0
    events = EventAccumulator(str(tmp_path / "runs" / "x" / "tensorboard")).Reload()
    assert {"train/loss", "val/accuracy", "val/robust_accuracy", "test/accuracy"} <= {*events.Tags()["scalars"]}
    assert run("evaluate", "runs/x", "data.test_size=10") == 0
    assert [*(tmp_path / "runs" / "x-eval" / "tensorboard").glob("events*")]
