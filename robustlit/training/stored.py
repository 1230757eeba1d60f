"""Check the recipe in a checkpoint: plain values, references to its own keys, and the classes that it may name.

A checkpoint may come from a stranger. What is checked here is a copy of exact plain containers, and that copy is
what is resolved and built afterwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Sequence
from inspect import isclass
from types import ModuleType
from typing import Any

from hydra.utils import get_object
from torch import nn

from robustlit import defenses, models


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, not of robustlit, or holds or names what it must not."""


MOST_VALUES = 1_200_000  # of a recipe with its references replaced; a similarity matrix of 1 000 classes has a million
_DEEPEST = 24  # containers inside one another; shipped recipes have six
_LONGEST = 4_096  # characters of a text
_LARGEST = 1_000_000_000  # of a whole number that builds something; seeds are below 2**32
# ${key} and ${key.inner}; ${key.${other}} chooses a value by another key; arguments of the two pure resolvers.
_KEY = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_REFERENCE = re.compile(rf"\$\{{({_KEY})(?:\.\$\{{({_KEY})\}})?\}}", re.ASCII)
_ARGUMENT = rf"(?:\$\{{{_KEY}\}}|[\w./+-]+)"
_RESOLVER = re.compile(rf"\$\{{(?:times|budgets):{_ARGUMENT}(?:, *{_ARGUMENT})*\}}", re.ASCII)
_TOP_KEY = re.compile(r"[A-Za-z]\w*", re.ASCII)
_OF_HYDRA = ("hydra", "defaults")  # top-level keys by which a config loads others


def classes_of(room: ModuleType, *kinds: type) -> frozenset[str]:
    """Return the import paths of a room's public classes of some kinds; functions and constants are not among them."""
    public = ((name, getattr(room, name)) for name in room.__all__)
    return frozenset(f"{room.__name__}.{name}" for name, found in public if isclass(found) and issubclass(found, kinds))


NETS = classes_of(models, nn.Module) | classes_of(defenses, nn.Module)  # what a stored `model` may name


def shown(value: object) -> str:
    """Return a value for a message: one line, at most 80 characters, nothing that a terminal obeys."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_training_state(checkpoint: dict[str, Any], path: str) -> None:
    """Raise a CheckpointError where Lightning's part of a checkpoint would make a resumed run delete files elsewhere.

    Lightning deletes the former best checkpoint where the state of its callback says that it lies, below the run's own
    folder: a path that climbs out of it again is refused.
    """
    states, schedules = checkpoint.get("callbacks", {}), checkpoint.get("lr_schedulers", [])
    if not isinstance(schedules, list) or not all(isinstance(schedule, dict) for schedule in schedules):
        raise CheckpointError(f"{path} holds schedules that are none; it is damaged")
    for text in _texts(states, 0):
        if ".." in text.replace("\\", "/").split("/") or "://" in text or not text.isprintable():
            raise CheckpointError(f"{path} holds {shown(text)} in the state of a callback, which is no path of a run")
    recipe = (checkpoint["robustlit"] or {}).get("config") or {}
    for section in ("objective", "logger", "trainer"):
        if not isinstance(recipe.get(section), (dict, type(None))):
            raise CheckpointError(f"the recipe in {path} has {section}={shown(recipe[section])}; it is damaged")
    run_id = (recipe.get("logger") or {}).get("run_id")
    if run_id is not None and not (isinstance(run_id, str) and re.fullmatch(r"[\w-]{1,128}", run_id, re.ASCII)):
        raise CheckpointError(f"the recipe in {path} has logger.run_id={shown(run_id)}, which is no id of W&B")


def _texts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)) and depth < _DEEPEST:
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(inner, depth + 1)


def one_line(error: object) -> str:
    """Return the start of a message in one line, without what a terminal obeys."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:297]}..."


def checked_recipe(recipe: object) -> dict[str, Any]:
    """Return a copy of a stored recipe in plain containers, after checking that it holds plain values alone.

    Values are None, bool, int, float and str. A text may refer to keys of the recipe itself (`${eps}`), and be one of
    the pure resolvers `times` and `budgets` of such references and of numbers.

    Raises:
        CheckpointError: Anything else, a top-level key of Hydra's, or more values than any recipe has.
    """
    if type(recipe) is not dict:
        raise _refused(f"is a {type(recipe).__name__}, not a group of settings")
    copy: dict[str, Any] = _plain(recipe, "", 0, _Budget())
    for key in copy:
        if not _TOP_KEY.fullmatch(key) or key in _OF_HYDRA:
            raise _refused(f"has the top-level key {shown(key)}")
    _Sizes(copy).check()
    return copy


def plain_values(config: Any) -> Any:
    """Return a copy of a config in exact plain types; raise a CheckpointError if it refers to anything."""
    return _plain(config, "", 0, _Budget(), resolved=True)


