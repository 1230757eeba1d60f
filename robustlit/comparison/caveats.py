"""What a reader must know before comparing: everything in which the runs were not measured alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from robustlit.comparison.again import again
from robustlit.comparison.curves import AXES
from robustlit.comparison.excerpt import Excerpt
from robustlit.comparison.measures import broken_by_less
from robustlit.comparison.runs import Run, text
from robustlit.figures.extent import Search, searched
from robustlit.results.table import TOLERANCE
from robustlit.results.verdict import FAIL

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_EACH = 3  # failed verdicts, up to which each has a sentence
_FEW = 4  # budgets that are named one by one
# Settings of the data that do not change the test images.
_TRAINING_DATA = ("batch_size", "eval_batch_size", "train_size", "val_size", "test_size", "seed", "shuffle_seed",
                  "augment", "num_workers", "_target_")  # fmt: skip


def caveats(runs: Sequence[Run], excerpt: Excerpt) -> list[str]:
    """One sentence for each way in which the runs' figures are not like for like, the gravest first."""
    attacked = [run for run in runs if run.evaluation is not None]
    said = [*_failed(attacked), *_not_adaptive(attacked)]
    if excerpt.of is not None:
        said.append(
            f"The runs were tested on different examples. All figures here are of the {len(excerpt.index)} that every "
            f"run holds, of {excerpt.of} in all; each run's own results.json may differ, and verdicts are on its own "
            "examples."
        )
    for run in attacked:
        if run.evaluation is not None and run.evaluation.complete is False:
            said.append(
                f"The evaluation of {_name(run)} was cut short: its figures are of {run.evaluation.n} of "
                f"{len(excerpt.index)} examples."
            )
    said += _budgets(attacked)
    for axis in AXES:
        said += _searched(attacked, axis)
    said += _judged(attacked)
    if unsure := [run for run in attacked if run.evaluation is not None and run.evaluation.complete is None]:
        said.append(f"{_names(unsure)}: evaluation.json is missing; it is not known whether the evaluation is whole.")
    if untouched := [run for run in runs if run.evaluation is None]:
        said.append(
            f"{_names(untouched)}: trained but not attacked. Clean accuracy is as results.json has it, on test images "
            "that cannot be checked here."
        )
    if unknown := [run for run in runs if run.data is None]:
        said.append(f"{_names(unknown)}: the folder does not say which data set; example numbers and labels agree.")
    for key in _data_keys(runs):
        said += _groups(
            [run for run in runs if key in _data(run)],
            lambda run, key=key: text(_data(run)[key]),  # type: ignore[misc]
            str,
            f"The data differ in {key}",
        )
    return said + _settings(attacked)


def _failed(runs: Sequence[Run]) -> Iterable[str]:
    """Verdicts that fail."""
    failing = [(run, run.verdict) for run in runs if run.verdict is not None and run.verdict.status == FAIL]
    if len(failing) > _EACH:
        names = _names([run for run, _ in failing], 12)
        yield f"{names}: the verdicts are FAIL. Their worst cases are not to be believed."
        return
    for run, verdict in failing:
        failures = ", ".join(text(check.failure) for check in verdict.failed)
        yield f"{_name(run)}: the verdict is FAIL ({failures}). Its worst case is not to be believed."


def _not_adaptive(runs: Sequence[Run]) -> Iterable[str]:
    """Worst cases of attackers who do not know the defense, and what those broke beyond the best informed."""
    for known in ("greybox", "blackbox"):
        if mine := [run for run in runs if run.rests_on and run.knowledge == known]:
            whose = "Its worst case is" if len(mine) == 1 else "Their worst cases are"
            yield f"{_names(mine)}: no adaptive attack was run. {whose} {known}: it flatters a defense."
    for run in runs:
        for known, count in broken_by_less(run).items():
            what = (
                "they count in its worst case, but the adaptive attacks are too weak: look for masked gradients"
                if run.knowledge == "adaptive"
                else f"its {run.knowledge} figure is too high by at least that"
            )
            yield (
                f"{_name(run)}: {known} attacks broke {count} {'example' if count == 1 else 'examples'} that the "
                f"{run.knowledge} ones missed; {what}."
            )


