"""The figure of a verdict, and its line in the figures of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustlit.figures import (
    curves_figure,
    draw_run,
    knowledge_figure,
    models_figure,
    run_figures,
    save_figure,
    verdict_figure,
)
from robustlit.figures.panel import VERDICTS
from robustlit.results import FAIL, INCONCLUSIVE, PASS, Check, Evaluation, Verdict

Make = Callable[..., Evaluation]


def a_verdict(status: str = FAIL, checks: int = 19) -> Verdict:
    """PASS, but check 13, and check 7, which is undecided."""
    found = [Check(number, f"check number {number}", PASS, f"finding {number}", 0.0, 0.01) for number in range(1, 20)]
    text = "Square alone breaks 17 of 500 (3.4 %; at most 0.2 %): evaluate with WorstCase"
    found[12] = Check(13, "gradient-free does not win", status, text, 0.034, 0.002)
    found[6] = Check(7, "restarts", INCONCLUSIVE, "too few at linf 0.3; give more")
    return Verdict(found[:checks], "full", 500, "linf", 0.3, 0, 5, 0.1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_every_check_has_a_row_with_a_word_a_shape_and_a_colour_of_its_own() -> None:
    figure = verdict_figure(a_verdict(), name="my $net$", n=1000)
    found = texts(figure)
    assert "my $net$: verdict FAIL" in found
    assert (
        "L∞ eps 0.3 (pixel units), n = 500 images probed, of 1000 evaluated, profile full: 17 passed, 1 failed, "
        "1 undecided"
    ) in found
    for number in range(1, 20):
        assert str(number) in found
    assert found.count("pass") == 17
    assert found.count("FAIL") == 1
    assert found.count("undecided") == 1
    assert "the model has no detector" in found  # the twentieth, which this model has not
    assert any(text.startswith("PASS says that no sign") for text in found)
    assert "3.4 %  (0.2 %)" in found
    assert any(t.replace("\n", " ") == "Square alone breaks 17 of 500: evaluate with WorstCase" for t in found)
    assert "too few at L∞ 0.3; give more" in found
    shapes = {line.get_marker(): line.get_color() for line in figure.axes[0].lines if line.get_marker() in "oXD_"}
    assert shapes == {
        "o": VERDICTS[PASS],
        "X": VERDICTS[FAIL],
        "D": VERDICTS[INCONCLUSIVE],
        "_": VERDICTS[INCONCLUSIVE],
    }


def test_nothing_overlaps_or_leaves_the_figure() -> None:
    verdict = a_verdict()
    verdict.checks[4] = Check(5, "no robustness beyond the distance of classes", FAIL, "a long finding " * 20, 9.9, 0.0)
    figure = verdict_figure(verdict, name="n" * 200)
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in figure.findobj(Text) if t.get_text()]
    for number, (text, box) in enumerate(boxes):
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
        for other, there in boxes[number + 1 :]:
            assert not box.overlaps(there), (text, other)


def test_a_bar_says_how_near_the_limit_a_check_came() -> None:
    def bar(figure: float, threshold: float) -> tuple[float, bool]:
        verdict = Verdict([Check(1, "a", PASS, "b", figure, threshold)], "full", 5, "l2", 2.0, 0, 5, 0.1)
        drawn = verdict_figure(verdict).axes[0].lines
        (thick,) = [line for line in drawn if line.get_linewidth() == 4.5]
        (whole,) = [line for line in drawn if line.get_color() == "#CCCCCC"]
        length = float(thick.get_xdata()[1] - thick.get_xdata()[0])
        return length / float(whole.get_xdata()[1] - whole.get_xdata()[0]), any(x.get_marker() == ">" for x in drawn)

    assert bar(0.0, 0.005) == (0, False)
    assert bar(0.0025, 0.005) == (pytest.approx(0.25), False)
    assert bar(0.005, 0.005) == (pytest.approx(0.5), False)
    assert bar(0.5, 0.005) == (pytest.approx(1), True)
    assert bar(0.0, 0.0) == (0, False)
    assert bar(0.1, 0.0) == (pytest.approx(1), True)


def test_the_figures_of_a_run_carry_its_verdict(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(5)], meta={"complete": True})
    line = "verdict FAIL (full, L∞ 0.3): 1 of 19 checks (Square wins)"
    for drawn in (
        curves_figure(evaluation, "linf", verdict=a_verdict()),
        curves_figure(evaluation, "linf", style="report", verdict=a_verdict()),
        knowledge_figure(evaluation, "pgd", "linf", verdict=a_verdict()),
    ):
        assert line in texts(drawn)
        title = drawn.axes[0].get_title(loc="left")
        assert title == line
    assert curves_figure(evaluation, "linf").axes[0].get_title(loc="left") == ""
    passed = curves_figure(evaluation, "l2", verdict=a_verdict(PASS))
    assert "verdict PASS (full, L∞ 0.3): 18 of 19 checks passed, 1 undecided" in texts(passed)


def test_of_several_models_the_failed_one_is_marked(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(5)], meta={"complete": True})
    three = {"a": evaluation, "b": evaluation, "c": evaluation}
    found = texts(models_figure(three, "linf", verdicts={"a": a_verdict(PASS), "b": a_verdict()}))
    assert {"a", "b (verdict FAIL)", "c"} <= set(found)
    assert "Verdicts: a: PASS (full); b: FAIL (full, Square wins)." in " ".join(found).replace("\n", " ")


def test_knowledge_has_figures_where_there_are_several_kinds(table: Make, tmp_path: Path) -> None:
    rows = [(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(5)]
    frames = [table(rows).to_frame(), table(rows, knowledge="greybox").to_frame()]
    frames.append(table([(k, "joint", 0.3, 0.2) for k in range(5)]).to_frame())
    evaluation = Evaluation(pd.concat(frames), {"complete": True})
    stems = [stem for stem, _ in run_figures(evaluation, ["linf"])]
    assert stems == ["curves_linf", "knowledge_pgd_linf"]  # joint ran with one kind alone
    files = draw_run(evaluation, tmp_path / "my-run" / "evaluation", ["linf"])
    assert {file.name for file in files} == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}


def test_the_files_are_small(tmp_path: Path) -> None:
    png, svg = save_figure(verdict_figure(a_verdict(), name="run"), tmp_path / "verdict")
    assert 10_000 < png.stat().st_size < 200_000
    assert "<svg" in svg.read_text()
