"""What an attacker knows: grey-box, adaptive, black-box, in one sweep and one figure."""

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


@dataclass(frozen=True)
class OnTheDefense(PGD):
    """An attack on the parts of a defense."""

    name: ClassVar[str] = "on-the-defense"
    adaptive_only: ClassVar[bool] = True


class Closed(nn.Module):
    """A net whose gradients nobody may ask for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        return self.net(x)


@pytest.fixture
def substitute(net: nn.Module, digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(5)
    return distil(net, SmallCNN(width=0.5), digits[0].repeat(4, 1, 1, 1), epochs=3).net


def test_in_a_black_box_attacks_go_through_the_substitute_or_need_no_gradients(
    net: nn.Module, substitute: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:50], digits[1][:50]
    attacks = [PGD(eps=0.3, steps=10), Square(eps=0.3, queries=50)]
    found = evaluate(Closed(net), (x, y), attacks, knowledge=["blackbox"], substitute=substitute)
    assert found.runs == [("pgd", "blackbox"), ("square", "blackbox")]
    through = evaluate(Closed(net), (x, y), [Transfer(attacks[0], substitute)])
    assert found.accuracy(attack="pgd", eps=0.3, knowledge="blackbox") == through.accuracy(eps=0.3)
    plain = evaluate(Closed(net), (x, y), [attacks[1]])
    assert found.accuracy(attack="square", eps=0.3, knowledge="blackbox") == plain.accuracy(eps=0.3)
    assert found.worst_case(eps=0.3, knowledge="blackbox") <= plain.accuracy(eps=0.3)


def test_the_worst_case_of_who_knows_the_defense_counts_all_witnesses(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class Masked(BitDepth):
        def attack_view(self) -> nn.Module:
            return self  # its gradient is zero

    x, y = digits[0][:60], digits[1][:60]
    with pytest.warns(UserWarning, match="zero at every pixel"):
        found = evaluate(Masked(net, 3), (x, y), [PGD(eps=0.3)], knowledge=["adaptive", "greybox"])
    alone = found.accuracy(eps=0.3, attack="pgd")
    assert found.worst_case(eps=0.3) <= found.worst_case(eps=0.3, knowledge="greybox") < alone - 0.2
    assert found.worst_case(eps=0.3, knowledge="greybox") == found.accuracy(eps=0.3, knowledge="greybox")
    # All that is read off the worst case counts the same witnesses.
    assert found.accuracy(eps=0.3) == found.worst_case(eps=0.3)
    assert found.curve(distance="linf", at=[0.3])["accuracy"].item() == pytest.approx(found.worst_case(eps=0.3))
    assert found.median_distance(distance="linf") < found.median_distance("pgd", distance="linf")


def test_a_black_box_without_a_substitute_says_where_to_get_one(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:5], digits[1][:5]
    with pytest.raises(ValueError, match=r'"blackbox" needs a substitute for pgd.*distil'):
        evaluate(net, (x, y), [PGD(eps=0.3)], knowledge=["blackbox"])
    assert evaluate(net, (x, y), [Square(eps=0.3, queries=5)], knowledge=["blackbox"]).n == 5


def test_attacks_on_a_defenses_parts_run_as_adaptive_alone(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    sweep = Sweep([PGD(eps=0.3, steps=2), OnTheDefense(eps=0.3, steps=2)], knowledge=("greybox", "adaptive"))
    assert sweep.jobs == [("greybox", "pgd"), ("adaptive", "pgd"), ("adaptive", "on-the-defense")]
    columns = sweep.attack_batch(BitDepth(net), digits[0][:5], digits[1][:5], torch.arange(5))
    assert {*zip(columns["knowledge"], columns["attack"], strict=True)} == {*sweep.jobs}
    with pytest.raises(ValueError, match="nothing to run with knowledge 'greybox'"):
        Sweep([OnTheDefense(eps=0.3)], knowledge=("adaptive", "greybox"))


def test_three_kinds_of_knowledge_are_three_lines_of_one_colour(
    net: nn.Module, substitute: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:40], digits[1][:40]
    attacks = [PGD(eps=0.3, steps=5), Square(eps=0.3, queries=20)]
    found = evaluate(
        BitDepth(net), (x, y), attacks, knowledge=["greybox", "adaptive", "blackbox"], substitute=substitute
    )
    lines: dict[str, set[Any]] = {}
    for text in curves_figure(found, "linf").axes[0].texts:
        lines.setdefault(text.get_text().split("-")[0], set()).add(text.get_color())
    assert {name: len(colours) for name, colours in lines.items()} == {"pgd": 1, "square": 1}
    axes = curves_figure(found, "linf").axes[0]
    curves = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert {line.get_linestyle() for line in curves} == {"-", "--", ":"}


def test_the_callback_distils_the_substitute_itself(tmp_path: Path, net: nn.Module) -> None:
    sweep = AttackSweep({"pgd": PGD(eps=0.3, steps=5)}, knowledge=["blackbox"], substitute_images=1500, folder=tmp_path)
    data = MNIST(test_size=60, val_size=100)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[sweep], inference_mode=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = RobustClassifier(Closed(net), Standard(), torch.optim.Adam, num_classes=10)
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
