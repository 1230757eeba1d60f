"""Accuracies, curves and files of an Evaluation, on tables small enough to count by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD
from robustlit.evaluation import evaluate
from robustlit.results import Evaluation, EvaluationError, wilson_interval

Make = Callable[..., Evaluation]


@pytest.fixture
def result(table: Make) -> Evaluation:
    """Four examples; example 3 is misclassified. fgsm ran at .1 and .3, pgd at .3 only."""
    fgsm = {0: (None, 0.3), 1: (0.1, 0.1), 2: (None, None), 3: (0.0, 0.0)}
    rows = [(k, "fgsm", eps, at) for k, each in fgsm.items() for eps, at in zip((0.1, 0.3), each, strict=True)]
    rows += [(k, "pgd", 0.3, at) for k, at in enumerate((0.05, 0.2, 0.25, 0.0))]
    return table(rows, meta={"seed": 3})


def test_accuracies_are_those_counted_by_hand(result: Evaluation) -> None:
    assert result.n == 4
    assert result.attacks == ["fgsm", "pgd"]
    assert result.budgets("fgsm") == [0.1, 0.3]
    assert result.norm_of("pgd") == "linf"
    assert result.clean_accuracy == 0.75
    assert result.accuracy(attack="fgsm", eps=0.1) == 0.5
    assert result.accuracy(attack="fgsm", eps=0.3) == 0.25
    assert result.accuracy(attack="pgd", eps=0.3) == 0
    result.to_frame()["success"] = False  # in a copy
    at = result.accuracy(attack="fgsm", eps=0.3)
    assert (at.correct, at.n, at.interval) == (1, 4, wilson_interval(1, 4))


def test_the_worst_case_is_per_example_over_all_attacks(result: Evaluation) -> None:
    # At .1 only fgsm was run, but the point that pgd found for example 0 at .05 counts there too.
    assert result.worst_case(eps=0.1) == 0.25
    assert result.worst_case(eps=0.3) == 0
    assert result.worst_case(eps=0.1) < min(result.accuracy(attack="fgsm", eps=0.1), 0.5)


def test_a_distance_beyond_eps_by_rounding_counts_as_broken(table: Make) -> None:
    result = table([(0, "fgsm", 0.3, 0.3 + 3e-8), (1, "fgsm", 0.3, None)])
    assert result.accuracy(eps=0.3) == 0.5
    assert result.curve(distance="linf", at=[0.29, 0.3])["accuracy"].tolist() == [1.0, 0.5]
    assert result.accuracy(eps=0.3 + 1e-9) == 0.5  # a budget that differs by rounding is the same


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"eps": 0.2}, r"linf eps 0\.2;.*fgsm: linf 0\.1, 0\.3; pgd: linf 0\.3"),
        ({"eps": 0.3, "norm": "l2"}, r"l2 eps 0\.3"),
        ({"eps": 0.1, "attack": "pgd"}, r"pgd: linf 0\.3\)"),
        ({"eps": 0.3, "attack": "apgd"}, r"no attack named 'apgd'.*fgsm, pgd"),
        ({"eps": 0.3, "knowledge": "greybox"}, "knowledge 'greybox'; there is adaptive"),
    ],
)
def test_an_accuracy_that_was_not_measured_is_refused(result: Evaluation, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        result.accuracy(**asked)


def test_a_minimal_attack_covers_every_budget_of_its_norm(table: Make) -> None:
    minimal = table([(0, "deepfool", float("nan"), 0.2), (1, "deepfool", float("nan"), 0.4)])
    assert minimal.budgets("deepfool") == []
    assert minimal.accuracy(eps=0.3) == 0.5
    with pytest.raises(EvaluationError, match="deepfool: linf any"):
        minimal.accuracy(eps=0.3, norm="l2")
    with pytest.raises(EvaluationError, match="l0, l1, l2, linf"):
        minimal.curve(distance="L2")


def test_kinds_of_knowledge_are_separate(table: Make) -> None:
    strong = table([(0, "pgd", 0.3, 0.2), (1, "pgd", 0.3, 0.25)]).to_frame()
    weak = table([(0, "pgd", 0.3, None), (1, "pgd", 0.3, 0.1)], knowledge="greybox").to_frame()
    result = Evaluation(pd.concat([strong, weak]))
    assert result.runs == [("pgd", "adaptive"), ("pgd", "greybox")]
    assert result.accuracy(eps=0.3) == 0
    assert result.accuracy(eps=0.3, knowledge="greybox") == 0.5
    assert result.least_distances(distance="linf").tolist() == [0.2, 0.25]
    assert result.least_distances("pgd", distance="linf", knowledge="greybox").tolist() == [np.inf, 0.1]


def test_a_failed_attempt_does_not_count_as_a_distance(table: Make) -> None:
    result = table([(5, "pgd", 0.1, None), (5, "pgd", 0.3, 0.3), (2, "pgd", 0.1, None), (2, "pgd", 0.3, None)])
    assert result.least_distances(distance="linf").tolist() == [np.inf, 0.3]  # examples 2 and 5, ascending
    assert result.least_distances(distance="l2").tolist() == [np.inf, 6.0]
    assert result.n == 2


def test_the_curve_is_the_count_at_each_distance_and_never_rises(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    result = evaluate(net, digits, [FGSM(eps=0.1), PGD(eps=0.2, steps=5)], grid={"linf": [0.05, 0.3]})
    frame = result.to_frame()
    for attack in (None, "fgsm", "pgd"):
        for distance, end in (("l2", 8.0), ("linf", 0.35), ("l1", 200.0), ("l0", 784.0)):
            rows = frame if attack is None else frame[frame["attack"] == attack]
            broken = rows[rows["success"]]
            grid = np.linspace(0, end, 23)
            curve = result.curve(attack, distance=distance, at=grid)
            counted = [1 - broken.loc[broken[distance] <= d + 1e-6, "index"].nunique() / 200 for d in grid]
            np.testing.assert_allclose(curve["accuracy"], counted, atol=1e-12)
            np.testing.assert_array_equal(curve["distance"], grid)
            whole = result.curve(attack, distance=distance)
            assert (whole["accuracy"].diff().dropna() <= 0).all()
            assert (whole["distance"].diff().dropna() > 0).all()
            assert whole["distance"].iloc[0] == 0
            assert whole["accuracy"].iloc[0] == result.clean_accuracy
            assert whole["accuracy"].iloc[-1] == 1 - broken["index"].nunique() / 200
            for row in whole.itertuples():
                assert (row.low, row.high) == wilson_interval(round(row.accuracy * 200), 200)
    for eps in (0.05, 0.1, 0.3):
        read = result.curve("fgsm", distance="linf", at=[eps])["accuracy"].iloc[0]
        assert read == result.accuracy(attack="fgsm", eps=eps)


def test_the_median_distance_is_over_the_correctly_classified(table: Make, result: Evaluation) -> None:
    rows: list[tuple[int, str, float, float | None]] = [(k, "pgd", 0.5, 0.1 * (k + 1)) for k in range(3)]
    wrong: list[tuple[int, str, float, float | None]] = [(k, "pgd", 0.5, 0.0) for k in range(3, 8)]
    assert table(rows + wrong).median_distance("pgd", distance="linf") == pytest.approx(0.2)
    assert table(rows + wrong).median_distance() == pytest.approx(4.0)  # in L2
    unbroken: list[tuple[int, str, float, float | None]] = [(k, "pgd", 0.5, None) for k in range(8, 12)]
    assert table(rows + unbroken).median_distance("pgd") == float("inf")
    assert np.isnan(table(wrong).median_distance("pgd"))
    assert result.median_distance("fgsm", distance="linf") == pytest.approx(0.3)
    assert result.median_distance(distance="linf") == pytest.approx(0.1)  # the nearest of all attacks


def test_saving_and_loading_is_exact(net: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    result = evaluate(net, (digits[0][:30], digits[1][:30]), [FGSM(eps=0.1), PGD(eps=0.2, steps=3)])
    folder = result.save(tmp_path / "run" / "evaluation")
    for given in (folder, tmp_path / "run", str(tmp_path / "run")):
        loaded = Evaluation.load(given)
        pd.testing.assert_frame_equal(loaded.to_frame(), result.to_frame(), check_exact=True)
        assert loaded.meta == result.meta
    assert {path.name for path in folder.iterdir()} == {"examples.parquet", "evaluation.json"}
    stored = json.loads((folder / "evaluation.json").read_text())
    assert (stored["complete"], stored["table"], result.complete, result.caveat) == (True, 1, True, "")
    interrupted = Evaluation(result.to_frame(), {**result.meta, "complete": False, "meant": 50})
    cut = Evaluation.load(interrupted.save(tmp_path / "cut"))
    assert (cut.complete, cut.meant, cut.caveat) == (False, 50, "cut short, of 50")


def test_a_table_alone_is_read_with_a_warning(result: Evaluation, tmp_path: Path) -> None:
    folder = result.save(tmp_path)
    (folder / "evaluation.json").unlink()
    with pytest.warns(UserWarning, match="not known whether the evaluation is complete") as caught:
        found = Evaluation.load(folder)
    assert caught[0].filename == __file__
    assert found.complete is None
    assert found.caveat == "not known whether complete"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"table": 2}, "table is of version 2, and this robustlit reads up to 1: update robustlit"),
        ({"table": "one"}, "version 1 or more, got 'one'"),
        ({"complete": "yes"}, "complete cannot be 'yes'"),
        ({"seconds": {"pgd": "long"}}, "seconds must hold a number for each attack"),
        ({"seconds": [1.0]}, "seconds must hold a number for each attack"),
        ({"seconds": {"pgd": float("nan")}}, "seconds must hold a number for each attack"),
        ([], "no JSON object"),
    ],
)
def test_metadata_of_another_version_is_refused(result: Evaluation, tmp_path: Path, stored: Any, message: str) -> None:
    folder = result.save(tmp_path)
    (folder / "evaluation.json").write_text(json.dumps(stored))
    with pytest.raises(EvaluationError, match=message):
        Evaluation.load(folder)
    (folder / "evaluation.json").write_text('{"complete": true}')  # as the first version wrote it
    assert Evaluation.load(folder).complete


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "json"])
def test_missing_and_damaged_files_are_refused(result: Evaluation, tmp_path: Path, damage: str) -> None:
    folder = result.save(tmp_path)
    file = folder / ("evaluation.json" if damage == "json" else "examples.parquet")
    if damage == "missing":
        file.unlink()
    else:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"a,b\n1,2\n", "json": b"{"}[damage])
    expected = "there is no examples.parquet" if damage == "missing" else "cannot read the evaluation"
    with pytest.raises(EvaluationError, match=expected) as caught:
        Evaluation.load(folder)
    assert str(folder) in str(caught.value)


def test_a_table_without_its_columns_is_refused(result: Evaluation, tmp_path: Path) -> None:
    frame = result.to_frame().drop(columns=["linf", "clean"])
    with pytest.raises(EvaluationError, match="clean, linf"):
        Evaluation(frame)
    folder = result.save(tmp_path)
    for damaged, message in (
        (frame, r"clean, linf; .* evaluate the checkpoint again \(robustlit evaluate"),
        (result.to_frame().head(0), "table of examples is empty"),
        (result.to_frame().astype({"success": str}), "'success' must hold bool, it holds"),
    ):
        damaged.to_parquet(folder / "examples.parquet")
        with pytest.raises(EvaluationError, match=message):
            Evaluation.load(folder)


# Tables written before WorstCase's attack was renamed


@pytest.fixture
def former(table: Make, tmp_path: Path) -> Path:
    """The folder of a table with the attack "ensemble"."""
    rows = [(k, name, 0.3, 0.2 if k else None) for name in ("ensemble", "ensemble-2", "pgd") for k in range(3)]
    meta = {"attacks": {"ensemble": "WorstCase(eps=0.3)", "ensemble-2": "WorstCase(eps=0.3, rounds=2)", "pgd": "PGD()"}}
    return table(rows, meta=meta).save(tmp_path / "former")


def test_the_former_name_of_worst_case_is_read_as_the_current_one(former: Path, tmp_path: Path) -> None:
    result = Evaluation.load(former)
    assert result.attacks == list(result.meta["attacks"]) == ["worst_case", "worst_case-2", "pgd"]
    assert result.digest == Evaluation(pd.read_parquet(former / "examples.parquet")).digest
    for ask in (
        lambda name: result.accuracy(attack=name, eps=0.3),
        lambda name: result.curve(name)["accuracy"].tolist(),
        lambda name: (result.budgets(name), result.norm_of(name), result.passes(name)),
    ):
        with pytest.warns(DeprecationWarning, match="'ensemble' is now called 'worst_case'"):
            found = ask("ensemble")
        assert found == ask("worst_case")
    again = Evaluation.load(result.save(tmp_path / "again"))
    pd.testing.assert_frame_equal(again.to_frame(), result.to_frame())


@pytest.mark.parametrize(("old", "new"), [("WorstCase(eps=0.3)", "PGD(eps=0.3)"), ("ensemble-2", "worst_case")])
def test_another_attack_called_ensemble_keeps_its_name(former: Path, old: str, new: str) -> None:
    meta = (former / "evaluation.json").read_text().replace(old, new)
    (former / "evaluation.json").write_text(meta)
    frame = pd.read_parquet(former / "examples.parquet")
    frame["attack"] = frame["attack"].replace(old, new)
    frame.to_parquet(former / "examples.parquet")
    assert "ensemble" in Evaluation.load(former).attacks
