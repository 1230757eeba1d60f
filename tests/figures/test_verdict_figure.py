"""The figure of a verdict, and its headline in the figures of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from parts import all_text, check_apart

from robustlit.figures import curves_figure, knowledge_figure, models_figure, verdict_figure
from robustlit.figures.panel import CHECKS as COLOURS
from robustlit.figures.panel import FIGURES, INK
from robustlit.results import BELIEVABLE, FAIL, INCONCLUSIVE, PASS, Check, Evaluation, Verdict
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
    assert "my $net$: figure overstated" in found
    seen = "L∞ eps 0.3 (pixel units), n = 500 images probed, of 1000 evaluated"
    assert f"{seen}, profile full: 17 checks pass, 1 fail, 1 undecided" in found
    assert {str(number) for number in range(1, 20)} <= set(found)
    assert [found.count(word) for word in ("pass", "FAIL", "undecided")] == [17, 1, 1]
    assert "the model has no detector" in found  # check 20
    assert any(text.startswith("The figure is the robust accuracy. Believable means") for text in found)
    assert "3.4 %  (0.2 %)" in found
    assert any(t.replace("\n", " ") == "Square alone breaks 17 of 500: evaluate with WorstCase" for t in found)
    assert "too few at L∞ 0.3; give more" in found
    shapes = {line.get_marker(): line.get_color() for line in figure.axes[0].lines if line.get_marker() in "oXD_"}
    undecided = COLOURS[INCONCLUSIVE]
    assert shapes == {"o": COLOURS[PASS], "X": COLOURS[FAIL], "D": undecided, "_": undecided}


def test_nothing_overlaps_or_leaves_the_figure() -> None:
    checks = [Check(spec.number, spec.name, FAIL, "a finding", 9.9, 0.0) for spec in CHECKS]
    checks[4] = replace(checks[4], finding="a long finding " * 20)
    verdict = replace(a_verdict(), checks=checks, evaluated=100_000, robust=12_345)
    figure = verdict_figure(verdict, name="n" * 200)
    figure.draw_without_rendering()
    check_apart([text.get_window_extent() for text in figure.findobj(Text) if text.get_text()], figure)


def at_nothing_robust(robust: int = 0) -> Verdict:
    reason = "no example is robust at this budget, so its accuracy cannot be overstated"
    found = [Check(number, f"check number {number}", PASS, reason) for number in range(2, 21) if number not in (4, 5)]
    others = [Check(number, "another", PASS, f"found {number}", 0.0, 0.01) for number in (1, 4, 5)]
    checks = sorted([*found, *others], key=lambda check: check.number)
    return Verdict(checks, "quick", 100, "linf", 0.3, 0, 5, 0.1, evaluated=100, robust=robust)


def test_beside_0_percent_nothing_is_green_and_one_reason_is_one_row(table: Make) -> None:
    figure = verdict_figure(at_nothing_robust(), name="net")
    found = texts(figure)
    assert "net: figure believable, the net is not robust: 0.00 % [0.00, 3.70] of 100" in found
    assert "2, 3, 6-20: 17 checks, for one reason" in found
    assert found.count("pass") == 4
    figure.draw_without_rendering()
    check_apart([text.get_window_extent() for text in figure.findobj(Text) if text.get_text()], figure)
    evaluation = table([(k, "pgd", 0.3, 0.1) for k in range(5)], meta={"complete": True})
    curves = curves_figure(evaluation, "linf", verdict=at_nothing_robust())
    colours = {item.get_color() for drawn in (figure, curves) for item in drawn.findobj(Text)}
    colours |= {line.get_color() for line in figure.axes[0].lines}
    assert COLOURS[PASS] not in colours
    (headline,) = [text for text in curves.findobj(Text) if text.get_text().startswith("figure believable")]
    assert headline.get_color() == INK
    some = verdict_figure(at_nothing_robust(40), name="net")
    assert "net: figure believable: 40.00 % [30.94, 49.80] of 100 robust" in texts(some)
    assert FIGURES[BELIEVABLE] in {text.get_color() for text in some.findobj(Text)}


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
    line = "figure overstated (full, L∞ 0.3): 1 of 19 checks fail (Square wins)"
    for drawn in (
        curves_figure(evaluation, "linf", verdict=a_verdict()),
        curves_figure(evaluation, "linf", style="report", verdict=a_verdict()),
        knowledge_figure(evaluation, "pgd", "linf", verdict=a_verdict()),
    ):
        assert drawn.axes[0].get_title(loc="left") == line
    assert curves_figure(evaluation, "linf").axes[0].get_title(loc="left") == ""
    passed = curves_figure(evaluation, "l2", verdict=a_verdict(PASS))
    assert "figure believable (full, L∞ 0.3): 18 of 19 checks pass, 1 undecided" in texts(passed)


def test_a_failed_model_among_several_is_marked(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(5)], meta={"complete": True})
    three = {"a": evaluation, "b": evaluation, "c": evaluation}
    verdicts = {"a": a_verdict(PASS), "b": a_verdict(), "of a model that is not drawn": a_verdict()}
    figure = models_figure(three, "linf", verdicts=verdicts)
    assert {"a", "b (overstated)", "c"} <= set(texts(figure))
    assert "Figures: a: believable (full); b: overstated (full, Square wins)." in all_text(figure)
