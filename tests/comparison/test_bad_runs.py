"""Runs that cannot be compared are refused with the way out; those that can, in part, are marked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import bits, data_of

from robustlit.comparison import ComparisonError, compare
from robustlit.results import Evaluation

Make = Callable[..., Path]


def caveats_of(folders: list[Path], **given: Any) -> str:
    return "\n".join(data_of(compare(folders, **given))["caveats"])


# Other data, other examples


def test_other_data_sets_are_refused_even_to_intersect(make: Make) -> None:
    folders = [make("a"), make("b", data="CIFAR10")]
    for intersect in (False, True):
        with pytest.raises(ComparisonError, match=r"different data sets: .*a of MNIST, .*b of CIFAR10"):
            compare(folders, intersect=intersect)


def test_one_number_for_two_images_is_refused(make: Make, made: Callable[..., Evaluation], labels: np.ndarray) -> None:
    other = labels[:40].copy()
    other[7] = (other[7] + 1) % 10
    folders = [make("a"), make("b", evaluation=made(np.arange(40), other))]
    said = f"example 7 is of class {labels[7]} in .*a and of class {other[7]} in .*b"
    with pytest.raises(ComparisonError, match=said):
        compare(folders, intersect=True)


def test_other_excerpts_are_refused_or_intersected_and_said(make: Make) -> None:
    folders = [make("a", range(50), seed=1), make("b", range(20, 60), seed=2)]
    with pytest.raises(ComparisonError, match=r"a on 50, .*b on 40, 30 of them the same; add --intersect") as refused:
        compare(folders)
    assert "data.test_size=40" in str(refused.value)
    with pytest.raises(ComparisonError, match="small on 20, 20 of them the same"):  # fewer, and not for being cut short
        compare([folders[0], make("small", range(20))])
    values = data_of(compare(folders, intersect=True))
    assert values["index"] == list(range(20, 50))
    assert values["intersected"] == 60
    assert "of the 30 that every run holds, of 60 in all" in values["caveats"][0]
    for run, folder in zip(values["runs"], folders, strict=True):
        table = Evaluation.load(folder).table
        kept = Evaluation(table[table["index"].between(20, 49)])
        assert run["worst"]["correct"] == kept.worst_case(eps=0.3).correct
        assert run["clean"] == [kept.clean_accuracy.correct, 30]


def test_intersecting_equal_excerpts_changes_nothing(make: Make) -> None:
    folders = [make("a", seed=1), make("b", seed=2)]
    assert compare(folders, intersect=True) == compare(folders)


def test_nothing_in_common(make: Make) -> None:
    with pytest.raises(ComparisonError, match="no example is in every one"):
        compare([make("a", range(10)), make("b", range(10, 20))], intersect=True)


def test_a_run_that_was_cut_short_is_marked(make: Make) -> None:
    folders = [make("a", range(40)), make("cut", range(25), complete=False)]
    values = data_of(compare(folders))
    assert values["runs"][1]["complete"] is False
    assert values["runs"][1]["clean"][1] == 25
    tested = bits(values["runs"][1]["mistakes"]["tested"], 40)
    assert tested.tolist() == [True] * 25 + [False] * 15
    assert "evaluation of cut was cut short: its figures are of 25 of 40 examples" in "\n".join(values["caveats"])
    elsewhere = make("elsewhere", range(30, 50), complete=False)
    with pytest.raises(ComparisonError, match="--intersect"):
        compare([folders[0], elsewhere])


# Not attacked, not a run


def test_a_run_that_was_not_attacked_is_listed_and_marked(make: Make) -> None:
    values = data_of(compare([make("a"), make("plain", evaluation=None)]))
    plain = values["runs"][1]
    assert (plain["attacked"], plain["clean"], plain["worst"], plain["mistakes"]) == (False, [38, 40], None, None)
    assert "plain: trained but not attacked" in "\n".join(values["caveats"])


def test_there_must_be_one_that_was_attacked(make: Make) -> None:
    with pytest.raises(ComparisonError, match=r"none of these runs was attacked \(a, b\); .*robustlit evaluate .*a"):
        compare([make("a", evaluation=None), make("b", evaluation=None)])


def test_folders_that_are_no_run(make: Make, tmp_path: Path) -> None:
    run, foreign, unfinished = make("a"), tmp_path / "foreign", tmp_path / "unfinished"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "config.yaml").write_text("eps: 0.3\n")
    for folder, said in (
        (tmp_path / "nowhere", "there is no folder .*nowhere; give run folders"),
        (foreign, r"foreign is no run of robustlit: it has neither results\.json nor evaluation/examples\.parquet"),
        (unfinished, "unfinished was not finished: .*robustlit evaluate .*unfinished"),
        (run / "results.json", r"results\.json is a file; give the run's folder"),
    ):
        with pytest.raises(ComparisonError, match=said):
            compare([run, folder])


def test_the_same_run_twice(make: Make) -> None:
    run = make("a")
    with pytest.raises(ComparisonError, match=re.escape(f"{run} was given twice; give each run once")):
        compare([run, run])
    for other in (run / ".." / "a", run / "evaluation"):
        with pytest.raises(ComparisonError, match="are one run; give each run once"):
            compare([run, other])
    with pytest.raises(ComparisonError, match="at least one run folder"):
        compare([])
    with pytest.raises(ComparisonError, match="must be a list"):
        compare(str(run))


def test_runs_of_one_name_are_told_apart_by_their_folders(make: Make) -> None:
    values = data_of(compare([make("a", results={"name": "x"}), make("b", results={"name": "x"})]))
    names = [run["name"] for run in values["runs"]]
    assert names[0].startswith("x (")
    assert names[0].endswith("a)")
    assert names[1].endswith("b)")


def test_an_evaluation_saved_from_python_is_a_run(
    make: Make, made: Callable[..., Evaluation], labels: np.ndarray, tmp_path: Path
) -> None:
    saved = made(np.arange(40), labels[:40], seed=7).save(tmp_path / "mine")
    values = data_of(compare([make("a"), saved]))
    mine = values["runs"][1]
    assert (mine["name"], mine["budget"], mine["recipe"]) == ("mine", {"norm": "linf", "eps": 0.4}, None)
    assert mine["worst"] is not None


# Damaged files


def test_a_table_of_another_version(make: Make) -> None:
    run = make("a")
    path = run / "evaluation" / "examples.parquet"
    table = pd.read_parquet(path)

    def written(changed: pd.DataFrame) -> list[Path]:
        changed.to_parquet(path, index=False)
        return [run]

    for changed, said in (
        (table.drop(columns=["knowledge", "l1"]), "lacks the columns knowledge, l1; it is of another version"),
        (table.assign(label="seven"), "the column 'label' must hold int64, it holds"),
        (table.assign(success=table["success"].astype(float)), "the column 'success' must hold bool, it holds float64"),
        (table.assign(knowledge="whitebox"), "knowledge must be among greybox, adaptive, blackbox, got 'whitebox'"),
        (table.assign(norm="l7"), "norm must be among .*, got 'l7'"),
        (table.iloc[:0], "the table of examples is empty"),
        (table.assign(label=np.arange(len(table))), "one example has two labels"),
    ):
        with pytest.raises(ComparisonError, match=said) as refused:
            compare(written(changed))
        assert str(run) in str(refused.value)
        assert "again (robustlit evaluate " in str(refused.value)
        assert "or leave " in str(refused.value)
    with pytest.raises(ComparisonError, match=r"attack it again \(robustlit evaluate CHECKPOINT\), or leave it out"):
        compare(written(table.assign(norm="l7")))
    (run / "checkpoints").mkdir()  # those of an evaluation are elsewhere
    with pytest.raises(ComparisonError, match=f"attack it again .robustlit evaluate {run}., or leave it out"):
        compare([run])
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ComparisonError, match="cannot read the evaluation"):
        compare([run])


@pytest.mark.parametrize(
    ("file", "held", "said"),
    [
        ("results.json", '{"name": ', "results.json is damaged"),
        ("results.json", "[1, 2]", "results.json is not of robustlit: it holds no JSON object"),
        ("config.yaml", "a: [1,", "config.yaml is damaged"),
        ("config.yaml", "a: &a [*a]", "config.yaml is damaged"),
        ("config.yaml", "just a line", "config.yaml is not of robustlit"),
        ("evaluation/evaluation.json", "{", "cannot read the evaluation"),
        ("evaluation/evaluation.json", "[]", "evaluation.json is not of robustlit"),
        ("evaluation/verdict.json", '{"checks": 3}', "verdict.json is no verdict"),
    ],
)
def test_a_damaged_file_is_named(make: Make, file: str, held: str, said: str) -> None:
    run = make("a")
    (run / file).write_text(held)
    with pytest.raises(ComparisonError, match=said):
        compare([run])


# Not measured alike


def test_unlike_budgets_attacks_and_settings_are_said(make: Make) -> None:
    a = make("a", meta=1)
    b = make("b", config={"eps": 0.1}, attacks={"pgd": ("linf", (0.1, 0.3))})
    meta = b / "evaluation" / "evaluation.json"
    meta.write_text(json.dumps({"attacks": {"pgd": "PGD(steps=100)"}, "complete": True}))
    said = caveats_of([a, b])
    assert "quoted at different budgets: L∞ 0.3 (a); L∞ 0.1 (b)." in said
    assert "rest on different attacks, and fewer attacks flatter: fgsm, pgd (a); pgd (b)." in said
    assert "pgd was not set alike: pgd() (a); PGD(steps=100) (b)." in said
    assert "b: no attack searched L2; over it the worst case is only an upper bound (≤)." in said
    assert (
        "over L∞ are exact at different distances, and upper bounds (≤) elsewhere: 0.1, 0.3, 0.4 (a); 0.1, 0.3 (b)."
        in said
    )
    assert caveats_of([a, make("c", seed=3)]) == ""


def test_what_a_less_informed_attacker_broke_is_said(make: Make) -> None:
    both = make("both", knowledge=("adaptive", "blackbox"), seed=5)
    evaluation = Evaluation.load(both)
    broken = {
        k: evaluation.least_distances(distance="linf", knowledge=k) <= 0.3 + 1e-6 for k in ("adaptive", "blackbox")
    }
    more = int((broken["blackbox"] & ~broken["adaptive"]).sum())
    assert more > 1
    said = f"both: blackbox attacks broke {more} examples that the adaptive ones missed; they count in its worst case"
    assert said in caveats_of([both])
    grey = make("grey", knowledge=("greybox",))
    assert "grey: no adaptive attack was run. Its worst case is greybox: it flatters a defense." in caveats_of([grey])
    assert data_of(compare([grey]))["runs"][0]["worst"]["knowledge"] == "greybox"
    less = make("less", knowledge=("greybox", "blackbox"), seed=5)
    assert "the greybox ones missed; its greybox figure is too high by at least that" in caveats_of([less])


def test_a_table_without_its_description_is_compared_and_marked(make: Make) -> None:
    run = make("a")
    (run / "evaluation" / "evaluation.json").unlink()
    values = data_of(compare([run, make("b")]))
    assert (values["runs"][0]["complete"], values["runs"][1]["complete"]) == (None, True)
    assert "a: evaluation.json is missing; it is not known whether the evaluation is whole." in values["caveats"]
    fewer = make("fewer", range(20))
    (fewer / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(ComparisonError, match="fewer on 20, 20 of them the same"):  # not known to be cut short
        compare([run, fewer])


def test_a_budget_that_was_not_attacked_is_not_quoted(make: Make) -> None:
    folder = make("a", config={"eps": 0.2})
    values = data_of(compare([folder]))
    assert values["runs"][0]["worst"] is None
    assert values["runs"][0]["mistakes"]["worst"] is None
    assert "a: nothing was attacked at L∞ 0.2" in "\n".join(values["caveats"])


def test_data_that_were_prepared_differently_are_said(make: Make) -> None:
    target = {"_target_": "robustlit.data.MNIST"}
    a, b = (
        make("a", config={"data": {**target, "image_size": 28}}),
        make("b", config={"data": {**target, "image_size": 32}}),
    )
    assert "The data differ in image_size: 28 (a); 32 (b)." in caveats_of([a, b])
