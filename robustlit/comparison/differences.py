"""What was set differently: the keys of the runs' recipes whose values are not the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustlit.comparison.origin import of_the_net
from robustlit.comparison.overrides import OF_THE_RUN
from robustlit.comparison.runs import Run, text

_ABSENT = "–"


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings that differ between runs.

    Returns:
        One entry a key: `key` (dotted), `values` (the different ones, as text) and `of` (for each run, which of
        `values`; -1 for a run without a config.yaml).
    """
    flat = [dict(_flattened(run)) for run in runs]
    keys = list(dict.fromkeys(key for mine in flat for key in mine))
    found = []
    for key in keys:
        if key in OF_THE_RUN:
            continue
        each = [mine.get(key, _ABSENT) if mine else None for mine in flat]
        values = list(dict.fromkeys(value for value in each if value is not None))
        if len(values) > 1:
            of = [-1 if value is None else values.index(value) for value in each]
            found.append({"key": key, "values": values, "of": of})
    return found


def _flattened(run: Run) -> Iterator[tuple[str, str]]:
    yield from _leaves(of_the_net(run.config), "")
    if run.config:
        for name, version in _mapping(run.results.get("versions")).items():
            yield f"version of {text(str(name))}", text(version)
        if "device" in run.results:
            yield "device", text(run.results["device"])


def _leaves(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        dotted = f"{prefix}{text(str(key))}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, text(value)


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