def check_names(config: Any, allowed: Container[str], trusted: Sequence[str] = (), *, section: str = "model") -> None:
    """Raise a CheckpointError unless a section builds nothing but what is allowed.

    Args:
        config: What `plain_values` returned, and what is built afterwards.
        allowed: Import paths that may be built.
        trusted: Packages of the user's own whose classes may be built.
        section: Where it stands in the recipe, for messages.
    """
    for where, value in _walk(config, section):
        if isinstance(value, dict):
            _check_node(value, where, allowed, trusted)
        elif isinstance(value, int) and abs(value) > _LARGEST and not where.endswith("seed"):
            raise _refused(f"has {shown(where)}={value}, beyond {_LARGEST}")


def _check_node(node: dict[str, Any], where: str, allowed: Container[str], trusted: Sequence[str]) -> None:
    for key in node:
        if key.startswith("_") and key != "_target_":  # _args_, _partial_, _recursive_, _convert_
            raise _refused(f"has {shown(f'{where}.{key}')}, and no key of a section may start with an underscore")
    target = node.get("_target_")
    if target is None:
        return
    if type(target) is not str or not (target in allowed or _is_trusted(target, trusted)):
        raise CheckpointError(
            f"the checkpoint's recipe names {shown(target)} at {shown(where)}, which is no class of robustlit that it "
            "may name there; using it would run that code. If it is yours, name its package: trust=[PACKAGE] (from "
            "Python: trusted=[PACKAGE])"
        )


def _is_trusted(target: str, packages: Sequence[str]) -> bool:
    """Return whether a path leads to a class that a trusted package itself defines."""
    # The prefix alone is not enough: package.nn.Linear is a path too. Some functions build whatever they are given.
    if not _lies_in(target, packages):
        return False
    try:
        found = get_object(target)
    except Exception:  # Hydra raises several kinds for a path that leads nowhere
        return False
    return isinstance(found, type) and _lies_in(found.__module__, packages)


def _lies_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refused(what: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's recipe {what}; a stored recipe holds plain values and ${{key}} alone")


class _Budget:
    """Counts values, so that a container that holds another many times over is refused and not copied."""

    def __init__(self) -> None:
        self.left = MOST_VALUES

    def spend(self, count: int, where: str) -> None:
        self.left -= count
        if self.left < 0:
            raise _refused(f"has more than {MOST_VALUES} values (at {shown(where)})")


def _plain(value: Any, where: str, depth: int, budget: _Budget, *, resolved: bool = False) -> Any:
    """Return a copy in exact plain types; a `resolved` one must hold no reference."""
    budget.spend(1, where)
    kind = type(value)  # a subclass could answer differently the next time it is asked
    if kind in (bool, float, type(None)):
        return value
    if kind is int and abs(value) < 2**63:
        return value
    if kind is str:
        _check_text(value, where, resolved)
        return value
    if depth >= _DEEPEST:
        raise _refused(f"is more than {_DEEPEST} levels deep (at {shown(where)})")
    if kind in (list, tuple):
        return [_plain(v, f"{where}.{n}", depth + 1, budget, resolved=resolved) for n, v in enumerate(value)]
    if kind is not dict:
        raise _refused(f"has {shown(value) if kind is int else f'a {kind.__name__}'} at {shown(where)}")
    copy = {}
    for key, inner in value.items():
        if type(key) is not str or not key or len(key) > _LONGEST or not key.isprintable() or "$" in key:
            raise _refused(f"has the key {shown(key)} at {shown(where)}")
        if key == "_target_" and "${" in str(inner):
            raise _refused(f"names a class by a reference at {shown(where)}")
        copy[key] = _plain(inner, f"{where}.{key}" if where else key, depth + 1, budget, resolved=resolved)
    return copy


def _check_text(text: str, where: str, resolved: bool) -> None:
    if len(text) > _LONGEST:
        raise _refused(f"has a text of {len(text)} characters at {shown(where)}")
    if not text.isprintable():
        raise _refused(f"has control characters at {shown(where)}")
    if "${" not in text or (not resolved and _RESOLVER.fullmatch(text)):
        return
    rest = "$" if resolved else _REFERENCE.sub("", text)
    if any(sign in rest for sign in "$\\{}"):
        raise _refused(f"has {shown(text)} at {shown(where)}")


def _walk(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    yield where, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from _walk(inner, f"{where}.{key}")


class _Sizes:
    """How many values and characters each part of a recipe has once its references are replaced.

    References that refer to references, each of them twice, grow exponentially: they are measured, not resolved.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        self.recipe = recipe
        self.known: dict[str, float] = {}

    def check(self) -> None:
        if self._of(self.recipe) > 2 * MOST_VALUES:
            raise _refused(f"has more than {2 * MOST_VALUES} values with its references replaced")

    def _of(self, value: Any) -> float:
        if isinstance(value, (dict, list)):
            return 1 + sum(map(self._of, value.values() if isinstance(value, dict) else value))
        if not isinstance(value, str):
            return 1
        keys = [key for pair in _REFERENCE.findall(value) for key in pair if key]
        return 1 + len(value) // 64 + sum(map(self._of_key, keys))

    def _of_key(self, key: str) -> float:
        if key not in self.known:
            self.known[key] = math.inf  # for a reference that leads back to itself
            node: Any = self.recipe
            for part in key.split("."):
                node = node.get(part) if isinstance(node, dict) else None
            self.known[key] = self._of(node)
        return self.known[key]
