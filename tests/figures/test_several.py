"""Figures of several evaluations: models side by side, and a defense under each kind of knowledge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from parts import all_text, curves_in

from robustlit.figures import KNOWLEDGE_STYLES, check_same_examples, knowledge_figure, models_figure, on_common_examples
from robustlit.results import Evaluation, EvaluationError

Make = Callable[..., Evaluation]


def model(
    table: Make, scale: float = 1.0, n: int = 20, attacks: tuple[str, ...] = ("fgsm", "pgd"), **rest: Any
) -> Evaluation:
    reach = scale * np.random.default_rng(0).uniform(0.01, 0.4, n)
    rows = [(k, a, 0.3, float(r) if r <= 0.3 else None) for a in attacks for k, r in enumerate(reach)]
    return table(rows, **rest)


def curves_of(figure: Figure) -> dict[tuple[tuple[float, ...], ...], Any]:
    return {(tuple(line.get_xdata()), tuple(line.get_ydata())): line for line in curves_in(figure)}


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
    for part in ("weak", "strong", "n = 20", "Budgets attacked: L∞ 0.3: "):
        assert part in text
    assert ("worst case over fgsm, pgd" in text.lower()) == (attack is None)
    assert text.count("Between budgets a line is an upper bound") == 1


def test_the_worst_case_of_a_model_is_over_all_its_attacks(table: Make) -> None:
    halves = [(k, a, 0.3, 0.2 if (k < 5) == (a == "pgd") else None) for a in ("pgd", "fgsm") for k in range(10)]
    ((_, y),) = curves_of(models_figure({"net": table(halves)}, "linf"))
    assert y == (100, 0)


def test_a_worst_case_ends_where_the_attacks_in_its_distance_did(table: Make) -> None:
    budget = table([(k, "pgd", 0.3, 0.1 if k < 3 else None) for k in range(10)]).to_frame()
    far = table([(k, "deepfool", 0.3, 0.2 + 0.08 * k) for k in range(10)]).to_frame()
    both = Evaluation(pd.concat([budget, far.assign(norm="l2", eps=float("nan"))]))
    ((x, y),) = curves_of(models_figure({"net": both}, "linf"))
    assert x == (0, 0.1, 0.3)  # deepfool's first, at 0.44, is farther away
    assert y == (100, 70, 70)


@pytest.mark.slow
def test_a_worst_case_over_a_distance_that_no_attack_searched_is_a_bound(table: Make) -> None:
    minimal = model(table, attacks=("nearest_l2",)).to_frame().assign(norm="l2", eps=float("nan"))
    models = {"a": Evaluation(minimal), "b": model(table), "c": Evaluation(minimal)}
    figure = models_figure(models, "linf")
    text = all_text(figure)
    assert "No attack searched L∞ (a, c): their lines are upper bounds." in text
    assert "Between budgets a line is an upper bound." in text  # b
    assert {line.get_linewidth() for line in curves_of(figure).values()} == {0.9}
    bands = [band for band in figure.axes[0].collections if isinstance(band, PolyCollection)]
    assert len(bands) == 2  # b has bars at its budgets
    beside = models_figure({"b": models["b"]}, "linf", undefended=models["a"])
    assert "No attack searched L∞ (undefended): its line is an upper bound." in all_text(beside)
    assert "searched" not in all_text(models_figure({"a": models["a"]}, "l2"))
    defense = knowledge_figure(models["a"], "nearest_l2", "linf", undefended=models["c"])
    assert "nearest_l2 searched L2: over L∞ its lines are upper bounds." in all_text(defense)
    assert "No attack searched L∞ (adaptive): its line" in all_text(knowledge_figure(models["a"], None, "linf"))


def test_worst_cases_over_different_attacks_have_a_note(table: Make) -> None:
    models = {"a": model(table), "b": model(table, attacks=("fgsm",)), "c": model(table)}
    text = all_text(models_figure(models, "linf"))
    assert "rest on different attacks" in text
    assert "a, c: fgsm, pgd; b: fgsm." in text


def test_a_warning_of_the_evaluation_becomes_a_note(table: Make, recwarn: pytest.WarningsRecorder) -> None:
    assert "overstates" in all_text(models_figure({"a": model(table)}, "l2"))
    assert not recwarn


def test_an_incomplete_evaluation_is_named(table: Make) -> None:
    metas = {"a": {"complete": True}, "b": {"complete": False}, "c": {}}
    figure = models_figure({name: model(table, meta=meta) for name, meta in metas.items()}, "linf")
    assert "(cut short: b)" in figure.get_suptitle().replace("\n", " ")
    assert "Not known whether complete: c." in all_text(figure)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack": "pgd"}, "b: no attack named 'pgd' was run; there are fgsm"),
        ({"attack": "fgsm", "knowledge": "greybox"}, "a: nothing was run with knowledge 'greybox'"),
        ({"style": "report"}, "name an attack"),
        ({"style": "x"}, "no figure style 'x'"),
    ],
)
def test_what_a_model_lacks_is_refused(table: Make, given: dict[str, str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        models_figure({"a": model(table), "b": model(table, attacks=("fgsm",))}, **given)  # type: ignore[arg-type]


# The same test images


def test_other_test_images_are_refused_or_left_out_on_request(table: Make) -> None:
    models = {"a": model(table), "b": model(table, 0.5, n=12)}
    for draw in (check_same_examples, models_figure):
        with pytest.raises(EvaluationError, match=r"a \(n = 20\) and b \(n = 12\) .* different .* 12 of them in"):
            draw(models)
    cut = on_common_examples(models)
    assert [e.n for e in cut.values()] == [12, 12]
    assert cut["b"].accuracy(attack="pgd", eps=0.3) == models["b"].accuracy(attack="pgd", eps=0.3)
    check_same_examples(cut)
    apart = model(table).to_frame()
    with pytest.raises(EvaluationError, match="share no test image"):
        on_common_examples({**models, "c": Evaluation(apart.assign(index=apart["index"] + 100))})


def test_images_of_other_data_are_refused_even_if_they_have_the_same_numbers(table: Make) -> None:
    models = {"a": model(table), "b": Evaluation(model(table).to_frame().assign(label=3))}
    for draw in (check_same_examples, on_common_examples):
        with pytest.raises(EvaluationError, match="different data"):
            draw(models)
    with pytest.raises(EvaluationError, match="at least one"):
        models_figure({})


# One defense


@pytest.fixture
def defense(table: Make) -> Evaluation:
    kinds = {"adaptive": 0.6, "greybox": 1.0, "blackbox": 1.3}
    frames = [model(table, scale).to_frame().assign(knowledge=known) for known, scale in kinds.items()]
    return Evaluation(pd.concat(frames))


@pytest.mark.parametrize("attack", ["pgd", None])
def test_kinds_of_knowledge_share_a_colour(table: Make, defense: Evaluation, attack: str | None) -> None:
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


def test_a_defense_and_its_net_need_the_same_attack_on_the_same_images(table: Make, defense: Evaluation) -> None:
    for attack, bare, message in (
        ("pgd", model(table, attacks=("fgsm",)), "undefended: no attack named 'pgd'"),
        ("pgd", model(table, n=5), "different test images"),
        ("square", None, "no attack named 'square' was run; there are fgsm, pgd"),
    ):
        with pytest.raises(EvaluationError, match=message):
            knowledge_figure(defense, attack, undefended=bare)
    with pytest.raises(EvaluationError, match="name an attack"):
        knowledge_figure(defense, style="report")
    knowledge_figure(defense, "fgsm", style="report").draw_without_rendering()
