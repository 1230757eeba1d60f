"""Read the small files of a run folder, which may come from a stranger: bounded in size and depth, without aliases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 8 * 2**20  # bytes; a recipe with a similarity matrix of 100 classes has 250 kB
_DEEPEST = 64  # containers inside one another


def read_text(path: Path) -> str:
    """Return the text of a file; raise a ValueError for one that is no file, or too large."""
    if not path.is_file():  # a pipe or a device would be read for ever
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        found = file.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST // 2**20} MB")
    return found.decode("utf-8")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; raise an OSError or a ValueError for one that cannot be read."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("its values lie too deep inside one another") from None


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; raise an OSError or a ValueError for one that cannot be read.

    Aliases, by which a short file stands for an endless one, and tags, which name classes, are refused: a run writes
    neither.
    """
    import yaml  # type: ignore[import-untyped]

    loader, text, depth = getattr(yaml, "CSafeLoader", yaml.SafeLoader), read_text(path), 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has a YAML alias (*), and a run writes none")
            if getattr(event, "tag", None) is not None:
                raise ValueError("it has a YAML tag (!), and a run writes none")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError("its values lie too deep inside one another")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
