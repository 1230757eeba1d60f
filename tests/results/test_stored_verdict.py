"""A verdict belongs to the table that it judged and is shown with no other."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.text import Text

from robustlit.figures import curves_figure, draw_run, knowledge_figure, models_figure, on_common_examples
from robustlit.results import Check, Evaluation, EvaluationError, Verdict
from robustlit.results.stored_verdict import stored_verdict

Make = Callable[..., Evaluation]
ROWS = [(k, "pgd", 0.3, 0.02 * k if k < 12 else None) for k in range(20)]
OTHERS = [*ROWS[:-1], (19, "pgd", 0.3, 0.05)]


@pytest.fixture
def judged(table: Make) -> Evaluation:
    return table(ROWS)


def verdict_on(evaluation: Evaluation | None) -> Verdict:
    """Return a verdict that fails; for None without a table, as older versions wrote it."""
    found = Verdict([Check(13, "a", "FAIL", "b")], "full", 9, "linf", 0.3, 0, 5, 0.1)
    return found if evaluation is None else found.of(evaluation)


def test_a_verdict_names_its_table(judged: Evaluation, table: Make, tmp_path: Path) -> None:
    file = verdict_on(judged).save(tmp_path)
    written = json.loads(file.read_text())
    assert (written["table"], written["evaluated"]) == (judged.digest, 20)
    assert Verdict.load(tmp_path) == verdict_on(judged)
    assert verdict_on(judged).is_of(judged) is True
    assert verdict_on(judged).is_of(table(ROWS)) is True
    assert verdict_on(judged).is_of(table(OTHERS)) is False
    assert verdict_on(None).is_of(judged) is None
    # Digests of different versions cannot be compared.
    replace(verdict_on(judged), table="v2:00").save(tmp_path)
    assert Verdict.load(tmp_path).is_of(judged) is None


def test_only_the_verdict_on_the_table_is_read(judged: Evaluation, table: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluation"
    assert stored_verdict(tmp_path / "run", judged) == (None, "")
    verdict_on(judged).save(folder)
    assert stored_verdict(tmp_path / "run", judged) == (verdict_on(judged), "")
    other = "judged another table than the one here "
    assert stored_verdict(folder, table(OTHERS)) == (None, f"{other}(of as many examples, with other results)")
    assert stored_verdict(folder, table(ROWS[:15])) == (None, f"{other}(of 20 examples; here are 15)")
    verdict_on(None).save(folder)
    found, note = stored_verdict(folder, judged)
    assert found == verdict_on(None)
    assert note.startswith("does not say which table it judged")


def test_the_robust_accuracy_stands_beside_the_status(judged: Evaluation, tmp_path: Path) -> None:
    written = json.loads(verdict_on(judged).save(tmp_path).read_text())
    assert (written["figure"], written["robust"], written["accuracy"]) == ("overstated", 8, 0.4)
    assert verdict_on(judged).title == "figure overstated: 40.00 % [21.88, 61.34] of 20 robust"
    replace(verdict_on(judged), robust=None).save(tmp_path)  # as an older version wrote it
    assert stored_verdict(tmp_path, judged)[0] == verdict_on(judged)
    replace(verdict_on(judged), robust=20).save(tmp_path)
    with pytest.raises(ValueError, match="damaged or edited: 20 examples are robust in it, 8 in the table"):
        stored_verdict(tmp_path, judged)


def test_loading_a_verdict_warns_of_another_table_beside_it(judged: Evaluation, table: Make, tmp_path: Path) -> None:
    file = verdict_on(judged).save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Verdict.load(tmp_path)  # no table
        judged.save(tmp_path)
        Verdict.load(tmp_path)
        table(OTHERS).save(tmp_path / "other")
        file.rename(tmp_path / "other" / "verdict.json")
    with pytest.warns(UserWarning, match=r"verdict.json judged another table .*; judge the checkpoint again \(robust"):
        Verdict.load(tmp_path / "other")


def test_writing_another_table_renames_the_verdict(judged: Evaluation, table: Make, tmp_path: Path) -> None:
    def files() -> set[str]:
        return {file.name for file in tmp_path.glob("verdict*")}

    mine = {"verdict.json", "verdict.png", "verdict.svg"}
    judged.save(tmp_path)
    text = verdict_on(judged).save(tmp_path).read_text()
    for kind in ("png", "svg"):
        (tmp_path / f"verdict.{kind}").write_text(kind)
    judged.save(tmp_path)
    table(ROWS).save(tmp_path)
    assert files() == mine
    table(OTHERS).save(tmp_path)
    earlier = {f"verdict_of_an_earlier_table.{kind}" for kind in ("json", "png", "svg")}
    assert files() == earlier
    assert (tmp_path / "verdict_of_an_earlier_table.json").read_text() == text
    verdict_on(table(OTHERS)).save(tmp_path)
    judged.save(tmp_path)
    assert files() == {*earlier, "verdict_of_an_earlier_table-2.json"}
    assert (tmp_path / "verdict_of_an_earlier_table.json").read_text() == text


def test_an_older_verdict_stays_until_the_table_changes(judged: Evaluation, table: Make, tmp_path: Path) -> None:
    verdict_on(None).save(tmp_path)
    judged.save(tmp_path)  # written after its verdict
    judged.save(tmp_path)
    assert stored_verdict(tmp_path, judged)[0] is not None
    table(OTHERS).save(tmp_path)
    assert stored_verdict(tmp_path, table(OTHERS)) == (None, "")
    assert (tmp_path / "verdict_of_an_earlier_table.json").is_file()


def test_figures_refuse_a_verdict_on_another_table(judged: Evaluation, table: Make, tmp_path: Path) -> None:
    other = verdict_on(table(OTHERS))
    message = "the verdict judged another table than the one here"
    for draw in (
        lambda: curves_figure(judged, verdict=other),
        lambda: knowledge_figure(judged, "pgd", verdict=other),
        lambda: draw_run(judged, tmp_path, ["l2"], verdict=other),
    ):
        with pytest.raises(EvaluationError, match=message):
            draw()
    with pytest.raises(EvaluationError, match=f"mine: {message}"):
        models_figure({"mine": judged}, attack="pgd", verdicts={"mine": other})
    for shown in (verdict_on(judged), verdict_on(None)):
        curves_figure(judged, verdict=shown)


def test_a_figure_of_the_common_examples_notes_that_the_verdict_is_on_all(judged: Evaluation, table: Make) -> None:
    cut = on_common_examples({"mine": judged, "few": table(ROWS[:15])})["mine"]
    assert cut.n == 15
    assert cut.on(range(10)).whole is judged
    assert verdict_on(judged).is_of(cut.on(range(10))) is True
    assert verdict_on(table(OTHERS)).is_of(cut) is False
    figures = {
        "The verdict is on all 20 examples.": curves_figure(cut, verdict=verdict_on(judged)),
        "The verdict on mine is on all 20 examples.": models_figure(
            {"mine": cut}, verdicts={"mine": verdict_on(judged)}
        ),
    }
    for note, figure in figures.items():
        figure.draw_without_rendering()
        assert note in " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))
    assert judged.on(range(30)) is judged