def _budgets(runs: Sequence[Run]) -> Iterable[str]:
    """Worst cases at other budgets, over other attacks, or at a budget that nobody attacked."""
    yield from _groups(runs, lambda run: run.budget, _budget_text, "Worst cases are quoted at different budgets")
    yield from _groups(
        [run for run in runs if run.rests_on],
        lambda run: tuple(sorted(run.rests_on)),
        lambda names: ", ".join(map(text, names)),
        "Worst cases rest on different attacks, and fewer attacks flatter",
    )
    for run in runs:
        if not run.rests_on:
            at = "any budget" if run.budget is None else _budget_text(run.budget)
            yield f"{_name(run)}: nothing was attacked at {at}, so there is no worst case to quote."


def _searched(runs: Sequence[Run], axis: str) -> Iterable[str]:
    """Worst cases over a distance that no attack searched, or that attacks searched at other budgets."""
    found = {
        run.folder: searched(run.evaluation, distance=axis, knowledge=run.knowledge)
        for run in runs
        if run.evaluation is not None and run.knowledge is not None
    }
    mine = [run for run in runs if run.folder in found]
    if bare := [run for run in mine if found[run.folder].nowhere]:
        yield f"{_names(bare)}: no attack searched {_NORMS[axis]}; over it the worst case is only an upper bound (≤)."
    yield from _groups(
        [run for run in mine if not found[run.folder].nowhere],
        lambda run: found[run.folder],
        _where,
        f"Worst cases over {_NORMS[axis]} are exact at different distances, and upper bounds (≤) elsewhere",
    )


def _where(search: Search) -> str:
    if search.nearest:
        return "everywhere"
    few = len(search.budgets) <= _FEW
    return (
        ", ".join(f"{b:.4g}" for b in search.budgets)
        if few
        else (f"{len(search.budgets)} budgets up to {search.budgets[-1]:.4g}")
    )


def _groups(
    runs: Sequence[Run], key: Callable[[Run], Hashable], shown: Callable[[Any], str], what: str
) -> Iterable[str]:
    """A sentence with the groups of runs of equal `key`, if there are several."""
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    groups.pop(None, None)
    if len(groups) > 1:
        yield f"{what}: {'; '.join(f'{shown(value)} ({_names(mine)})' for value, mine in groups.items())}."


def _judged(runs: Sequence[Run]) -> Iterable[str]:
    """Verdicts that judged another table, or another budget than the one quoted."""
    for run in runs:
        if run.told and run.verdict is None:
            yield f"{_name(run)}: verdict.json {run.told}, so it is not shown; judge it again: {again(run).said}."
    if older := [run for run in runs if run.told and run.verdict is not None]:
        yield f"{_names(older)}: verdict.json {older[0].told}; nothing ties it to the figures here."
    for run in runs:
        if run.verdict is None:
            continue
        judged = (run.verdict.norm, run.verdict.eps)
        if run.budget is not None and (judged[0] != run.budget[0] or abs(judged[1] - run.budget[1]) > TOLERANCE):
            yield (
                f"{_name(run)}: the verdict is on {_budget_text(judged)}, the worst case is quoted at "
                f"{_budget_text(run.budget)}."
            )


def _settings(runs: Sequence[Run]) -> list[str]:
    """Attacks of one name that were not set alike."""
    written: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        attacks = run.evaluation.meta.get("attacks") if run.evaluation else None
        for name, setting in attacks.items() if isinstance(attacks, dict) else ():
            written.setdefault(text(str(name)), {}).setdefault(text(str(setting)), []).append(run)
    return [
        f"{name} was not set alike: {'; '.join(f'{setting} ({_names(mine)})' for setting, mine in each.items())}."
        for name, each in written.items()
        if len(each) > 1
    ]


def _data(run: Run) -> dict[str, Any]:
    section = run.config.get("data")
    return {str(k): v for k, v in section.items()} if isinstance(section, dict) else {}


def _data_keys(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in _data(run) if key not in _TRAINING_DATA))


def _budget_text(budget: tuple[str, float]) -> str:
    return f"{_NORMS.get(budget[0], text(budget[0]))} {budget[1]:.4g}"


def _name(run: Run) -> str:
    return text(run.name, 60)


def _names(runs: Sequence[Run], most: int = 4) -> str:
    """Names of a few runs; "12 runs" says enough of many."""
    return ", ".join(map(_name, runs)) if len(runs) <= most else f"{len(runs)} runs"
