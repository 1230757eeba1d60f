"""The sweep compared with closed forms and with attacking at every budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BIM, DDN, FGSM, PGD, Attack, Square, Transfer, WorstCase
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.evaluation import Sweep, evaluate
from robustlit.evaluation.columns import as_evaluation
from robustlit.results import Evaluation

Digits = tuple[Tensor, Tensor]

GRID = [0.03, 0.06, 0.1, 0.13, 0.17, 0.2, 0.24, 0.27]
# Files on disk, figures and W&B tables rely on these.
CONTRACT = dict.fromkeys(("index", "label"), "int64") | {"clean": "bool"}
CONTRACT |= dict.fromkeys(("attack", "knowledge", "norm"), "str") | {"eps": "float64", "success": "bool"}
CONTRACT |= {"prediction": "int64"} | dict.fromkeys(("l0", "l1", "l2", "linf"), "float64")
CONTRACT |= dict.fromkeys(("forwards", "backwards", "image"), "int64")


@dataclass(frozen=True)
class Shortest(Attack):
    """A minimal attack on a linear net: straight across the boundary."""

    name: ClassVar[str] = "shortest"

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        w = victim.model.w.detach()
        score = (x - 0.5).flatten(1) @ w
        return x - (1.0001 * score / w.abs().sum())[:, None].mul(w.sign()).view_as(x)


def least_budget(frame: pd.DataFrame, attack: str) -> np.ndarray:
    """Per example the least budget at which it is broken, inf where none."""
    rows = frame[frame["attack"] == attack]
    return rows["eps"].where(rows["success"], np.inf).groupby(rows["index"]).min().to_numpy()


def test_the_columns_and_rows_of_the_table(linear: Any) -> None:
    net, x, y, _ = linear
    attacks = {"fast": FGSM(eps=0.1), "pgd": PGD(eps=0.15, steps=3), "l2": BIM(eps=0.5, norm="l2"), "least": Shortest()}
    frame = evaluate(net, (x, y), attacks, grid={"linf": [0.05, 0.1]}, knowledge=("adaptive", "greybox")).to_frame()
    assert list(frame.columns) == list(CONTRACT)
    kinds = {name: "str" if str(t) in ("str", "object", "string") else str(t) for name, t in frame.dtypes.items()}
    assert kinds == CONTRACT
    budgets = {"fast": [0.05, 0.1], "pgd": [0.05, 0.1, 0.15], "l2": [0.5], "least": [np.nan]}
    for knowledge in ("adaptive", "greybox"):
        for attack, expected in budgets.items():
            rows = frame[(frame["attack"] == attack) & (frame["knowledge"] == knowledge)]
            np.testing.assert_array_equal(rows.groupby("eps", dropna=False).size(), [40] * len(expected))
            np.testing.assert_array_equal(np.sort(rows["eps"].unique()), expected)
    assert not frame.duplicated(["index", "attack", "knowledge", "eps"]).any()
    assert set(frame.loc[frame["attack"] == "l2", "norm"]) == {"l2"}
    np.testing.assert_array_equal(frame.drop_duplicates("index")["label"], y)


@pytest.mark.parametrize("own", [0.03, 0.13, 0.27])
@pytest.mark.parametrize("make", [FGSM, lambda eps: BIM(eps=eps, steps=4), lambda eps: PGD(eps=eps, steps=8)])
def test_the_least_breaking_budget_of_a_linear_net_is_the_closed_form(linear: Any, make: Any, own: float) -> None:
    net, x, y, reach = linear
    result = evaluate(net, (x, y), {"attack": make(own)}, grid={"linf": GRID})
    expected = [min((e for e in GRID if e > d), default=np.inf) for d in reach.tolist()]
    np.testing.assert_array_equal(least_budget(result.to_frame(), "attack"), expected)
    assert len(set(expected)) > 6  # a search that had something to find
    for eps in GRID:
        assert result.accuracy(eps=eps) == (reach.numpy() > eps).mean()


def test_a_minimal_attack_has_a_distance_for_every_example(linear: Any) -> None:
    net, x, y, reach = linear
    result = evaluate(net, (x, y), {"least": Shortest()})
    np.testing.assert_allclose(result.least_distances(distance="linf"), reach, rtol=2e-4)
    frame = result.to_frame()
    assert frame["eps"].isna().all()
    assert frame["success"].all()
    np.testing.assert_array_equal(frame["prediction"], 1 - y)


@pytest.mark.parametrize("attack", [FGSM(eps=0.1), PGD(eps=0.1, steps=5)])
def test_the_search_agrees_with_attacking_at_every_budget(net: nn.Module, digits: Digits, attack: Any) -> None:
    x, y = digits
    grid = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
    index = torch.arange(len(x))
    result = evaluate(net, (x, y), {"attack": attack}, grid={"linf": grid}, seed=4)
    frame = result.to_frame()
    broken = torch.zeros(len(x), dtype=torch.bool)
    for eps in grid:
        single = attack.run(net, x, y, index=index, seed=4, eps=eps)
        broken = broken | single.success
        swept = torch.tensor(frame.loc[frame["eps"] == eps, "success"].tolist())
        assert (swept == broken).float().mean() >= 0.97
        if eps == attack.eps:  # the quoted budget is attacked in full
            assert torch.equal(swept, swept | single.success)
            assert result.accuracy(eps=eps) <= 1 - single.success.double().mean() + 1e-9


def test_success_only_grows_with_the_budget_and_agrees_with_the_distances(net: nn.Module, digits: Digits) -> None:
    grid = [0.02, 0.05, 0.08, 0.1, 0.2, 0.3]
    result = evaluate(net, digits, [FGSM(eps=0.3), PGD(eps=0.2, steps=20)], grid={"linf": grid})
    for attack in result.attacks:
        rows = result.to_frame().query("attack == @attack")
        by_budget = rows.pivot(index="index", columns="eps", values="success").to_numpy()
        assert (by_budget[:, 1:] >= by_budget[:, :-1]).all()
        assert by_budget[:, 0].mean() < by_budget[:, -1].mean()
        for k, eps in enumerate(grid):
            assert result.accuracy(attack=attack, eps=eps) == (~by_budget[:, k]).mean()
        within = rows[rows["success"]]
        assert (within["linf"] <= within["eps"] + 1e-6).all()


def test_passes_add_up_to_what_the_model_saw(net: nn.Module, digits: Digits, counting: Any) -> None:
    x, y = digits[0][:60], digits[1][:60]
    model = counting(net)
    attacks = [FGSM(eps=0.05), PGD(eps=0.1, steps=5, restarts=2)]
    result = evaluate(model, (x, y), attacks, grid={"linf": [0.02, 0.05, 0.2]}, batch_size=25)
    frame = result.to_frame()
    # Beside the attacks, once a batch: clean predictions, the check for randomness (of half of it, and
    # eight times of two images), and for a gradient.
    forwards, backwards = model.forwards - 60 - (13 + 13 + 5) - 3 * 8 * 2 - 3, model.backwards - 3
    assert frame["forwards"].sum() == forwards
    assert frame["backwards"].sum() == backwards > 0
    both = sum(result.passes(attack) for attack in result.attacks)
    assert both == pytest.approx((forwards + backwards) / 60)
    at = [result.passes("fgsm", eps=eps) for eps in result.budgets("fgsm")]
    assert sum(at) == pytest.approx(result.passes("fgsm"))


def test_the_search_costs_less_than_every_budget(net: nn.Module, digits: Digits, counting: Any) -> None:
    attack = BIM(eps=0.3, steps=10)
    grid = np.linspace(0.02, 0.3, 15).round(2).tolist()
    swept, brute, few = counting(net), counting(net), (digits[0][:60], digits[1][:60])
    evaluate(swept, few, [attack], grid={"linf": grid})
    for eps in grid:
        attack.run(brute, *few, eps=eps)
    assert swept.forwards + swept.backwards < 0.5 * (brute.forwards + brute.backwards)


def test_budgets_that_hold_a_known_adversarial_example_are_not_attacked(net: nn.Module, digits: Digits) -> None:
    attack = BIM(eps=0.3, steps=30)
    grid = [0.05, 0.1, 0.15, 0.2, 0.25]
    frame = evaluate(net, digits, [attack], grid={"linf": grid}, seed=6).to_frame()
    first = attack.run(net, *digits, index=torch.arange(200), seed=6)
    reach = torch.where(first.success, first.distance, torch.inf).numpy()[frame["index"]]
    known = frame[frame["clean"] & (reach <= frame["eps"]) & (frame["eps"] < 0.3)]
    assert len(known) > 50
    assert known["success"].all()
    assert (known["forwards"] == 0).all()


def test_the_misclassified_are_broken_without_an_attack(net: nn.Module, digits: Digits, linear: Any) -> None:
    x, y = digits[0][:50], digits[1][:50].clone()
    with torch.no_grad():
        given = net(x).argmax(1)
    y[:7] = (given[:7] + 1) % 10
    frame = evaluate(net, (x, y), [FGSM(eps=0.01), PGD(eps=0.02, steps=2)], grid={"linf": [0.01]}).to_frame()
    np.testing.assert_array_equal(frame["clean"], (given == y).numpy()[frame["index"]])
    wrong = frame[~frame["clean"]]
    assert set(range(7)) <= set(wrong["index"])
    assert wrong["success"].all()
    assert (wrong[["l0", "l1", "l2", "linf", "forwards", "backwards"]] == 0).all(axis=None)
    np.testing.assert_array_equal(wrong["prediction"], given.numpy()[wrong["index"]])
    # Minimal attacks skip them too.
    linear_net, points, classes, _ = linear
    least = evaluate(linear_net, (points, 1 - classes), [Shortest()]).to_frame()
    assert (least[["linf", "forwards", "backwards"]] == 0).all(axis=None)
    assert least["success"].all()


@pytest.mark.faults
def test_logits_that_are_not_finite_classify_nothing(linear: Any) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), float("nan"), dtype=x.dtype) + 0 * x.flatten(1)[:, :2]

    _, x, _, _ = linear
    for attack in (FGSM(eps=0.1), Shortest()):
        result = evaluate(Failing(), (x, torch.zeros(40, dtype=torch.int64)), [attack])
        assert result.clean_accuracy == 0
        assert result.worst_case(eps=0.1) == 0
        assert (result.to_frame()["prediction"] == -1).all()


@pytest.mark.faults
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_net_that_fails_inside_the_ball_is_not_robust(
    value: float, net: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    """Right on every image; no class wherever many pixels have changed faintly."""
    x, y = digits[0][:12], digits[1][:12]

    class Failing(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            clean = torch.cdist(z.detach().flatten(1), x.flatten(1)).argmin(1)
            faint = ((z.detach() - x[clean]).abs() > 1e-4).flatten(1).sum(1, keepdim=True) > 20
            right = 9.0 * torch.nn.functional.one_hot(y[clean], 10)
            return torch.where(faint, value, right + 0.01 * net(z))

    assert evaluate(Failing(), (x, y), [WorstCase(eps=0.1), DDN(steps=5)]).accuracy(eps=0.1) == 0
    attacks = [PGD(eps=0.1, steps=2), Square(eps=0.1, queries=5)]
    given: Any = {"knowledge": ("greybox", "adaptive", "blackbox"), "grid": {"linf": [0.05]}, "substitute": net}
    result = evaluate(Failing(), (x, y), attacks, **given)
    assert result.clean_accuracy == 1
    assert result.worst_case(eps=0.1) == 0
    for name, known in result.runs:
        rows = result.to_frame().query("attack == @name and knowledge == @known")
        assert rows["success"].all(), (name, known)
        assert (rows["prediction"] == -1).all()
    result.save(tmp_path)
    assert Evaluation.load(tmp_path).digest == result.digest


def test_greybox_is_crafted_on_the_undefended_net_alone(net: nn.Module, digits: Digits, rounding: Any) -> None:
    x, y = digits[0][:80], digits[1][:80]
    defended, attack = rounding(net), PGD(eps=0.3, steps=10)
    result = evaluate(defended, (x, y), [attack], knowledge=("greybox", "adaptive"), seed=2)
    assert result.runs == [("pgd", "greybox"), ("pgd", "adaptive")]
    frame = result.to_frame()
    with torch.no_grad():
        clean = defended(x).argmax(1) == y
        expected = Transfer(attack, net).run(defended, x, y, index=torch.arange(80), seed=2)
        on_the_net = net(expected.x_adv).argmax(1)
    rows = frame[frame["knowledge"] == "greybox"].reset_index(drop=True)
    np.testing.assert_array_equal(rows["success"], expected.success)
    np.testing.assert_array_equal(rows["prediction"][clean.numpy()], expected.prediction[clean])
    np.testing.assert_array_equal(rows["forwards"][clean.numpy()], expected.forwards[clean])
    assert rows["success"].mean() < (on_the_net != y).float().mean() - 0.2  # far more succeed on the undefended net
    # Attacks run to their end: points that stop at the undefended net's first mistake fool the defense less often.
    stopped = attack.run(net, x, y, index=torch.arange(80), seed=2).x_adv
    assert rows["success"].sum() > int((defended(stopped).argmax(1) != y).sum())
    adaptive = result.accuracy(eps=0.3)
    assert adaptive < result.accuracy(eps=0.3, knowledge="greybox")


def test_labels_of_any_integer_type_give_the_same_table(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:5], digits[1][:5]
    attack = PGD(eps=0.001, steps=130)
    expected = evaluate(net, (x, y), [attack]).to_frame()
    assert expected["forwards"].max() > 127
    for kind in (torch.int8, torch.uint8, torch.int32):
        pd.testing.assert_frame_equal(evaluate(net, (x, y.to(kind)), [attack]).to_frame(), expected)


def test_an_attacks_time_is_divided_by_the_passes_of_each_row(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:20], digits[1][:20].clone()
    y[:3] = (y[:3] + 1) % 10  # misclassified: not attacked
    sweep = Sweep([PGD(eps=0.1, steps=3)], {"linf": [0.02, 0.2]})
    columns = sweep.attack_batch(net, x, y, torch.arange(20))
    passes, seconds = columns["forwards"] + columns["backwards"], columns["seconds"]
    assert (passes == 0).any()
    assert len({*passes.tolist()}) > 2
    np.testing.assert_allclose(seconds, seconds.sum() * passes / passes.sum())
    none = sweep.attack_batch(net, x[:3], y[:3], torch.arange(3))
    assert len({*none["seconds"].tolist()}) == 1


def test_a_list_of_attacks_is_named_after_their_classes(linear: Any) -> None:
    net, x, y, _ = linear
    sweep = Sweep([FGSM(eps=0.1), FGSM(eps=0.2), BIM(eps=0.1)])
    result = as_evaluation([sweep.attack_batch(net, x, y, torch.arange(40) + 7)], sweep.meta())
    assert result.attacks == ["fgsm", "fgsm-2", "bim"]
    assert result.to_frame()["index"].min() == 7
    assert result.meta["attacks"]["fgsm-2"] == str(FGSM(eps=0.2))
    assert result.meta["seed"] == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"attacks": []}, "at least one attack"),
        ({"attacks": {}}, "at least one attack"),
        ({"knowledge": ("whitebox",)}, r"knowledge must be one of greybox, adaptive, blackbox, got 'whitebox'"),
        ({"knowledge": ()}, "knowledge must name at least one"),
        ({"grid": {"linf": [0.1, 8]}}, r"grid\.linf must be in \(0, 1\].*8/255"),
        ({"grid": {"linf": [0.0]}}, "positive and finite"),
        ({"grid": {"l2": [float("inf")]}}, "positive and finite"),
        ({"grid": {"Linf": [0.1]}}, "norm must be one of"),
        ({"grid": {"linf": "8/255"}}, r"grid\.linf must be a number .* got '8/255'; write it without quotes: 8 / 255"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sweep(**{"attacks": [FGSM()], **arguments})
