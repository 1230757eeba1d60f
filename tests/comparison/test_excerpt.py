"""Runs on different test images are refused with the way out, or compared on the images that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import caveats_of, data_of, judge, made_evaluation

from robustlit.comparison import ComparisonError, compare
from robustlit.comparison.measures import unmasked
from robustlit.results import Evaluation

Make = Callable[..., Path]


@pytest.mark.parametrize("intersect", [False, True])
def test_other_data_sets_are_refused(make: Make, intersect: bool) -> None:
    folders = [make("a"), make("b", data="CIFAR10"), make("c", data="SVHN")]
    with pytest.raises(ComparisonError, match=r"different data sets: .*a of MNIST, .*b of CIFAR10"):
        compare(folders, intersect=intersect)


def test_classes_of_other_names_are_refused(make: Make) -> None:
    cats = {"class_names": ["cat", "dog"]}
    folders = [make("a", config=cats), make("b", config=cats), make("c", config={"class_names": None}), make("d")]
    compare(folders)
    folders.append(make("e", config={"class_names": ["car", "dog"]}))
    long = ["class"] * 300
    with pytest.raises(ComparisonError, match="different classes"):
        compare([make("f", config={"class_names": [*long, "x"]}), make("g", config={"class_names": [*long, "y"]})])
    with pytest.raises(ComparisonError, match=r"different classes: .* of 5, "):  # an edited file
        compare([make("h", config={"class_names": 5}), folders[0]])
    with pytest.raises(ComparisonError, match=r"different classes: .*a of .*cat.*, .*e of .*car.*dog"):
        compare(folders)


def test_one_number_for_two_images_is_refused(make: Make, labels: np.ndarray) -> None:
    other = labels[:40].copy()
    other[7] = (other[7] + 1) % 10
    folders = [make("a"), make("b", evaluation=made_evaluation(np.arange(40), other))]
    with pytest.raises(ComparisonError, match=f"7 is of class {labels[7]} in .*a and of class {other[7]} in .*b"):
        compare(folders, intersect=True)


def test_other_examples_are_refused_or_intersected(make: Make) -> None:
    folders = [make("a", range(50), seed=1), make("b", range(20, 60), seed=2)]
    with pytest.raises(ComparisonError, match=r"a on 50, .*b on 40, 30 of them the same; add --intersect") as refused:
        compare(folders)
    assert "data.test_size=40" in str(refused.value)
    with pytest.raises(ComparisonError, match="small on 20, 20 of them the same"):  # fewer, and not for being cut short
        compare([folders[0], make("small", range(20))])
    values = data_of(compare(folders, intersect=True))
    assert values["index"] == list(range(20, 50))
    assert "of the 30 examples that every run has, of 60 in all" in values["caveats"][0]
    for run, folder in zip(values["runs"], folders, strict=True):
        table = Evaluation.load(folder).table
        kept = Evaluation(table[table["index"].between(20, 49)])
        assert run["worst"]["correct"] == kept.worst_case(eps=0.3).correct
        assert run["clean"] == [kept.clean_accuracy.correct, 30]


def test_intersecting_equal_examples_changes_nothing(make: Make) -> None:
    folders = [make("a", seed=1), make("b", seed=2)]
    assert compare(folders, intersect=True) == compare(folders)


def test_nothing_in_common(make: Make) -> None:
    with pytest.raises(ComparisonError, match="no example is in every one"):
        compare([make("a", range(10)), make("b", range(10, 20))], intersect=True)


def test_a_run_that_was_cut_short_is_marked(make: Make) -> None:
    folders = [make("a", range(40)), make("cut", range(25), complete=False)]
    values = data_of(compare(folders))
    assert (values["runs"][1]["complete"], values["runs"][1]["clean"][1]) == (False, 25)
    assert unmasked(values["runs"][1]["mistakes"]["tested"], 40).tolist() == [True] * 25 + [False] * 15
    assert "The evaluation of cut was cut short: its numbers are of 25 of 40 examples." in values["caveats"]
    with pytest.raises(ComparisonError, match="--intersect"):
        compare([folders[0], make("elsewhere", range(30, 50), complete=False)])


def test_a_table_without_its_description_is_not_taken_for_one_cut_short(make: Make) -> None:
    run = make("a")
    (run / "evaluation" / "evaluation.json").unlink()
    values = data_of(compare([run, make("b")]))
    assert (values["runs"][0]["complete"], values["runs"][1]["complete"]) == (None, True)
    assert "a: evaluation.json is missing; it is not known whether the evaluation is complete." in values["caveats"]
    fewer = make("fewer", range(20))
    (fewer / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(ComparisonError, match="fewer on 20, 20 of them the same"):
        compare([run, fewer])


def test_intersected_runs_keep_their_verdicts_and_a_table_that_is_gone_has_none(make: Make) -> None:
    folders = [make("a"), make("b", range(30), seed=1), make("gone", seed=2)]
    for folder in folders:
        judge(folder, of=Evaluation.load(folder))
    (folders[2] / "evaluation" / "examples.parquet").unlink()
    values = data_of(compare(folders, intersect=True))
    assert [run["verdict"] and run["verdict"]["status"] for run in values["runs"]] == ["believable", "believable", None]
    assert "verdicts are on its own examples." in values["caveats"][0]
    assert not any("judged" in note for note in values["caveats"])


def test_at_least_one_run_must_be_attacked(make: Make) -> None:
    folders = [make("a", evaluation=None), make("b", evaluation=None)]
    with pytest.raises(ComparisonError, match=r"none of these runs was attacked \(a, b\); .*robustlit evaluate .*a"):
        compare(folders)
    values = data_of(compare([make("c"), folders[0]]))
    run = values["runs"][1]
    assert (run["attacked"], run["clean"], run["worst"], run["mistakes"]) == (False, [38, 40], None, None)
    assert any("a: trained but not attacked" in note for note in caveats_of(*folders[:1], make("d")))


def test_intersecting_names_the_classes_that_it_loses(make: Make, labels: np.ndarray) -> None:
    one_class = np.flatnonzero(labels == 7)[:12]
    folders = [make("a", range(90), class_names=[f"<digit {k}>" for k in range(10)]), make("b", one_class)]
    lost = [note for note in caveats_of(*folders, intersect=True) if "is of class" in note]
    others = ", ".join(f"<digit {k}>" for k in range(10) if k != 7)
    assert lost == [f"No example that all share is of class {others}, so accuracies here leave them out."]
    assert not any("is of class" in note for note in caveats_of(folders[0], make("c", range(80)), intersect=True))


def test_classes_are_named_on_the_page_where_runs_agree(make: Make) -> None:
    names = ["</script>", *[f"digit {k}" for k in range(1, 10)]]
    folders = [make("a", class_names=names), make("b"), make("c", class_names=names[::-1])]
    assert data_of(compare(folders[:2]))["classes"] == names
    assert data_of(compare(folders))["classes"] is None
