"""Many models under one attack, and one defense under all that an attacker may know."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pandas as pd

from robustlit.figures.curves import bound_notes, budget_notes, counted, curve_line
from robustlit.figures.knob import check_style, knob_line
from robustlit.figures.panel import KNOWLEDGE_STYLES, NORMS, UNITS, Line, Look, Panel, by_attacks
from robustlit.results.evaluation import Evaluation, EvaluationError
from robustlit.results.stored_verdict import notes_beside
from robustlit.results.verdict import FAIL, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KNOWN_AS = {"adaptive": "adaptive", "greybox": "grey-box", "blackbox": "black-box"}
_UNDEFENDED = Look("#000000", "-.")


def models_figure(
    evaluations: Mapping[str, Evaluation],
    distance: str = "l2",
    *,
    attack: str | None = None,
    knowledge: str = "adaptive",
    style: str = "curve",
    verdicts: Mapping[str, Verdict] | None = None,
    undefended: Evaluation | None = None,
) -> Figure:
    """Many models under one attack, or under the worst case: a line a model, with Wilson 95 % bands.

    Args:
        evaluations: name of the model -> its evaluation, all on the same examples.
        distance: l0, l1, l2 or linf.
        attack: one attack; None takes each model's worst case over its attacks.
        knowledge: greybox, adaptive or blackbox.
        style: "curve", or "report" for the 2019 report's axes (see `knob_settings`), which needs an attack.
        verdicts: name of the model -> the verdict on its evaluation, for those that have one; a failed one is marked.
        undefended: of the net without a defense, for one more line, on the same examples.

    Raises:
        EvaluationError: other examples in one evaluation than in another; an attack or knowledge that one model was
            not attacked with; an unknown style, or "report" without an attack; a verdict on another table.
    """
    report = check_style(style) == "report"
    if report and attack is None:
        raise EvaluationError("style 'report' draws an attack's settings, and a worst case has none: name an attack")
    models = dict(evaluations)
    if undefended is not None:
        models["undefended" if "undefended" not in models else "the undefended net"] = undefended
    check_same_examples(models)
    lines: list[Line] = []
    notes: list[str] = []
    for number, (name, evaluation) in enumerate(models.items()):
        look = Look.number(number) if name in evaluations else _UNDEFENDED
        judged = (verdicts or {}).get(name)
        label = f"{name} (verdict FAIL)" if judged is not None and judged.status == FAIL else name
        with _named(name, notes):
            if report:
                assert attack is not None
                line = knob_line(evaluation, attack, label, distance, knowledge, look)
            else:
                line = curve_line(evaluation, attack, label, distance, knowledge, look)
        notes += notes_beside(evaluation, judged, name)
        if line is None:
            notes.append(f"{attack} found no witness on {name}.")
        else:
            lines.append(line)
    if attack is None:
        notes += _rests_on(models, knowledge)
    for evaluation in models.values():
        ran = [(name, known) for name, known in evaluation.runs if known == knowledge and attack in (None, name)]
        notes += budget_notes(evaluation, ran, report)
    if not report:
        notes += bound_notes([(e, attack, knowledge) for e in models.values()], distance, list(models))
    if verdicts:
        notes.append(f"Verdicts: {by_attacks({name: _short(found) for name, found in verdicts.items()})}.")
    cut = ", ".join(name for name, e in models.items() if e.complete is False)
    if unknown := ", ".join(name for name, e in models.items() if e.complete is None):
        notes.append(f"Not known whether complete: {unknown}.")
    known = "" if knowledge == "adaptive" else f", {KNOWN_AS[knowledge]}"
    beside = "" if undefended is None else " and the undefended net"
    return Panel(
        distance,
        f"{len(evaluations)} models{beside} under {attack or 'the worst case'}{known}: accuracy against "
        f"{NORMS[distance]} distance, n = {next(iter(models.values())).n}" + (f" (cut short: {cut})" if cut else ""),
        lines,
        list(dict.fromkeys(notes)),
        xlabel=f"mean {UNITS[distance].replace(' (', ' of the witnesses (')}" if report else None,
    ).figure()


def knowledge_figure(
    evaluation: Evaluation,
    attack: str | None = None,
    distance: str = "l2",
    *,
    undefended: Evaluation | None = None,
    style: str = "curve",
    name: str = "",
    verdict: Verdict | None = None,
) -> Figure:
    """One defense under what the attacker may know, beside the net without it: adaptive drawn through, grey-box dashed.

    Args:
        evaluation: of the defense.
        attack: one attack; None takes the worst case under each kind of knowledge.
        distance: l0, l1, l2 or linf.
        undefended: the same attack on the net without the defense, on the same examples.
        style: "curve", or "report" for the 2019 report's axes (see `knob_settings`), which needs an attack.
        name: of the defense, for the title.
        verdict: on its evaluation, for a line below the title.

    Raises:
        EvaluationError: an attack that was not run, on either; other examples in one than in the other; an unknown
            style, or "report" without an attack; a verdict on another table.
    """
    report = check_style(style) == "report"
    if report and attack is None:
        raise EvaluationError("style 'report' draws an attack's settings, and a worst case has none: name an attack")
    if undefended is not None:
        check_same_examples({name or "the defense": evaluation, "the undefended net": undefended})
    ran = [known for a, known in evaluation.runs if attack in (None, a)]
    if not ran:
        there = ", ".join(evaluation.attacks)
        raise EvaluationError(f"no attack named {attack!r} was run; there are {there}")
    colour = Look.number(evaluation.attacks.index(attack) if attack else 0)
    drawn = [
        (evaluation, known, label, Look(colour.colour, KNOWLEDGE_STYLES[known], colour.marker))
        for known, label in KNOWN_AS.items()
        if known in ran
    ]
    if undefended is not None:
        drawn.append((undefended, "adaptive", "undefended", _UNDEFENDED))
    lines: list[Line] = []
    notes = (
        [] if attack is None else budget_notes(evaluation, [(attack, known) for known in dict.fromkeys(ran)], report)
    )
    notes += notes_beside(evaluation, verdict)
    for source, known, label, look in drawn:
        with _named(label, notes):
            if report:
                assert attack is not None
                line = knob_line(source, attack, label, distance, known, look)
            else:
                line = curve_line(source, attack, label, distance, known, look)
        if line is None:
            notes.append(f"No witness: {label}.")
        else:
            lines.append(line)
    if not report:
        each = [(source, attack, known) for source, known, _, _ in drawn]
        notes += bound_notes(each, distance, [label for _, _, label, _ in drawn])
    return Panel(
        distance,
        f"{name + ' under ' if name else ''}{attack or 'the worst case'}, by what the attacker knows: accuracy against "
        f"{NORMS[distance]} distance, {counted(evaluation)}, clean {100 * evaluation.clean_accuracy:.1f} %",
        lines,
        list(dict.fromkeys(notes)),
        xlabel=f"mean {UNITS[distance].replace(' (', ' of the witnesses (')}" if report else None,
        verdict=verdict,
    ).figure()


def _short(verdict: Verdict) -> str:
    """A verdict in a few words."""
    failed = "".join(f", {check.failure}" for check in verdict.failed)
    return f"{verdict.status} ({verdict.profile}{failed})"


@contextmanager
def _named(name: str, notes: list[str]) -> Iterator[None]:
    """Says of which model an error is; what the evaluation warns of becomes a note."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except EvaluationError as error:
            raise EvaluationError(f"{name}: {error}") from error
    notes += [f"{str(warning.message)[0].upper()}{str(warning.message)[1:]}." for warning in caught]


