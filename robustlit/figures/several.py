"""Many models under one attack, and one defense under each kind of knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from robustlit.figures.curves import counts
from robustlit.figures.lines import Source, draw_lines
from robustlit.figures.names import names_in_full, short_names
from robustlit.figures.panel import KNOWLEDGE_STYLES, Look, Panel, by_value, worst_case_note
from robustlit.results.evaluation import Evaluation, EvaluationError
from robustlit.results.stored_verdict import notes_beside
from robustlit.results.verdict import OVERSTATED, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDEFENDED = "the undefended net"
_NAMED = 10  # classes that are listed one by one
KNOWN_AS = {"adaptive": "adaptive", "greybox": "grey-box", "blackbox": "black-box"}
_UNDEFENDED_LOOK = Look("#000000", "-.")


def models_figure(
    evaluations: Mapping[str, Evaluation], distance: str = "l2", *, attack: str | None = None,
    knowledge: str = "adaptive", style: str = "curve", verdicts: Mapping[str, Verdict] | None = None,
    undefended: Evaluation | None = None,
) -> Figure:  # fmt: skip
    """Draw many models under one attack, or under the worst case: a line a model, with Wilson 95 % bands.

    Args:
        evaluations: Name of the model -> its evaluation, all on the same examples.
        distance: "l0", "l1", "l2" or "linf".
        attack: One attack; None takes each model's worst case over its attacks.
        knowledge: "greybox", "adaptive" or "blackbox".
        style: "curve", or "report" for the axes of the 2019 report (see `knob_settings`), which needs an attack.
        verdicts: Name of the model -> the verdict on its evaluation, if there is one; an overstated figure is marked.
        undefended: The net without a defense, for one more line, on the same examples.

    Raises:
        EvaluationError: Evaluations on different examples; an attack or knowledge that one of them lacks; an unknown
            style, or "report" without an attack; a verdict on another table.
    """
    models, verdicts = dict(evaluations), verdicts or {}
    if undefended is not None:
        models["undefended" if "undefended" not in models else UNDEFENDED] = undefended
    check_same_examples(models)
    short, own = short_names(models), len(evaluations)
    models = {short[k]: e for k, e in models.items()}
    verdicts = {short[k]: v for k, v in verdicts.items() if k in short}
    sources, notes = [], []
    for number, (name, evaluation) in enumerate(models.items()):
        look = Look.number(number) if number < own else _UNDEFENDED_LOOK
        verdict = verdicts.get(name)
        mark = " (overstated)" if verdict is not None and verdict.status == OVERSTATED else ""
        sources.append(Source(name, evaluation, attack, knowledge, look, mark))
        notes += notes_beside(evaluation, verdict, name)
    if attack is None:
        ran = {name: ", ".join(a for a, known in e.runs if known == knowledge) for name, e in models.items()}
        notes.append(worst_case_note(ran, "lines"))
    if verdicts:
        words = {k: ", ".join([v.profile, *(check.failure for check in v.failed)]) for k, v in verdicts.items()}
        notes.append(f"Figures: {by_value({k: f'{_of_figure(v)} ({words[k]})' for k, v in verdicts.items()})}.")
    if unknown := ", ".join(name for name, e in models.items() if e.complete is None):
        notes.append(f"Not known whether complete: {unknown}.")
    cut = ", ".join(name for name, e in models.items() if e.complete is False)
    known = "" if knowledge == "adaptive" else f", {KNOWN_AS[knowledge]}"
    beside = "" if undefended is None else f" and {UNDEFENDED}"
    subject = f"{own} models{beside} under {attack or 'the worst case'}{known}: accuracy"
    n = f"n = {next(iter(models.values())).n}{f' (cut short: {cut})' if cut else ''}"
    return draw_lines(Panel(distance, subject, n, style, notes + names_in_full(short)), sources)


def _of_figure(verdict: Verdict) -> str:
    return f"{verdict.status}{', the net is not robust' if verdict.none_robust else ''}"


def knowledge_figure(
    evaluation: Evaluation, attack: str | None = None, distance: str = "l2", *, undefended: Evaluation | None = None,
    style: str = "curve", name: str = "", verdict: Verdict | None = None,
) -> Figure:  # fmt: skip
    """Draw one defense under each kind of knowledge: adaptive solid, grey-box dashed, black-box dotted.

    Args:
        attack: One attack; None takes the worst case under each kind of knowledge.
        distance, style, name, verdict: As in `curves_figure`; style "report" needs an attack.
        undefended: The same attack on the net without the defense, for one more line, on the same examples.

    Raises:
        EvaluationError: An attack that either evaluation lacks; evaluations on different examples; an unknown style, or
            "report" without an attack; a verdict on another table.
    """
    if undefended is not None:
        check_same_examples({name or "the defense": evaluation, UNDEFENDED: undefended})
    if attack is not None:
        evaluation.norm_of(attack)  # raises an EvaluationError if it did not run
    first = Look.number(0 if attack is None else evaluation.attacks.index(attack))
    sources = [
        Source(label, evaluation, attack, known, Look(first.colour, KNOWLEDGE_STYLES[known], first.marker))
        for known, label in KNOWN_AS.items()
        if any(known == k and attack in (None, a) for a, k in evaluation.runs)
    ]
    if undefended is not None:
        sources.append(Source("undefended", undefended, attack, "adaptive", _UNDEFENDED_LOOK))
    subject = f"{name + ' under ' if name else ''}{attack or 'the worst case'}, by what the attacker knows: accuracy"
    notes = notes_beside(evaluation, verdict)
    return draw_lines(Panel(distance, subject, counts(evaluation), style, notes, verdict), sources)


def labels_of(evaluation: Evaluation) -> pd.Series:
    """Return the true classes by example number, ascending."""
    return evaluation.table.drop_duplicates("index").set_index("index")["label"].sort_index()


def lost_classes(before: pd.Series, after: pd.Series, evaluation: Evaluation | None) -> str:
    """Return a sentence that names the classes, as `evaluation` does, which only `before` has; "" if there is none."""
    gone = sorted({*before} - {*after})
    if not gone:
        return ""
    names = [evaluation.class_name(label) if evaluation else str(label) for label in gone[:_NAMED]]
    more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
    return f"No example that all share is of class {', '.join(names)}{more}, so accuracies here leave them out"


def check_same_examples(evaluations: Mapping[str, Evaluation]) -> None:
    """Raise an EvaluationError for none, or for different test images: their accuracies cannot be compared."""
    if not evaluations:
        raise EvaluationError("a figure of several models needs at least one evaluation")
    (first, *_), labels = list(evaluations), {name: labels_of(e) for name, e in evaluations.items()}
    for name, found in labels.items():
        if found.equals(labels[first]):
            continue
        both = labels[first].index.intersection(found.index)
        if not found.loc[both].equals(labels[first].loc[both]):
            raise EvaluationError(f"{first} and {name} were attacked on different data: their classes differ")
        raise EvaluationError(
            f"{first} (n = {len(labels[first])}) and {name} (n = {len(found)}) were attacked on different test images, "
            f"{len(both)} of them in common; "
            + ("draw those alone (on_common_examples, --intersect)" if len(both) else "evaluate both on the same ones")
        )


def on_common_examples(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Return the evaluations reduced to the test images that all share; an EvaluationError if there are none."""
    numbers = [set(evaluation.table["index"]) for evaluation in evaluations.values()]
    common = set.intersection(*numbers) if numbers else set()
    if not common:
        raise EvaluationError(f"{', '.join(evaluations)} share no test image: evaluate them on the same ones")
    cut = {name: evaluation.on(sorted(common)) for name, evaluation in evaluations.items()}
    check_same_examples(cut)
    return cut
