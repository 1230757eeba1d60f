"""Figures of several evaluations: models side by side, a defense by knowledge, training times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustlit.figures import (
    KNOWLEDGE_STYLES,
    TrainedRun,
    check_same_examples,
    knowledge_figure,
    models_figure,
    on_common_examples,
    training_time_figure,
)
from robustlit.results import Accuracy, Evaluation, EvaluationError

Make = Callable[..., Evaluation]


def model(
    table: Make, scale: float, n: int = 20, attacks: tuple[str, ...] = ("fgsm", "pgd"), **rest: Any
) -> Evaluation:
    reach = scale * np.random.default_rng(0).uniform(0.01, 0.4, n)
    rows = [(k, a, 0.3, float(r) if r <= 0.3 else None) for a in attacks for k, r in enumerate(reach)]
    return table(rows, **rest)


def all_text(figure: Figure) -> str:
    figure.draw_without_rendering()
    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


def curves_of(figure: Figure) -> dict[tuple[tuple[float, ...], ...], Any]:
    lines = [line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post"]
    return {(tuple(line.get_xdata()), tuple(line.get_ydata())): line for line in lines}


def drawn(evaluation: Evaluation, attack: str | None, knowledge: str = "adaptive") -> tuple[tuple[float, ...], ...]:
    curve = evaluation.curve(attack, distance="linf", knowledge=knowledge)
    x, y = list(curve["distance"]), list(100 * curve["accuracy"])
    return ((*x, 0.3), (*y, y[-1])) if y[-1] else (tuple(x), tuple(y))  # attacked up to 0.3


# Many models


@pytest.mark.parametrize("attack", ["pgd", None])
def test_each_model_has_its_line_and_its_name(table: Make, attack: str | None) -> None:
    models = {"weak": model(table, 0.3), "strong": model(table, 1.2)}
    figure = models_figure(models, "linf", attack=attack)
    found = curves_of(figure)
    assert set(found) == {drawn(e, attack) for e in models.values()}
    assert len({line.get_color() for line in found.values()}) == 2
    text = all_text(figure)
    assert "weak" in text
    assert "strong" in text
    assert "n = 20" in text
    assert ("worst case over fgsm, pgd" in text.lower()) == (attack is None)
    assert "Budgets attacked: L∞ 0.3: " in text
    assert text.count("Between budgets a line is an upper bound") == 1


def test_the_worst_case_of_a_model_is_over_all_its_attacks(table: Make) -> None:
    halves = [(k, a, 0.3, 0.2 if (k < 5) == (a == "pgd") else None) for a in ("pgd", "fgsm") for k in range(10)]
    ((_, y),) = curves_of(models_figure({"net": table(halves)}, "linf"))
    assert y == (100, 0)


def test_a_worst_case_ends_where_the_attacks_of_its_distance_did(table: Make) -> None:
    budget = table([(k, "pgd", 0.3, 0.1 if k < 3 else None) for k in range(10)]).to_frame()
    far = table([(k, "deepfool", 0.3, 0.2 + 0.08 * k) for k in range(10)]).to_frame()
    both = Evaluation(pd.concat([budget, far.assign(norm="l2", eps=float("nan"))]))
    ((x, y),) = curves_of(models_figure({"net": both}, "linf"))
    assert x == (0, 0.1, 0.3)  # deepfool's first, at 0.44, lies past it
    assert y == (100, 70, 70)


def test_a_worst_case_over_a_distance_that_nobody_searched_is_a_bound(table: Make) -> None:
    minimal = model(table, 1, attacks=("nearest_l2",)).to_frame().assign(norm="l2", eps=float("nan"))
    models = {"a": Evaluation(minimal), "b": model(table, 1), "c": Evaluation(minimal)}
    figure = models_figure(models, "linf")
    said = all_text(figure)
    assert "No attack searched L∞ (a, c): their lines are upper bounds." in said
    assert "Between budgets a line is an upper bound." in said  # of b
    assert {line.get_linewidth() for line in curves_of(figure).values()} == {0.9}
    bands = [band for band in figure.axes[0].collections if isinstance(band, PolyCollection)]
    assert len(bands) == 2  # b has bars at its budgets
    assert "No attack searched L∞ (undefended): its line is an upper bound." in all_text(
        models_figure({"b": models["b"]}, "linf", undefended=models["a"])
    )
    assert "searched" not in all_text(models_figure({"a": models["a"]}, "l2"))
    defense = knowledge_figure(models["a"], "nearest_l2", "linf", undefended=models["c"])
    assert "nearest_l2 searched L2: over L∞ its lines are upper bounds." in all_text(defense)
    assert "No attack searched L∞ (adaptive): its line" in all_text(knowledge_figure(models["a"], None, "linf"))


def test_worst_cases_over_different_attacks_are_said(table: Make) -> None:
    models = {"a": model(table, 1), "b": model(table, 1, attacks=("fgsm",)), "c": model(table, 1)}
    text = all_text(models_figure(models, "linf"))
    assert "rest on different attacks" in text
    assert "a, c: fgsm, pgd; b: fgsm." in text


def test_that_a_worst_case_overstates_is_said_in_the_figure(table: Make, recwarn: pytest.WarningsRecorder) -> None:
    assert "overstates" in all_text(models_figure({"a": model(table, 1)}, "l2"))
    assert not recwarn


def test_a_model_whose_evaluation_was_cut_short_is_named(table: Make) -> None:
    models = {name: model(table, 1, meta=meta) for name, meta in (
        ("a", {"complete": True}), ("b", {"complete": False}), ("c", {}),
    )}  # fmt: skip
    figure = models_figure(models, "linf")
    assert "(cut short: b)" in figure.get_suptitle().replace("\n", " ")
    assert "Not known whether complete: c." in all_text(figure).replace("\n", " ")


def test_names_of_thirty_models_stay_apart(table: Make) -> None:
    models = {f"model-{k}": model(table, 0.9 + 0.01 * k) for k in range(30)}
    figure = models_figure(models, "linf")
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.findobj(Text) if t.get_text() in models]
    assert len(boxes) == 30
    for k, box in enumerate(boxes):
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_an_attack_that_one_model_was_not_attacked_with_is_refused(table: Make) -> None:
    models = {"a": model(table, 1), "b": model(table, 1, attacks=("fgsm",))}
    with pytest.raises(EvaluationError, match="b: no attack named 'pgd' was run; there are fgsm"):
        models_figure(models, attack="pgd")
    with pytest.raises(EvaluationError, match="a: nothing was run with knowledge 'greybox'"):
        models_figure(models, attack="fgsm", knowledge="greybox")


def test_the_reports_axes_need_an_attack(table: Make) -> None:
    models = {"a": model(table, 1), "b": model(table, 0.5)}
    axes = models_figure(models, "l2", attack="pgd", style="report").axes[0]
    assert "mean L2" in axes.get_xlabel()
    with pytest.raises(EvaluationError, match="name an attack"):
        models_figure(models, style="report")
    with pytest.raises(EvaluationError, match="no figure style 'x'"):
        models_figure(models, style="x")


# The same test images


def test_other_test_images_are_refused_or_left_out_on_request(table: Make) -> None:
    models = {"a": model(table, 1), "b": model(table, 0.5, n=12)}
    for draw in (check_same_examples, models_figure):
        with pytest.raises(
            EvaluationError, match=r"a \(n = 20\) and b \(n = 12\) .* different .* 12 of them in common"
        ):
            draw(models)
    cut = on_common_examples(models)
    assert [e.n for e in cut.values()] == [12, 12]
    assert cut["b"].accuracy(attack="pgd", eps=0.3) == models["b"].accuracy(attack="pgd", eps=0.3)
    check_same_examples(cut)
    apart = model(table, 1).to_frame()
    with pytest.raises(EvaluationError, match="share no test image"):
        on_common_examples({**models, "c": Evaluation(apart.assign(index=apart["index"] + 100))})


def test_images_of_other_data_are_refused_even_where_their_numbers_are_the_same(table: Make) -> None:
    models = {"a": model(table, 1), "b": Evaluation(model(table, 1).to_frame().assign(label=3))}
    for draw in (check_same_examples, on_common_examples):
        with pytest.raises(EvaluationError, match="different data"):
            draw(models)
    with pytest.raises(EvaluationError, match="at least one"):
        models_figure({})


# One defense


@pytest.fixture
def defense(table: Make) -> Evaluation:
    kinds = {"adaptive": 0.6, "greybox": 1.0, "blackbox": 1.3}
    return Evaluation(
        pd.concat([model(table, scale).to_frame().assign(knowledge=known) for known, scale in kinds.items()])
    )


@pytest.mark.parametrize("attack", ["pgd", None])
def test_knowledge_has_three_lines_of_one_colour_and_the_undefended_its_own(
    table: Make, defense: Evaluation, attack: str | None
) -> None:
    bare = model(table, 0.2)
    figure = knowledge_figure(defense, attack, "linf", undefended=bare, name="my defense")
    found = curves_of(figure)
    lines = {known: found[drawn(defense, attack, known)] for known in KNOWLEDGE_STYLES}
    assert {known: line.get_linestyle() for known, line in lines.items()} == KNOWLEDGE_STYLES
    assert len({line.get_color() for line in lines.values()}) == 1
    assert found[drawn(bare, attack)].get_color() not in {line.get_color() for line in lines.values()}
    assert len(found) == 4
    text = all_text(figure)
    for name in ("adaptive", "grey-box", "black-box", "undefended", "my defense under"):
        assert name in text


def test_a_defense_and_its_net_must_have_met_the_same_attack_on_the_same_images(
    table: Make, defense: Evaluation
) -> None:
    with pytest.raises(EvaluationError, match="undefended: no attack named 'pgd'"):
        knowledge_figure(defense, "pgd", undefended=model(table, 1, attacks=("fgsm",)))
    with pytest.raises(EvaluationError, match="different test images"):
        knowledge_figure(defense, "pgd", undefended=model(table, 1, n=5))
    with pytest.raises(EvaluationError, match="no attack named 'square' was run; there are fgsm, pgd"):
        knowledge_figure(defense, "square")
    with pytest.raises(EvaluationError, match="name an attack"):
        knowledge_figure(defense, style="report")
    knowledge_figure(defense, "fgsm", style="report").draw_without_rendering()


# Training times


def write_run(folder: Path, name: str, accuracy: float, seconds: dict[str, float], **rest: Any) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    results = {
        "n": 200,
        "clean": {"accuracy": 0.99},
        "worst_case": {"norm": "linf", "eps": 0.3, "accuracy": accuracy, "rests_on": ["pgd"]},
        "seconds": seconds,
        "device": "a processor",
        **rest,
    }
    (run / "results.json").write_text(json.dumps(results))
    return run


def test_the_time_of_an_evaluation_is_that_of_the_run_it_attacked(tmp_path: Path) -> None:
    trained = write_run(tmp_path, "net", 0.9, {"train": 50.0, "evaluate": 3.0})
    again = write_run(tmp_path, "net-eval", 0.8, {"evaluate": 9.0})
    for given in (trained, "runs/net", trained / "checkpoints" / "best.ckpt"):  # the second as of another folder
        (again / "config.yaml").write_text(f"ckpt_path: {given}\n")
        assert TrainedRun.read(again) == TrainedRun(
            "net-eval", 50.0, Accuracy(160, 200), Accuracy(198, 200), "linf", 0.3, ("pgd",), "a processor"
        )
    (again / "config.yaml").write_text("ckpt_path: elsewhere/foreign.ckpt\n")
    with pytest.raises(EvaluationError, match="was not trained, and the run that it attacked is not beside it"):
        TrainedRun.read(again)


def test_runs_without_a_time_or_a_worst_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no results\.json in .*empty"):
        TrainedRun.read(tmp_path / "empty")
    with pytest.raises(EvaluationError, match="no worst case"):
        TrainedRun.read(write_run(tmp_path, "clean", 0.9, {"train": 1.0}, worst_case=None))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "results.json").write_text('{"accuracy": 1}')
    with pytest.raises(EvaluationError, match=r"cannot read .*foreign/results\.json"):
        TrainedRun.read(foreign)


def trained(name: str, seconds: float, correct: int, **rest: Any) -> TrainedRun:
    given: dict[str, Any] = {"norm": "linf", "eps": 0.3, "rests_on": ("pgd",), "device": "a processor", **rest}
    return TrainedRun(name, seconds, Accuracy(correct, 200), Accuracy(198, 200), **given)


def test_a_point_is_a_run_with_its_interval() -> None:
    figure = training_time_figure([trained("fast", 30, 150), trained("slow", 90, 180)])
    axes = figure.axes[0]
    points = {
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.get_lines()
        if len(line.get_xdata()) == 1 and line.get_fillstyle() == "full"
    }
    assert points >= {(30, 75), (90, 90)}
    low, high = Accuracy(150, 200).interval
    segments = [s for bars in axes.collections for s in bars.get_segments()]
    assert any(np.allclose(s, [(30, 100 * low), (30, 100 * high)]) for s in segments)
    text = all_text(figure)
    for said in ("fast  75.0 %", "slow  90.0 %", "L∞ 0.3", "n = 200", "training time (s)", "over pgd", "a processor"):
        assert said in text


def test_long_times_have_a_larger_unit_and_a_wide_range_a_logarithmic_axis() -> None:
    axes = training_time_figure([trained("a", 100, 150), trained("b", 36_000, 180)]).axes[0]
    assert axes.get_xlabel() == "training time (h)"
    assert axes.get_xscale() == "log"
    assert training_time_figure([trained("a", 60, 150), trained("b", 300, 180)]).axes[0].get_xscale() == "linear"


def test_what_is_not_to_be_compared_is_refused_or_said() -> None:
    with pytest.raises(EvaluationError, match=r"different budgets .* a at linf 0\.3, b at linf 0\.1"):
        training_time_figure([trained("a", 1, 150), trained("b", 1, 150, eps=0.1)])
    with pytest.raises(EvaluationError, match="at least one run"):
        training_time_figure([])
    text = all_text(training_time_figure([trained("a", 1, 9), trained("b", 1, 9, rests_on=("fgsm",), device="a GPU")]))
    assert "a: pgd; b: fgsm." in text
    assert "different hardware" in text
