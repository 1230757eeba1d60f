"""Notes on everything in which runs were not measured alike, to read before comparing them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from robustlit.checks import TOLERANCE, budget_text
from robustlit.comparison.agreement import disagreements
from robustlit.comparison.curves import AXES
from robustlit.comparison.excerpt import Excerpt
from robustlit.comparison.measures import broken_by_less
from robustlit.comparison.origin import again
from robustlit.comparison.runs import Run, section, text
from robustlit.figures.extent import Search, searched
from robustlit.figures.panel import NORMS
from robustlit.results.table import IMAGE
from robustlit.results.verdict import OVERSTATED

_EACH = 3  # overstated figures, up to which each has a note of its own
_FEW = 4  # budgets that are listed one by one
# Settings of the data that do not change the test images.
_TRAINING_DATA = ("batch_size", "eval_batch_size", "train_size", "val_size", "test_size", "seed", "shuffle_seed",
                  "augment", "num_workers", "_target_")  # fmt: skip


def caveats(runs: Sequence[Run], excerpt: Excerpt) -> list[str]:
    """Return one sentence for each way in which the runs' numbers are not like for like, most serious first."""
    attacked = [run for run in runs if run.evaluation is not None]
    return [
        *_overstated(attacked),
        *_edited(attacked),
        *_not_adaptive(attacked),
        *_other_examples(attacked, excerpt),
        *_other_pictures(attacked),
        *_budgets(attacked),
        *(note for axis in AXES for note in _searched(attacked, axis)),
        *_other_verdicts(attacked),
        *_not_known(runs),
        *_settings([(run, _images(run)) for run in runs], "The data differ in {}"),
        *_settings([(run, _attacks(run)) for run in attacked], "{} has different settings"),
    ]


def _overstated(runs: Sequence[Run]) -> Iterator[str]:
    failing = [(run, run.verdict) for run in runs if run.verdict is not None and run.verdict.status == OVERSTATED]
    if len(failing) > _EACH:
        names = _names([run for run, _ in failing], 12)
        yield f"{names}: their figures are overstated. Do not trust their worst-case accuracies."
        return
    for run, verdict in failing:
        failures = ", ".join(text(check.failure) for check in verdict.failed)
        yield f"{_names([run])}: its figure is overstated ({failures}). Do not trust its worst-case accuracy."


def _edited(runs: Sequence[Run]) -> Iterator[str]:
    """Runs with a results.json that contradicts the table beside it."""
    for run in runs:
        if wrong := disagreements(run):
            said = text(", ".join(wrong), 200)
            why = "It was edited, or is of another evaluation; its accuracies are not shown"
            yield f"{_names([run])}: results.json says {said}. {why}."


def _not_adaptive(runs: Sequence[Run]) -> Iterator[str]:
    """Worst cases without an adaptive attack, and examples that only less informed attackers broke."""
    for known in ("greybox", "blackbox"):
        if mine := [run for run in runs if run.rests_on and run.knowledge == known]:
            worst = "Its worst case is" if len(mine) == 1 else "Their worst cases are"
            yield f"{_names(mine)}: no adaptive attack was run. {worst} {known}, which overstates a defense."
    for run in runs:
        advice = f"Its {run.knowledge} accuracy is too high by at least that many."
        if run.knowledge == "adaptive":
            advice = "They count in its worst case, but the adaptive attacks are too weak: look for masked gradients."
        for known, count in broken_by_less(run).items():
            broke = f"{known} attacks broke {count} {'example' if count == 1 else 'examples'}"
            yield f"{_names([run])}: {broke} that the {run.knowledge} attacks missed. {advice}"


def _other_examples(runs: Sequence[Run], excerpt: Excerpt) -> Iterator[str]:
    """Runs on fewer of the examples, or on others."""
    n = len(excerpt.index)
    if excerpt.of is not None:
        yield (
            f"The runs were tested on different examples. All numbers here are of the {n} examples that every run has, "
            f"of {excerpt.of} in all; each run's own results.json may differ, and verdicts are on its own examples."
        )
    if excerpt.lost:
        yield f"{excerpt.lost}."
    for run in runs:
        if run.evaluation is not None and run.complete is False:
            mine = f"its numbers are of {run.evaluation.n} of {n} examples"
            yield f"The evaluation of {_names([run])} was cut short: {mine}."


def _other_pictures(runs: Sequence[Run]) -> Iterator[str]:
    """Examples of one number and class that are different pictures, by the digests in the tables."""
    tables = [(run, run.evaluation.table) for run in runs if run.evaluation is not None]
    each = [(run, t.drop_duplicates("index").set_index("index")[IMAGE]) for run, t in tables if IMAGE in t]
    for run, images in each[1:]:
        first, others = each[0]
        shared = images.index.intersection(others.index)
        if count := int((images.loc[shared].to_numpy() != others.loc[shared].to_numpy()).sum()):
            same = f"{count} of {len(shared)} examples of the same number are other images than in {_names([first])}"
            yield f"{_names([run])}: {same}. The data differ, or the images were prepared in another way."


