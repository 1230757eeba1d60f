"""The overrides that make one stored recipe of another, written as `robustlit evaluate` takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml  # type: ignore[import-untyped]

# What differs between any two runs, says nothing about them, and is set by `robustlit evaluate` itself.
OF_THE_RUN = ("name", "run_dir", "logger.run_id", "logger.name", "logger.group", "logger.job_type")
_GIVEN = ("ckpt_path", "verdict")  # by its other arguments
_GROUPS = ("data", "sweep", "logger")  # that it exchanges whole, by the name of a file
_ABSENT = object()
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_SPECIAL = ("null", "true", "false", "inf", "nan")


class UnwritableError(ValueError):
    """A setting that no override can say; the message is its key."""


def overrides(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What turns the recipe of a checkpoint into another one, apart from what is of the run alone.

    Args:
        stored, wanted: recipes as in config.yaml, interpolations unresolved.

    Returns:
        Overrides such as "sweep=worst_case", "data.test_size=1000", "+sweep.grid.l2=[1.0,2.0]" and
        "~sweep.attacks.fgsm", not yet quoted for a shell.

    Raises:
        UnwritableError: a key or value that an override cannot hold.
    """
    found: list[str] = []
    for key in {**stored, **wanted}:
        want = wanted.get(key, _ABSENT)
        changes = list(_between(stored.get(key, _ABSENT), want, "", key))
        if key in _GROUPS and len(changes) > 1:
            for name, section in _files(key):
                left = [f"{key}={name}", *_between(section, want, "", key)]
                changes = min(changes, left, key=len)
        found += changes
    return found


def _between(have: object, want: object, above: str, key: str) -> Iterator[str]:
    """The overrides that turn the value `have` at a key, below the dotted ones `above`, into `want`."""
    path = f"{above}{key}"
    if path in OF_THE_RUN or path in _GIVEN or _same(have, want):
        return
    if not _KEY.fullmatch(key):
        raise UnwritableError(path)
    if want is _ABSENT:
        yield f"~{path}"
    elif isinstance(have, Mapping) and isinstance(want, Mapping):
        for inner in {**have, **want}:
            yield from _between(have.get(inner, _ABSENT), want.get(inner, _ABSENT), f"{path}.", str(inner))
    elif isinstance(have, (Mapping, list)) and isinstance(want, (Mapping, list)) and type(have) is not type(want):
        raise UnwritableError(path)
    else:
        yield f"{'+' if have is _ABSENT else ''}{path}={_written(want, path)}"


def _same(have: object, want: object) -> bool:
    """Whether they are the same in value and kind: 1 is neither 1.0 nor true."""
    if have is _ABSENT or want is _ABSENT:
        return have is want
    return json.dumps(have, sort_keys=True, default=str) == json.dumps(want, sort_keys=True, default=str)


def _written(value: object, path: str) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(_written(v, path) for v in value)}]"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not _KEY.fullmatch(key) or key.lower() in _SPECIAL:
                raise UnwritableError(f"{path}.{key}")
        parts = (f"{key}:{_written(inner, f'{path}.{key}')}" for key, inner in value.items())
        return f"{{{','.join(parts)}}}"
    if not isinstance(value, str):
        raise UnwritableError(path)
    if _BARE.fullmatch(value) and value.lower() not in _SPECIAL:
        return value
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=value, quote=Quote.single).with_quotes()


@cache
def _files(group: str) -> list[tuple[str, object]]:
    """The files of a group of recipes: name and contents."""
    from robustlit.experiment.recipes import recipes_folder

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = sorted((recipes_folder() / group).glob("*.yaml"))
    return [(file.stem, yaml.load(file.read_text(encoding="utf-8"), Loader=loader)) for file in files]
