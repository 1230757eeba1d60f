"""Composing a recipe with what the command line changes; a name that does not exist is answered with the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from robustlit.experiment.recipes import BASE, GROUPS, ConfigError, recipes_folder


def composed(overrides: Sequence[str], *, name: str = BASE, folders: Sequence[str] = ()) -> DictConfig:
    """The recipe `name` with overrides applied by Hydra's rules.

    Args:
        overrides: as on the command line.
        name: of a file in the recipes folder, or of a recipe stored with Hydra.
        folders: further folders of recipes and groups.

    Raises:
        ConfigError: an override that cannot be read or that has several values, a group or key that does not exist.
    """
    parsed = _parsed(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} gives several values, for as many runs: `robustlit train -m` does that; as one "
                f"value, a list is written {override.key_or_group}=[A,B]"
            )
    asked = [o.input_line or "" for o in parsed]
    places = ",".join(QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in folders)
    where = [f"hydra.searchpath=[{places}]"] if folders else []
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        try:
            return compose(name, overrides=[*where, *asked])
        except HydraException as error:
            raise ConfigError(_reason(error, name, parsed, where, folders)) from error


def check_overrides(overrides: Sequence[str], folders: Sequence[str] = (), *, several: bool = False) -> None:
    """Raises a ConfigError for overrides that cannot be composed: Hydra's own program says it in many lines.

    Args:
        overrides, folders: as for `composed`.
        several: whether an override may give several values, one for each run.
    """
    first = []
    for override in _parsed(overrides):
        key = override.key_or_group
        if not (several and override.is_sweep_override()):
            first.append(override.input_line or "")
            continue
        try:
            choices = list(override.sweep_string_iterator())
        except HydraException:  # one that Hydra's sweeper alone can spell out, such as glob(*)
            continue
        for choice in choices if key in GROUPS else ():
            check_choice(key, choice, folders)
        first.append(f"{str(override.input_line).partition('=')[0]}={choices[0]}")
    composed(first, folders=folders)


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    found: list[Override] = []
    for override in overrides:
        try:
            found.append(parser.parse_override(override))
        except HydraException as error:
            said = str(error.__cause__) if error.__cause__ and error.__cause__.args[0] else str(error)
            why = said.splitlines()[0]
            raise ConfigError(
                f"{override!r} cannot be read ({why}); write key=value, such as eps=8/255, ~key to take a key out, and "
                "quotes around a value with special characters: 'name=\"a b\"'"
            ) from error
    return found


def _reason(error: HydraException, name: str, parsed: list[Override], where: list[str], folders: Sequence[str]) -> str:
    """What is wrong with the overrides, in one line: the choice or the key that does not exist, else Hydra's words."""
    for override in parsed:
        chosen = override.key_or_group in GROUPS and override.type == OverrideType.CHANGE
        if chosen and override.value() is not None:
            check_choice(override.key_or_group, str(override.value()), folders)
    groups = [o.input_line or "" for o in parsed if o.key_or_group in (*GROUPS, "recipe")]
    try:
        keys = set(_keys(OmegaConf.to_container(compose(name, overrides=[*where, *groups]))))
    except HydraException:  # the recipe itself is what does not compose
        return _one_line(error)
    keys |= {o.key_or_group for o in parsed if o.is_add()}
    for override in parsed:
        key = override.key_or_group
        changes = override.type in (OverrideType.CHANGE, OverrideType.DEL) and not key.startswith("hydra")
        if changes and key not in keys and override.input_line not in groups:
            return f"the recipe has no {key}; {_hint(key, keys)}"
    return _one_line(error)


def check_choice(group: str, choice: str, folders: Sequence[str] = ()) -> None:
    """Raises a ConfigError with the names that there are unless a group (`model`, `data`, ...) has a file `choice`.

    The group's folder is looked for in the recipes folder, and in further ones.
    """
    places = [folder / group for folder in (recipes_folder(), *map(Path, folders))]
    if not any((place / f"{choice}.yaml").is_file() for place in places):
        there = sorted({file.stem for place in places for file in place.glob("*.yaml")})
        raise ConfigError(f"there is no {group} {choice!r}; there are {', '.join(there)}")


def _hint(key: str, keys: set[str]) -> str:
    """The nearest key: where it should lie, else anywhere as deep; else what there is."""
    above, _, last = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in sorted(keys) if k.rpartition(".")[0] == above}
    as_deep = [k for k in sorted(keys) if k.count(".") == key.count(".")]
    near = [beside[k] for k in difflib.get_close_matches(last, beside, n=1)]
    if not near and not (above and beside):
        near = difflib.get_close_matches(key, as_deep, n=1, cutoff=0.75)
    if near:
        return f"did you mean {near[0]}?"
    there = f"{above} has {', '.join(beside)}; +{key}=VALUE adds it, " if above and beside else ""
    return f"{there}`robustlit train ... --cfg job` shows what there is"


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe as plain containers, the inner ones too."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _one_line(error: BaseException) -> str:
    lines = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    return "; ".join(line.strip() for text in lines for line in text.splitlines() if line.strip())