def _budgets(runs: Sequence[Run]) -> Iterator[str]:
    """Worst cases at different budgets, over different attacks, or at a budget without an attack."""
    yield from _groups([(run, run.budget) for run in runs], _budget, "Worst cases are reported at different budgets")
    over = [(run, ", ".join(map(text, sorted(run.rests_on)))) for run in runs if run.rests_on]
    yield from _groups(over, str, "Worst cases rest on different attacks, and fewer attacks overstate robustness")
    for run in runs:
        if not run.rests_on:
            at = "any budget" if run.budget is None else _budget(run.budget)
            yield f"{_names([run])}: nothing was attacked at {at}, so there is no worst case to report."


def _searched(runs: Sequence[Run], axis: str) -> Iterator[str]:
    """Worst cases over a distance that no attack searched, or that attacks searched at different budgets."""
    found = [
        (run, searched(run.evaluation, distance=axis, knowledge=run.knowledge))
        for run in runs
        if run.evaluation is not None and run.knowledge is not None
    ]
    if bare := [run for run, search in found if search.nowhere]:
        yield f"{_names(bare)}: no attack searched {NORMS[axis]}; over it the worst case is only an upper bound (≤)."
    what = f"Worst cases over {NORMS[axis]} are exact at different distances, and upper bounds (≤) elsewhere"
    yield from _groups([(run, search) for run, search in found if not search.nowhere], _where, what)


def _where(search: Search) -> str:
    if search.nearest:
        return "everywhere"
    if len(search.budgets) <= _FEW:
        return ", ".join(map(budget_text, search.budgets))
    return f"{len(search.budgets)} budgets up to {budget_text(search.budgets[-1])}"


def _other_verdicts(runs: Sequence[Run]) -> Iterator[str]:
    """Verdicts on another table, or at another budget than the reported one."""
    for run in runs:
        if run.verdict_note and run.verdict is None:
            yield f"{_names([run])}: verdict.json {run.verdict_note}, so it is not shown; judge it again: {again(run)}."
    if older := [run for run in runs if run.verdict_note and run.verdict is not None]:
        yield f"{_names(older)}: verdict.json {older[0].verdict_note}; nothing ties it to the numbers here."
    for run in runs:
        if run.verdict is None or run.budget is None:
            continue
        judged, (norm, eps) = (run.verdict.norm, run.verdict.eps), run.budget
        if judged[0] != norm or abs(judged[1] - eps) > TOLERANCE:
            reported = f"the worst case is reported at {_budget(run.budget)}"
            yield f"{_names([run])}: the verdict is on {_budget(judged)}, {reported}."


def _not_known(runs: Sequence[Run]) -> Iterator[str]:
    if unsure := [run for run in runs if run.evaluation is not None and run.complete is None]:
        yield f"{_names(unsure)}: evaluation.json is missing; it is not known whether the evaluation is complete."
    if bare := [run for run in runs if run.evaluation is None]:
        clean = "Clean accuracy is from results.json, on test images that cannot be checked here."
        yield f"{_names(bare)}: trained but not attacked. {clean}"
    if unnamed := [run for run in runs if run.data is None]:
        yield f"{_names(unnamed)}: the folder does not name the data set; example numbers and labels agree."


def _images(run: Run) -> dict[str, str]:
    return {str(k): text(v) for k, v in section(run.config, "data").items() if k not in _TRAINING_DATA}


def _attacks(run: Run) -> dict[str, str]:
    found = section(run.evaluation.meta if run.evaluation else {}, "attacks")
    return {str(name): text(str(settings)) for name, settings in found.items()}


def _settings(settings: Sequence[tuple[Run, dict[str, str]]], what: str) -> Iterator[str]:
    """Test images that were prepared differently, or attacks of the same name with different settings."""
    for key in dict.fromkeys(key for _, mine in settings for key in mine):
        yield from _groups([(run, mine[key]) for run, mine in settings if key in mine], str, what.format(text(key)))


def _groups(runs: Sequence[tuple[Run, Hashable]], shown: Callable[[Any], str], what: str) -> Iterator[str]:
    """Yield a sentence that lists the groups of runs of equal value, if there are several."""
    groups: dict[Hashable, list[Run]] = {}
    for run, value in runs:
        groups.setdefault(value, []).append(run)
    groups.pop(None, None)
    if len(groups) > 1:
        yield f"{what}: {'; '.join(f'{shown(value)} ({_names(mine)})' for value, mine in groups.items())}."


def _budget(budget: tuple[str, float]) -> str:
    return f"{NORMS.get(budget[0], text(budget[0]))} {budget_text(budget[1])}"


def _names(runs: Sequence[Run], most: int = 4) -> str:
    """Return the names of a few runs, "12 runs" for many."""
    return ", ".join(text(run.name, 60) for run in runs) if len(runs) <= most else f"{len(runs)} runs"
