"""Compose a recipe with the overrides of the command line; for a name that does not exist, suggest the nearest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from robustlit.checks import did_you_mean
from robustlit.experiment import recipes
from robustlit.experiment.recipes import BASE, GROUPS, USUAL_EPS, ConfigError, recipes_folder

# Parts of a recipe that train a net; a net of the user's own has none of them.
_OF_TRAINING = ("model", "objective", "optimizer", "schedule")
RENAMED = {"sweep=nine": "sweep=many_attacks"}  # the old names go with the next release


def composed(overrides: Sequence[str], *, name: str | None = BASE, folders: Sequence[str] = ()) -> DictConfig:
    """Return the recipe `name` with overrides applied by Hydra's rules.

    Args:
        overrides: As on the command line.
        name: A file in the recipes folder, or a recipe stored with Hydra; None composes the overrides alone.
        folders: Further folders of recipes and groups.

    Raises:
        ConfigError: An override cannot be read or has several values, a group or key does not exist.
    """
    parsed = _parsed(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} gives several values, for as many runs: `robustlit train -m` does that; as one "
                f"value, a list is written {override.key_or_group}=[A,B]"
            )
    places = ",".join(QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in folders)
    where = [f"hydra.searchpath=[{places}]"] if folders else []
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        try:
            return compose(name, overrides=[*where, *(o.input_line or "" for o in parsed)])
        except HydraException as error:
            raise ConfigError(_reason(error, name, parsed, where, folders)) from error


def overridden(recipe: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Return a stored recipe with overrides applied by Hydra's rules; `group=NAME` replaces that group by its file.

    Its eps is a budget in its norm: another norm without an eps takes that of the data, or is refused later.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    if given.get("norm", recipe.get("norm")) != recipe.get("norm") and "eps" not in given:
        recipe = {**recipe, "eps": USUAL_EPS}
    values = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group in ("model", "recipe"):
            raise ConfigError(
                f"{override}: a checkpoint holds its net and its recipe; model.KEY=VALUE changes a value of the net, "
                f"`robustlit train {override}` trains another"
            )
        if group not in GROUPS:
            values.append(override)
            continue
        check_choice(group, name)
        before = OmegaConf.create(recipe["trainer"] if group == "trainer" else {})
        recipe = {**recipe, group: OmegaConf.to_container(OmegaConf.merge(before, group_file(group, name)))}
    ConfigStore.instance().store(name="stored_recipe", node=OmegaConf.create(recipe), provider="robustlit")
    return composed(values, name="stored_recipe")


def composed_for_net(place: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the recipe by which a net of the user's own is evaluated."""
    given = {key.lstrip("+~"): value for key, _, value in (o.partition("=") for o in overrides)}
    if changed := [key for key in given if key.partition(".")[0] == "model"]:
        raise ConfigError(
            f"{changed[0]}= says which net a recipe builds, and --model {place} gives the net: leave one of them out"
        )
    files, recipe = recipes.recipe_files(), given.get("recipe", "standard")
    recipes.check_recipe_name(recipe, files)
    recipes.register_recipes(files, [recipe])
    defaults = {"recipe": "standard", "data": "mnist", "sweep": "worst_case"}
    config = composed([*(f"{key}={value}" for key, value in defaults.items() if key not in given), *overrides])
    if theirs := [key for key in ("defense", "module") if config.get(key)]:
        raise ConfigError(
            f"recipe={recipe} here has a {theirs[0]} of its own, which has nothing to do with --model {place}; what "
            "else it sets (eps, norm, data, settings of the sweep) can be given without it"
        )
    own = {"recipe": "evaluate", "name": config.name or place.replace(":", ".").rsplit("/", 1)[-1]}
    return OmegaConf.create({**recipes.stored(config), **dict.fromkeys(_OF_TRAINING), **own})


def group_file(group: str, name: str) -> DictConfig:
    """Return a file of a group (`sweep`, `data`, ...), composed with the files that it builds on."""
    chosen: DictConfig = composed([f"+{group}={name}"], name=None)[group]
    return chosen


