"""The figure of a verdict, and its headline in the figures of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from parts import all_text, check_apart

from robustlit.figures import curves_figure, knowledge_figure, models_figure, verdict_figure
from robustlit.figures.panel import VERDICTS
from robustlit.results import FAIL, INCONCLUSIVE, PASS, Check, Evaluation, Verdict
from robustlit.verdict.checks import CHECKS

Make = Callable[..., Evaluation]


def a_verdict(status: str = FAIL) -> Verdict:
    """Nineteen checks: PASS but for 13, which has `status`, and 7, which is undecided."""
    found = [Check(number, f"check number {number}", PASS, f"finding {number}", 0.0, 0.01) for number in range(1, 20)]
    text = "Square alone breaks 17 of 500 (3.4 %; at most 0.2 %): evaluate with WorstCase"
    found[12] = Check(13, "gradient-free does not win", status, text, 0.034, 0.002)
    found[6] = Check(7, "restarts", INCONCLUSIVE, "too few at linf 0.3; give more")
    return Verdict(found, "full", 500, "linf", 0.3, 0, 5, 0.1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_each_status_has_its_own_word_shape_and_colour() -> None:
    figure = verdict_figure(a_verdict(), name="my $net$", n=1000)
    found = texts(figure)
    assert "my $net$: verdict FAIL" in found
    seen = "L∞ eps 0.3 (pixel units), n = 500 images probed, of 1000 evaluated"
    assert f"{seen}, profile full: 17 passed, 1 failed, 1 undecided" in found
    assert {str(number) for number in range(1, 20)} <= set(found)
    assert [found.count(word) for word in ("pass", "FAIL", "undecided")] == [17, 1, 1]
    assert "the model has no detector" in found  # check 20
    assert any(text.startswith("PASS says that no sign") for text in found)
    assert "3.4 %  (0.2 %)" in found
    assert any(t.replace("\n", " ") == "Square alone breaks 17 of 500: evaluate with WorstCase" for t in found)
    assert "too few at L∞ 0.3; give more" in found
    shapes = {line.get_marker(): line.get_color() for line in figure.axes[0].lines if line.get_marker() in "oXD_"}
    undecided = VERDICTS[INCONCLUSIVE]
    assert shapes == {"o": VERDICTS[PASS], "X": VERDICTS[FAIL], "D": undecided, "_": undecided}


def test_nothing_overlaps_or_leaves_the_figure() -> None:
    checks = [Check(spec.number, spec.name, FAIL, "a finding", 9.9, 0.0) for spec in CHECKS]
    checks[4] = replace(checks[4], finding="a long finding " * 20)
    verdict = replace(a_verdict(), checks=checks)
    figure = verdict_figure(verdict, name="n" * 200)
    figure.draw_without_rendering()
    check_apart([text.get_window_extent() for text in figure.findobj(Text) if text.get_text()], figure)


def test_a_bar_shows_the_figure_relative_to_the_limit() -> None:
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


def test_the_figures_of_a_run_show_its_verdict(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(5)], meta={"complete": True})
    line = "verdict FAIL (full, L∞ 0.3): 1 of 19 checks (Square wins)"
    for drawn in (
        curves_figure(evaluation, "linf", verdict=a_verdict()),
        curves_figure(evaluation, "linf", style="report", verdict=a_verdict()),
        knowledge_figure(evaluation, "pgd", "linf", verdict=a_verdict()),
    ):
        assert drawn.axes[0].get_title(loc="left") == line
    assert curves_figure(evaluation, "linf").axes[0].get_title(loc="left") == ""
    passed = curves_figure(evaluation, "l2", verdict=a_verdict(PASS))
    assert "verdict PASS (full, L∞ 0.3): 18 of 19 checks passed, 1 undecided" in texts(passed)


def test_a_failed_model_among_several_is_marked(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(5)], meta={"complete": True})
    three = {"a": evaluation, "b": evaluation, "c": evaluation}
    figure = models_figure(three, "linf", verdicts={"a": a_verdict(PASS), "b": a_verdict()})
    assert {"a", "b (verdict FAIL)", "c"} <= set(texts(figure))
    assert "Verdicts: a: PASS (full); b: FAIL (full, Square wins)." in all_text(figure)
