"""evaluate(): what it takes, what it gives back when stopped, and what it refuses."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit import evaluate
from robustlit.attacks import FGSM, PGD, Attack, AttackResult, DeepFool
from robustlit.data import MNIST

ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=4)}


@dataclass(frozen=True)
class PressedAt(Attack):
    """Ctrl-C when the example of a given number comes up."""

    name: ClassVar[str] = "pressed"
    number: int = 0

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, index: Any = None, **rest: Any) -> AttackResult:
        if self.number in index.tolist():
            raise KeyboardInterrupt
        return FGSM(eps=0.1).run(model, x, y, index=index)

    def _search(self, *args: Any) -> Tensor:
        raise NotImplementedError


def test_tensors_loaders_and_data_modules_give_the_same_table(net: nn.Module) -> None:
    data = MNIST(test_size=60, eval_batch_size=25)
    x, y, index = data.tensors("test")
    expected = evaluate(net, data, ATTACKS).to_frame()
    np.testing.assert_array_equal(expected["index"].unique(), index)  # places in the test split, not 0 .. 59
    with_index = [(x[:25], y[:25], index[:25]), (x[25:], y[25:], index[25:])]
    pd.testing.assert_frame_equal(evaluate(net, with_index, ATTACKS).to_frame(), expected)
    pairs = evaluate(net, (x, y), ATTACKS, batch_size=25).to_frame()
    loader = DataLoader(TensorDataset(x, y), batch_size=25)
    pd.testing.assert_frame_equal(evaluate(net, loader, ATTACKS).to_frame(), pairs)
    assert sorted(pairs["index"].unique()) == list(range(60))
    # FGSM draws nothing, so the numbering alone may differ.
    one, other = (f[f["attack"] == "fgsm"].drop(columns="index").reset_index(drop=True) for f in (expected, pairs))
    pd.testing.assert_frame_equal(one, other)


def test_the_size_of_the_batches_does_not_matter(linear: Any) -> None:
    net, x, y, _ = linear
    attacks = [FGSM(eps=0.1), PGD(eps=0.15, steps=4, restarts=2), PGD(eps=0.4, norm="l2", steps=4)]
    frames = [
        evaluate(net, (x, y), attacks, grid={"linf": [0.05, 0.2]}, seed=5, batch_size=size).to_frame()
        for size in (40, 13, 1)
    ]
    exact = [name for name in frames[0] if frames[0][name].dtype != "float64"]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame[exact], frames[0][exact])
        pd.testing.assert_frame_equal(frame, frames[0], rtol=1e-12, atol=1e-14)


def test_the_seed_decides_the_draws(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    runs = [evaluate(net, (x, y), [PGD(eps=0.05, steps=2)], seed=seed).to_frame() for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert not runs[0]["l2"].equals(runs[2]["l2"])


def test_progress_rises_to_one(linear: Any) -> None:
    net, x, y, _ = linear
    seen: list[tuple[str, float]] = []
    evaluate(net, (x, y), ATTACKS, batch_size=15, progress=lambda name, share: seen.append((name, share)))
    shares = [share for _, share in seen]
    assert [name for name, _ in seen] == ["fgsm", "pgd"] * 3
    assert shares == pytest.approx([k / 6 for k in range(1, 7)])


def test_the_model_is_left_as_it_was(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    evaluate(net, (digits[0][:20], digits[1][:20]), ATTACKS)
    assert net.training
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_an_interrupt_keeps_the_finished_batches(
    net: nn.Module, digits: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    attacks = {"fgsm": FGSM(eps=0.1), "pressed": PressedAt(number=25)}
    result = evaluate(net, (x, y), attacks, batch_size=20)
    assert result.complete is False
    assert (result.n, result.meant) == (20, 60)
    assert sorted(result.to_frame()["index"].unique()) == list(range(20))
    assert "kept the 40 finished rows" in capsys.readouterr().err
    whole = evaluate(net, (x[:20], y[:20]), {"fgsm": FGSM(eps=0.1)})
    assert whole.complete
    assert result.accuracy(attack="fgsm", eps=0.1) == whole.accuracy(attack="fgsm", eps=0.1)
    with pytest.raises(KeyboardInterrupt):  # nothing finished, nothing to keep
        evaluate(net, (x, y), {"pressed": PressedAt(number=3)}, batch_size=20)


def test_data_that_cannot_be_attacked_is_refused(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:10], digits[1][:10]
    attack = [FGSM(eps=0.1)]
    with pytest.raises(ValueError, match="got 10 and 9"):
        evaluate(net, (x, y[:9]), attack)
    with pytest.raises(ValueError, match=r"shape \(10,\)"):
        evaluate(net, [(x, y[:9])], attack)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(net, [], attack)
    with pytest.raises(ValueError, match="empty"):
        evaluate(net, (x[:0], y[:0]), attack)
    with pytest.raises(ValueError, match="got int"):
        evaluate(net, 3, attack)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        evaluate(net, (2 * x, y), attack)
    with pytest.raises(ValueError, match="knowledge must be among"):
        evaluate(net, (x, y), attack, knowledge=("black",))
    # A class that the net cannot answer would pass for a mistake of the net.
    for wrong in (10, -1):
        labels = y.clone()
        labels[3] = wrong
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 9\]"):
            evaluate(net, (x, labels), attack)


def test_a_net_without_gradients_is_refused(digits: tuple[Tensor, Tensor]) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.detach().flatten(1).sum(1) * k for k in range(10)], 1)

    x = digits[0][:10]
    with pytest.raises(ValueError, match="no gradient"):
        evaluate(Detached(), (x, torch.full((10,), 9)), [FGSM(eps=0.1)])


def test_without_attacks_it_runs_what_a_claim_can_rest_on(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], digits[1][:6]
    result = evaluate(net, (x, y), grid={"linf": [0.02, 0.1]})
    assert result.attacks == ["ensemble", "nearest_l2"]
    assert result.budgets("ensemble") == [0.02, 0.1]
    assert result.rests_on(norm="linf", eps=0.1) == ["ensemble"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert result.curve()["accuracy"].iloc[-1] == 0
        assert result.median_distance() == result.median_distance("nearest_l2")
    with pytest.raises(ValueError, match=r'give attacks, or budgets .* grid=\{"linf"'):
        evaluate(net, (x, y))


def test_a_curve_over_l2_says_when_nobody_looked_for_the_nearest(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], digits[1][:6]
    far = evaluate(net, (x, y), [PGD(eps=0.3, steps=5), DeepFool(norm="linf")])
    for ask in (far.curve, far.median_distance):
        with pytest.warns(UserWarning, match="overstates; run NearestL2"):
            ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        far.curve("pgd")
        far.curve(distance="linf")
        near = evaluate(net, (x, y), [DeepFool()])
        near.curve()
    with pytest.warns(UserWarning, match="no attack here searched linf, so the worst case over linf"):
        near.curve(distance="linf")
    assert far.rests_on(norm="linf", eps=0.3) == ["pgd", "deepfool"]
    assert far.rests_on(norm="linf", eps=0.2) == ["deepfool"]  # a minimal attack covers every budget


def test_a_bar_only_on_a_terminal(
    net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = digits[0][:6], digits[1][:6]
    expected = evaluate(net, (x, y), [FGSM(eps=0.1)]).to_frame()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    pd.testing.assert_frame_equal(evaluate(net, (x, y), [FGSM(eps=0.1)]).to_frame(), expected)
    assert "fgsm" in capsys.readouterr().err