def check_overrides(overrides: Sequence[str], folders: Sequence[str] = (), *, several: bool = False) -> None:
    """Raise a ConfigError, of one line, for overrides that cannot be composed.

    Args:
        overrides, folders: See `composed`.
        several: Whether an override may give several values, one for each run.
    """
    first = []
    for override in _parsed(overrides):
        if not (several and override.is_sweep_override()):
            first.append(override.input_line or "")
            continue
        try:
            choices = list(override.sweep_string_iterator())
        except HydraException:  # one that only Hydra's sweeper can expand, such as glob(*)
            continue
        for choice in choices if override.key_or_group in GROUPS else ():
            check_choice(override.key_or_group, choice, folders)
        first.append(f"{str(override.input_line).partition('=')[0]}={choices[0]}")
    composed(first, folders=folders)


def check_choice(group: str, choice: str, folders: Sequence[str] = ()) -> None:
    """Raise a ConfigError with the known names unless a group has a file `choice`, here or in `folders`."""
    places = [folder / group for folder in (recipes_folder(), *map(Path, folders))]
    there = sorted({file.stem for place in places for file in place.glob("*.yaml")})
    if not any((place / f"{choice}.yaml").is_file() for place in places):
        raise ConfigError(f"there is no {group} {choice!r}; there are {', '.join(there)}")


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    found: list[Override] = []
    for override in overrides:
        if (old := override.lstrip("+")) in RENAMED:
            warnings.warn(f"{old} is now {RENAMED[old]}; the old name goes with the next release", FutureWarning, 3)
        try:
            found.append(parser.parse_override(override))
        except HydraException as error:
            cause = error.__cause__ if error.__cause__ and error.__cause__.args[0] else error
            raise ConfigError(
                f"{override!r} cannot be read ({str(cause).splitlines()[0]}); write key=value, such as eps=8/255, ~key "
                "to take a key out, and quotes around a value with special characters: 'name=\"a b\"'"
            ) from error
    return found


def _reason(
    error: HydraException, name: str | None, parsed: list[Override], where: list[str], folders: Sequence[str]
) -> str:
    """Return what is wrong with the overrides, in one line: the unknown choice or key, else Hydra's message."""
    for override in parsed:
        chosen = override.key_or_group in GROUPS and override.type == OverrideType.CHANGE
        if chosen and override.value() is not None:
            check_choice(override.key_or_group, str(override.value()), folders)
    groups = [o.input_line or "" for o in parsed if o.key_or_group in (*GROUPS, "recipe")]
    try:
        keys = {*_keys(OmegaConf.to_container(compose(name, overrides=[*where, *groups])))}
        keys |= {o.key_or_group for o in parsed if o.is_add()}
    except HydraException:  # the recipe itself is what does not compose
        parsed = []
    for override in parsed:
        key = override.key_or_group
        changes = override.type in (OverrideType.CHANGE, OverrideType.DEL) and not key.startswith("hydra")
        if changes and key not in keys and override.input_line not in groups:
            return f"the recipe has no {key}; {_hint(key, keys)}"
    lines = f"{error}\n{error.__cause__ or ''}".splitlines()
    return "; ".join(line.strip() for line in lines if line.strip())


def _hint(key: str, keys: set[str]) -> str:
    """Return the nearest key: among those beside it, else among all as deep; else the keys that there are."""
    above, dot, last = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in sorted(keys) if k.rpartition(".")[0] == above]
    hint = did_you_mean(last, beside, prefix=above + dot)
    if not hint and not (above and beside):
        hint = did_you_mean(key, [k for k in sorted(keys) if k.count(".") == key.count(".")], cutoff=0.75)
    if hint:
        return hint
    there = f"{above} has {', '.join(beside)}; +{key}=VALUE adds it, " if above and beside else ""
    return f"{there}`robustlit train ... --cfg job` shows what there is"


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a recipe given as plain containers, the inner ones too."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")
