"""Threat knowledge: grey-box, adaptive and black-box attacks in one sweep and one figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from robustlit import Evaluation, evaluate
from robustlit.attacks import PGD, Square, Transfer
from robustlit.callbacks import AttackSweep
from robustlit.data import MNIST
from robustlit.defenses import BitDepth
from robustlit.evaluation import Sweep
from robustlit.figures import curves_figure
from robustlit.models import SmallCNN
from robustlit.objectives import Standard
from robustlit.training import RobustClassifier, distil

Digits = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class OnParts(PGD):
    """An attack on the parts of a defense."""

    name: ClassVar[str] = "on-the-defense"
    adaptive_only: ClassVar[bool] = True


class NoGradients(nn.Module):
    """A net that must not be differentiated."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        return self.net(x)


@pytest.fixture
def substitute(net: nn.Module, digits: Digits) -> nn.Module:
    torch.manual_seed(5)
    return distil(net, SmallCNN(width=0.5), digits[0].repeat(4, 1, 1, 1), epochs=3).net


def test_black_box_attacks_need_no_gradients(net: nn.Module, substitute: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:50], digits[1][:50]
    attacks = [PGD(eps=0.3, steps=10), Square(eps=0.3, queries=50)]
    found = evaluate(NoGradients(net), (x, y), attacks, knowledge=["blackbox"], substitute=substitute)
    assert found.runs == [("pgd", "blackbox"), ("square", "blackbox")]
    through = evaluate(NoGradients(net), (x, y), [Transfer(attacks[0], substitute)])
    assert found.accuracy(attack="pgd", eps=0.3, knowledge="blackbox") == through.accuracy(eps=0.3)
    plain = evaluate(NoGradients(net), (x, y), [attacks[1]])
    assert found.accuracy(attack="square", eps=0.3, knowledge="blackbox") == plain.accuracy(eps=0.3)
    assert found.worst_case(eps=0.3, knowledge="blackbox") <= plain.accuracy(eps=0.3)


def test_the_adaptive_worst_case_counts_the_adversarial_examples_of_all(net: nn.Module, digits: Digits) -> None:
    class Masked(BitDepth):
        def attack_view(self) -> nn.Module:
            return self  # its gradient is zero

    x, y = digits[0][:60], digits[1][:60]
    with pytest.warns(UserWarning, match="zero at every pixel"):
        found = evaluate(Masked(net, 3), (x, y), [PGD(eps=0.3)], knowledge=["adaptive", "greybox"])
    alone = found.accuracy(eps=0.3, attack="pgd")
    assert found.worst_case(eps=0.3) <= found.worst_case(eps=0.3, knowledge="greybox") < alone - 0.2
    assert found.worst_case(eps=0.3, knowledge="greybox") == found.accuracy(eps=0.3, knowledge="greybox")
    # Curves and medians count the same adversarial examples.
    assert found.accuracy(eps=0.3) == found.worst_case(eps=0.3)
    assert found.curve(distance="linf", at=[0.3])["accuracy"].item() == pytest.approx(found.worst_case(eps=0.3))
    assert found.median_distance(distance="linf") < found.median_distance("pgd", distance="linf")


def test_a_black_box_without_a_substitute_is_refused(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:5], digits[1][:5]
    with pytest.raises(ValueError, match=r'"blackbox" needs a substitute for pgd.*distil'):
        evaluate(net, (x, y), [PGD(eps=0.3)], knowledge=["blackbox"])
    assert evaluate(net, (x, y), [Square(eps=0.3, queries=5)], knowledge=["blackbox"]).n == 5


def test_attacks_on_parts_of_a_defense_run_only_as_adaptive(net: nn.Module, digits: Digits) -> None:
    sweep = Sweep([PGD(eps=0.3, steps=2), OnParts(eps=0.3, steps=2)], knowledge=("greybox", "adaptive"))
    assert sweep.jobs == [("greybox", "pgd"), ("adaptive", "pgd"), ("adaptive", "on-the-defense")]
    columns = sweep.attack_batch(BitDepth(net), digits[0][:5], digits[1][:5], torch.arange(5))
    assert {*zip(columns["knowledge"], columns["attack"], strict=True)} == {*sweep.jobs}
    with pytest.raises(ValueError, match="nothing to run with knowledge 'greybox'"):
        Sweep([OnParts(eps=0.3)], knowledge=("adaptive", "greybox"))


def test_the_lines_of_an_attack_share_a_colour(net: nn.Module, substitute: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    attacks = [PGD(eps=0.3, steps=5), Square(eps=0.3, queries=20)]
    known = ["greybox", "adaptive", "blackbox"]
    found = evaluate(BitDepth(net), (x, y), attacks, knowledge=known, substitute=substitute)
    lines: dict[str, set[Any]] = {}
    axes = curves_figure(found, "linf").axes[0]
    for text in axes.texts:
        lines.setdefault(text.get_text().split("-")[0], set()).add(text.get_color())
    assert {name: len(colours) for name, colours in lines.items()} == {"pgd": 1, "square": 1}
    curves = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert {line.get_linestyle() for line in curves} == {"-", "--", ":"}


@pytest.mark.slow
def test_the_callback_distils_the_substitute_itself(tmp_path: Path, net: nn.Module) -> None:
    sweep = AttackSweep({"pgd": PGD(eps=0.3, steps=5)}, knowledge=["blackbox"], substitute_images=1500, folder=tmp_path)
    data = MNIST(test_size=60, val_size=100)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[sweep], inference_mode=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = RobustClassifier(NoGradients(net), Standard(), torch.optim.Adam, num_classes=10)
    before = torch.get_rng_state()
    trainer.test(module, datamodule=data, verbose=False)
    assert torch.equal(before, torch.get_rng_state())
    found = Evaluation.load(tmp_path)
    assert found.runs == [("pgd", "blackbox")]
    assert found.accuracy(eps=0.3, knowledge="blackbox") < found.clean_accuracy - 0.3
    assert found.meta["substitute"]["agreement"] > 0.5
    assert found.meta["substitute"]["distilled with queries"] == 5 * 1350 + 150


def test_the_callback_takes_a_substitute_from_a_checkpoint(tmp_path: Path, net: nn.Module) -> None:
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    config = {"model": {"_target_": "robustlit.models.SmallCNN"}}
    torch.save({"state_dict": weights, "robustlit": {"format": 1, "config": config}}, tmp_path / "sub.ckpt")
    sweep = AttackSweep({"pgd": PGD(eps=0.3)}, knowledge=["blackbox"], substitute=tmp_path / "sub.ckpt")
    assert not sweep.sweep.needs_substitute
    assert isinstance(sweep.sweep.substitute, SmallCNN)
