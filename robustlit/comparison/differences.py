"""The settings whose values differ between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustlit.comparison.origin import of_the_net
from robustlit.comparison.runs import Run, section, text

# Differ between any two runs, and say nothing about them.
_OF_THE_RUN = ("name", "run_dir", "logger.run_id", "logger.name", "logger.group", "logger.job_type")
_ABSENT = "–"


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the settings that differ between runs.

    Returns:
        One entry per key: `key` (dotted), `values` (the different ones, as text) and `of` (for each run the number of
        its value; -1 for a run without a config.yaml).
    """
    flat = [dict(flattened(run)) for run in runs]
    found = []
    for key in dict.fromkeys(key for mine in flat for key in mine):
        each = [mine.get(key, _ABSENT) if mine else None for mine in flat]
        values = list(dict.fromkeys(value for value in each if value is not None))
        if len(values) > 1:
            of = [-1 if value is None else values.index(value) for value in each]
            found.append({"key": key, "values": values, "of": of})
    return found


def flattened(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the settings, versions and device of a run, without its own names; nothing without a config.yaml."""
    if not run.config:
        return
    yield from (leaf for leaf in _leaves(of_the_net(run.config)) if leaf[0] not in _OF_THE_RUN)
    for name, version in section(run.results, "versions").items():
        yield f"version of {text(str(name))}", text(version)
    if "device" in run.results:
        yield "device", text(run.results["device"])


def _leaves(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        dotted = f"{prefix}{text(str(key))}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, text(value)
