"""evaluate(): its inputs, its result after an interrupt, its default attacks and its errors."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit import evaluate
from robustlit.attacks import FGSM, PGD, Attack, AttackResult, DeepFool
from robustlit.certify import IBP
from robustlit.data import MNIST
from robustlit.evaluation.batches import batches_of

Digits = tuple[Tensor, Tensor]

ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=4)}


@dataclass(frozen=True)
class InterruptAt(Attack):
    """Raise KeyboardInterrupt when the example of a given number is attacked."""

    name: ClassVar[str] = "interrupted"
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


def test_the_batch_size_does_not_change_the_table(linear: Any) -> None:
    net, x, y, _ = linear
    attacks = [FGSM(eps=0.1), PGD(eps=0.15, steps=4, restarts=2), PGD(eps=0.4, norm="l2", steps=4)]
    given: dict[str, Any] = {"grid": {"linf": [0.05, 0.2]}, "seed": 5}
    frames = [evaluate(net, (x, y), attacks, **given, batch_size=size).to_frame() for size in (40, 13, 1)]
    exact = [name for name in frames[0] if frames[0][name].dtype != "float64"]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame[exact], frames[0][exact])
        pd.testing.assert_frame_equal(frame, frames[0], rtol=1e-12, atol=1e-14)


def test_the_seed_decides_the_draws(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    runs = [evaluate(net, (x, y), [PGD(eps=0.05, steps=2)], seed=seed).to_frame() for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert not runs[0]["l2"].equals(runs[2]["l2"])


def test_progress_rises_to_one(linear: Any) -> None:
    net, x, y, _ = linear
    seen: list[tuple[str, float]] = []
    evaluate(net, (x, y), ATTACKS, batch_size=15, progress=lambda name, share: seen.append((name, share)))
    shares = [share for _, share in seen]
    assert [name for name, _ in groupby(seen, key=itemgetter(0))] == ["fgsm", "pgd"] * 3
    assert shares == sorted(shares)
    fgsm = ATTACKS["fgsm"].expected_passes / sum(attack.expected_passes for attack in ATTACKS.values())
    assert {round(3 * share, 6) for share in shares} >= {round(n + part, 6) for n in range(3) for part in (0, fgsm, 1)}


def test_the_model_is_left_as_it_was(net: nn.Module, digits: Digits) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    evaluate(net, (digits[0][:20], digits[1][:20]), ATTACKS)
    assert net.training
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_an_interrupt_keeps_the_finished_batches(net: nn.Module, digits: Digits, capsys: Any) -> None:
    x, y = digits[0][:60], digits[1][:60]
    attacks = {"fgsm": FGSM(eps=0.1), "interrupted": InterruptAt(number=25)}
    result = evaluate(net, (x, y), attacks, batch_size=20)
    assert (result.complete, result.n, result.meant) == (False, 20, 60)
    assert sorted(result.to_frame()["index"].unique()) == list(range(20))
    assert "kept the 40 finished rows" in capsys.readouterr().err
    whole = evaluate(net, (x[:20], y[:20]), {"fgsm": FGSM(eps=0.1)})
    assert whole.complete
    assert result.accuracy(attack="fgsm", eps=0.1) == whole.accuracy(attack="fgsm", eps=0.1)
    with pytest.raises(KeyboardInterrupt):  # no batch was finished
        evaluate(net, (x, y), {"interrupted": InterruptAt(number=3)}, batch_size=20)


def test_data_that_cannot_be_attacked_is_refused(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:10], digits[1][:10]
    # A class that the net does not have would count as a mistake of the net.
    foreign = [y.where(torch.arange(10) != 3, torch.tensor(wrong)) for wrong in (10, -1)]
    data: list[tuple[Any, str]] = [
        ((x, y[:9]), "got 10 and 9"),
        ([(x, y[:9])], r"shape \(10,\)"),
        ([], "no examples"),
        ((x[:0], y[:0]), "empty"),
        (3, "got int"),
        ((2 * x, y), r"must lie in \[0, 1\]"),
        *(((x, labels), r"labels must lie in \[0, 9\]") for labels in foreign),
    ]
    for given, message in data:
        with pytest.raises(ValueError, match=message):
            evaluate(net, given, [FGSM(eps=0.1)])
    for size in (0, 2.5, "8"):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            evaluate(net, (x, y), [FGSM(eps=0.1)], batch_size=size)  # type: ignore[arg-type]
    detached = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)
    detached.register_forward_pre_hook(lambda _, inputs: inputs[0].detach())
    with pytest.raises(ValueError, match="no gradient"):
        evaluate(detached, (x, detached(x).argmax(1)), [FGSM(eps=0.1)])


@pytest.mark.slow
def test_the_default_attacks_are_the_worst_case_and_the_nearest_in_l2(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:6], digits[1][:6]
    result = evaluate(net, (x, y), grid={"linf": [0.02, 0.1]})
    assert result.attacks == ["worst_case", "nearest_l2"]
    assert result.budgets("worst_case") == [0.02, 0.1]
    assert result.rests_on(norm="linf", eps=0.1) == ["worst_case"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert result.curve()["accuracy"].iloc[-1] == 0
        assert result.median_distance() == result.median_distance("nearest_l2")
    with pytest.raises(ValueError, match=r'give attacks, or budgets .* grid=\{"linf"'):
        evaluate(net, (x, y))


def test_a_worst_case_without_a_search_in_its_distance_is_warned_of(net: nn.Module, digits: Digits) -> None:
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


def test_a_progress_bar_needs_a_terminal(net: nn.Module, digits: Digits, monkeypatch: Any, capsys: Any) -> None:
    x, y = digits[0][:6], digits[1][:6]
    expected = evaluate(net, (x, y), [FGSM(eps=0.1)]).to_frame()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    pd.testing.assert_frame_equal(evaluate(net, (x, y), [FGSM(eps=0.1)]).to_frame(), expected)
    assert "fgsm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (["pgd"], r"each of attacks must be an attack, got 'pgd'; for example attacks=\[PGD\(eps=0\.3\)\]"),
        ([PGD], r"PGD is the class of an attack; make one of it, with its budget: PGD\(eps=\.\.\.\)"),
        ({"mine": PGD}, "PGD is the class of an attack"),
        ([FGSM(eps=0.1), None], "each of attacks must be an attack, got NoneType"),
        ("pgd", "attacks must be a list of attacks, or a mapping from names to them, got 'pgd'"),
        (FGSM(eps=0.1), r"attacks must be a list .* got FGSM\("),
        (PGD, "attacks must be a list .* got "),
        (3, "attacks must be a list .* got int"),
        ((attack for attack in [FGSM(eps=0.1)]), "attacks must be a list .* got generator"),
    ],
)
def test_anything_but_attacks_is_refused(attacks: Any, message: str, net: nn.Module, digits: Digits) -> None:
    x, y = digits
    with pytest.raises(TypeError, match=message):
        evaluate(net, (x[:4], y[:4]), attacks)


@pytest.mark.parametrize(
    ("certificates", "message"),
    [
        (
            IBP(eps=0.1),
            r"certificates must be a list of .* got IBP\(.*; for example certificates=\[IBP\(",
        ),
        ([IBP], r"IBP is the class of a certificate; make one of it, with its budget: IBP\(eps=\.\.\.\)"),
        ([FGSM(eps=0.1)], "each of certificates must be a certificate, got FGSM; .* from robustlit.certify"),
        (None, "certificates must be a list .* got NoneType"),
    ],
)
def test_anything_but_certificates_is_refused(certificates: Any, message: str, net: nn.Module, digits: Digits) -> None:
    with pytest.raises(TypeError, match=message):
        evaluate(net, (digits[0][:4], digits[1][:4]), [FGSM(eps=0.1)], certificates=certificates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": lambda x: x}, "model must be a torch.nn.Module from images to logits, got function; call a func"),
        ({"model": nn.Linear}, r"model must be .* logits, got a class; make a net of it: Linear\(\.\.\.\)"),
        ({"model": None}, "model must be a torch.nn.Module .* got NoneType"),
        ({"substitute": max}, "substitute must be a torch.nn.Module .* got builtin_function"),
        ({"grid": [0.1, 0.2]}, r"grid must be a mapping from norms to budgets .* got \[0\.1, 0\.2\]; for example"),
    ],
)
def test_values_of_another_type_are_refused(
    arguments: dict[str, Any], message: str, net: nn.Module, digits: Digits
) -> None:
    with pytest.raises(TypeError, match=message):
        evaluate(**{"model": net, "data": digits, "attacks": [FGSM(eps=0.1)], **arguments})


def test_budgets_in_a_norm_without_an_attack_are_warned_of(net: nn.Module, digits: Digits) -> None:
    data: Any = digits[0][:4], digits[1][:4]
    with pytest.warns(UserWarning, match=r"grid\.l2 are not used: no attack has norm='l2'; add one, for example PGD"):
        evaluate(net, data, [FGSM(eps=0.1)], grid={"l2": [1.0], "linf": [0.05]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate(net, data, [FGSM(eps=0.1)], grid={"l2": [], "linf": [0.05]})


def test_one_budget_and_one_kind_of_knowledge_need_no_list(net: nn.Module, digits: Digits) -> None:
    data: Any = digits[0][:8], digits[1][:8]
    lists, bare = ({"linf": [0.05]}, ("greybox",)), ({"linf": 0.05}, "greybox")
    found = [evaluate(net, data, [FGSM(eps=0.1)], grid=g, knowledge=k) for g, k in (lists, bare)]
    pd.testing.assert_frame_equal(found[0].to_frame(), found[1].to_frame())
    assert evaluate(net, data, grid={"linf": 0.05}).budgets("worst_case") == [0.05]


def test_arrays_are_refused(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:4], digits[1][:4]
    for data, kinds in (
        ((x.numpy(), y.numpy()), "ndarray and ndarray"),
        ((x, y.numpy()), "Tensor and ndarray"),
        ([x.tolist(), y], "list and Tensor"),
        ([(x.numpy(), y.numpy())], "ndarray and ndarray"),
    ):
        with pytest.raises(TypeError, match=rf"must be torch tensors, got {kinds}; convert arrays by torch"):
            evaluate(net, data, [FGSM(eps=0.1)])
    with pytest.raises(TypeError, match=r"a batch must be \(x, y\) or \(x, y, index\), got dict"):
        evaluate(net, [{"image": x, "label": y}], [FGSM(eps=0.1)])
    # Two batches in a list are not a pair of tensors.
    assert evaluate(net, [(x, y), (1 - x, y)], [FGSM(eps=0.1)]).n == 8


def test_images_of_another_precision_are_refused(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:4], digits[1][:4]
    with pytest.raises(
        ValueError, match=r"images are torch.float64, .* weights of SmallCNN torch.float32; use x\.float"
    ):
        evaluate(net, (x.double(), y), [FGSM(eps=0.1)])
    with pytest.raises(ValueError, match=r"for uint8 use x\.float\(\) / 255"):
        evaluate(net, ((x * 255).to(torch.uint8), y), [FGSM(eps=0.1)])
    assert evaluate(net.double(), (x.double(), y), [FGSM(eps=0.1)]).n == 4


THIRD: list[tuple[Any, type[Exception], str]] = [
    (torch.arange(12) % 3, ValueError, "the number 0 occurs twice"),
    (torch.tensor([*range(11), 3]), ValueError, "the number 3 occurs twice"),
    (torch.rand(12), TypeError, r"an integer tensor \(4,\), got torch.float32 \(4,\)"),
    (torch.arange(24).view(12, 2), TypeError, r"got torch.int64 \(4, 2\)"),
]


@pytest.mark.parametrize(("third", "error", "message"), THIRD)
def test_a_third_element_that_is_no_number_of_the_example_is_an_error(
    net: nn.Module, digits: tuple[Tensor, Tensor], third: Tensor, error: type[Exception], message: str
) -> None:
    loader = DataLoader(TensorDataset(digits[0][:12], digits[1][:12], third), batch_size=4)
    with pytest.raises(error, match=f"must number the examples, each once.*{message}"):
        evaluate(net, loader, [FGSM(eps=0.1)])


def test_any_integer_numbers_are_taken(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    numbers = torch.tensor([5, 900, 7, 2, 11, 1], dtype=torch.int32)
    loader = DataLoader(TensorDataset(digits[0][:6], digits[1][:6], numbers), batch_size=4)
    assert sorted(evaluate(net, loader, [FGSM(eps=0.1)]).table["index"]) == sorted(numbers.tolist())


def test_tensors_of_large_images_are_cut_into_small_batches() -> None:
    sizes = {side: len(next(batches_of((torch.rand(40, 1, side, side), torch.zeros(40)))[0])[1]) for side in (32, 224)}
    assert sizes == {32: 40, 224: 32}