def _rests_on(evaluations: Mapping[str, Evaluation], knowledge: str) -> list[str]:
    """On which attacks the worst cases rest: said once where it is the same, for each model where it is not."""
    attacks = {
        name: ", ".join(a for a, known in evaluation.runs if known == knowledge)
        for name, evaluation in evaluations.items()
    }
    if len(set(attacks.values())) == 1:
        return [f"Worst case over {next(iter(attacks.values()))}."]
    return [f"The worst cases rest on different attacks, so that lines differ by those too. {by_attacks(attacks)}."]


def _labels(evaluation: Evaluation) -> pd.Series:
    return evaluation.table.drop_duplicates("index").set_index("index")["label"].sort_index()


def check_same_examples(evaluations: Mapping[str, Evaluation]) -> None:
    """Refuses evaluations of different test images: their accuracies are not to be compared.

    Raises:
        EvaluationError: none given, or two that differ in their examples.
    """
    if not evaluations:
        raise EvaluationError("a figure of several models needs at least one evaluation")
    (first, *_), labels = list(evaluations), {name: _labels(e) for name, e in evaluations.items()}
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
    """The evaluations cut down to the test images that all share.

    Raises:
        EvaluationError: they share none, or give one image different classes.
    """
    labels = {name: _labels(evaluation) for name, evaluation in evaluations.items()}
    both = None
    for found in labels.values():
        both = found.index if both is None else both.intersection(found.index)
    if both is None or not len(both):
        raise EvaluationError(f"{', '.join(evaluations)} share no test image: evaluate them on the same ones")
    cut = {name: evaluation.on(both) for name, evaluation in evaluations.items()}
    check_same_examples(cut)
    return cut
