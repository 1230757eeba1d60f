"""Notes on what was not measured alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import caveats_of, data_of, judge, run_of

from robustlit.comparison import compare
from robustlit.results import Evaluation

Make = Callable[..., Path]


def test_different_budgets_attacks_and_settings(make: Make) -> None:
    a = make("a", meta=1)
    b = make("b", config={"eps": 0.1}, attacks={"pgd": ("linf", (0.1, 0.3))})
    meta = b / "evaluation" / "evaluation.json"
    meta.write_text(json.dumps({"attacks": {"pgd": "PGD(steps=100)"}, "complete": True}))
    assert caveats_of(a, b) == [
        "Worst cases are reported at different budgets: L∞ 0.3 (a); L∞ 0.1 (b).",
        "Worst cases rest on different attacks, and fewer attacks overstate robustness: fgsm, pgd (a); pgd (b).",
        "b: no attack searched L2; over it the worst case is only an upper bound (≤).",
        "Worst cases over L∞ are exact at different distances, and upper bounds (≤) elsewhere: 0.1, 0.3, 0.4 (a); "
        "0.1, 0.3 (b).",
        "pgd has different settings: pgd() (a); PGD(steps=100) (b).",
    ]
    assert caveats_of(a, make("c", seed=3)) == []


def test_data_that_were_prepared_differently(make: Make) -> None:
    folders = [
        make(name, config={"data": {"_target_": "robustlit.data.MNIST", "image_size": size, "batch_size": size}})
        for name, size in (("a", 28), ("b", 32))
    ]
    assert caveats_of(*folders) == ["The data differ in image_size: 28 (a); 32 (b)."]


def test_a_less_informed_attacker_broke_more(make: Make) -> None:
    both = make("both", knowledge=("adaptive", "blackbox"), seed=5)
    reach = {k: Evaluation.load(both).least_distances(distance="linf", knowledge=k) for k in ("adaptive", "blackbox")}
    more = int(((reach["blackbox"] <= 0.3 + 1e-6) & (reach["adaptive"] > 0.3 + 1e-6)).sum())
    assert more > 1
    assert caveats_of(both)[0].startswith(
        f"both: blackbox attacks broke {more} examples that the adaptive attacks missed. They count in its worst case"
    )
    less = make("less", knowledge=("greybox", "blackbox"), seed=5)
    assert "that the greybox attacks missed. Its greybox accuracy is too high by at least" in caveats_of(less)[1]


def test_no_adaptive_attack(make: Make) -> None:
    grey = make("grey", knowledge=("greybox",))
    note = "grey: no adaptive attack was run. Its worst case is greybox, which overstates a defense."
    assert caveats_of(grey)[0] == note
    assert run_of(grey)["worst"]["knowledge"] == "greybox"


@pytest.mark.parametrize("order", [("grid", "one"), ("one", "grid")])
def test_only_attacked_budgets_are_reported(make: Make, order: tuple[str, str]) -> None:
    attacks = {"grid": {"pgd": ("linf", (0.1, 0.2, 0.3))}, "one": {"pgd": ("linf", (0.3,))}}
    values = data_of(compare([make(name, config={"eps": 0.2}, attacks=attacks[name]) for name in order]))
    runs = {run["name"]: run for run in values["runs"]}
    assert (runs["one"]["worst"], runs["one"]["mistakes"]["worst"]) == (None, None)
    assert "one: nothing was attacked at L∞ 0.2, so there is no worst case to report." in values["caveats"]
    assert runs["grid"]["worst"]["n"] == 40
    pgd = str(len(values["views"]) - 1)
    assert {name: run["attacks"][pgd]["eps"] for name, run in runs.items()} == {"grid": 0.2, "one": 0.3}


def test_a_verdict_at_another_budget(make: Make) -> None:
    folder = judge(make("a"), eps=0.1)
    assert "a: the verdict is on L∞ 0.1, the worst case is reported at L∞ 0.3." in caveats_of(folder)


def test_a_verdict_on_another_table_is_not_shown(make: Make) -> None:
    a, b = make("a"), make("b", seed=1)
    (b / "checkpoints").mkdir()
    for folder in (a, b):
        judge(folder, of=Evaluation.load(a))
    values = data_of(compare([a, b]))
    assert [run["verdict"] and run["verdict"]["status"] for run in values["runs"]] == ["believable", None]
    assert [note for note in values["caveats"] if "verdict" in note] == [
        "b: verdict.json judged another table than the one here (of as many examples, with other results), so it is "
        f"not shown; judge it again: robustlit evaluate {b} --verdict."
    ]


def test_verdicts_that_name_no_table_are_one_note(make: Make) -> None:
    folders = [judge(make(name, seed=k)) for k, name in enumerate("ab")]
    values = data_of(compare(folders))
    assert [run["verdict"]["status"] for run in values["runs"]] == ["believable", "believable"]
    assert [note for note in values["caveats"] if "verdict" in note] == [
        "a, b: verdict.json does not say which table it judged, as it is of an older version; nothing ties it to the "
        "numbers here."
    ]


def test_many_failed_verdicts_are_one_note(make: Make) -> None:
    folders = [judge(make(f"run{k}", seed=k), "FAIL") for k in range(4)]
    notes = [note for note in caveats_of(*folders) if "overstated" in note]
    assert notes == ["run0, run1, run2, run3: their figures are overstated. Do not trust their worst-case accuracies."]
    notes = caveats_of(make("other", config={"eps": 0.1}), make("grey", knowledge=("greybox",), seed=2), *folders[:2])
    assert notes[0] == "run0: its figure is overstated (Square wins). Do not trust its worst-case accuracy."
    assert [note[:19] for note in notes[1:3]] == [
        "run1: its figure is",
        "grey: no adaptive a",
    ]  # the most serious first
    assert len(notes) > 4


def test_results_that_contradict_the_table_are_named_and_not_shown(make: Make) -> None:
    honest = make("honest")
    found = Evaluation.load(honest)
    told = {
        "clean": {"accuracy": 1.0},
        "worst_case": {"norm": "linf", "eps": 0.3, "accuracy": 0.99},
        "attacks": {"pgd": {"norm": "linf", "eps": 0.3, "accuracy": float(found.accuracy(attack="pgd", eps=0.3))}},
    }
    edited = make("edited", results=told)
    values = data_of(compare([honest, edited]))
    worst = found.worst_case(eps=0.3)
    assert [run["worst"]["correct"] for run in values["runs"]] == [worst.correct, worst.correct]
    (note,) = [note for note in values["caveats"] if "results.json" in note]
    clean = f"clean 100.00 % ({100 * found.clean_accuracy:.2f} % in the table)"
    said = f"{clean}, worst case 99.00 % ({100 * worst:.2f} % in the table)"
    assert note.startswith(f"edited: results.json says {said}. It was edited")
    told |= {"clean": {"accuracy": float(found.clean_accuracy)}, "worst_case": None}
    attacks = {"pgd": {"norm": "linf", "eps": 0.3, "accuracy": 1}}
    for results, counted in ((told, 0), (told | {"attacks": attacks}, 1), (told | {"attacks": "many"}, 0)):
        folder = make(f"more{len(str(results))}", results=results)
        assert sum("results.json" in note for note in caveats_of(folder)) == counted


def test_the_share_of_the_split_is_on_the_page(make: Make) -> None:
    assert data_of(compare([make("a", of=10_000)]))["split"] == 10_000
    assert data_of(compare([make("b", of=40)]))["split"] is None
    assert data_of(compare([make("c", of=10_000), make("d")]))["split"] == 10_000  # older tables do not say
    assert data_of(compare([make("e", of=10_000), make("f", of=9_000)]))["split"] is None


def test_one_number_for_different_pictures_is_noted(make: Make) -> None:
    plain = Evaluation.load(make("plain"))
    numbers = plain.table["index"]
    a, b, c = (
        make(name, evaluation=Evaluation(plain.table.assign(image=images), plain.meta))
        for name, images in (("a", numbers + 7), ("b", numbers + 7), ("c", numbers.where(numbers > 4, -numbers - 1)))
    )
    assert not [note for note in caveats_of(a, b) if "other images" in note]
    (note,) = [note for note in caveats_of(a, c) if "other images" in note]
    assert note.startswith("c: 40 of 40 examples of the same number are other images than in a. The data differ")
    assert not [note for note in caveats_of(a, make("old")) if "other images" in note]  # without digests
