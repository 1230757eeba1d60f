"""Recipes and their composition: where they lie, what they may hold, how values are read."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf

BASE = "base"
GROUPS = ("model", "data", "trainer", "logger", "sweep")
_FRACTION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*/\s*(\d+(?:\.\d*)?|\.\d+)\s*")
_PATHS = (
    "run_dir",
    "ckpt_path",
    "name",
    "folder",
    "path",
    "root",
    "save_dir",
    "victim",
    "generator",
    "base",
    "substitute",
)
# What a recipe that does more than train a classifier may give besides, by the key that says so (see `assembly`).
_OPTIONAL = {
    "module": ("module", "victim", "victim_epochs"),
    "defense": ("defense", "base", "base_epochs"),
    "base_epochs": ("base", "base_epochs"),
}
_INTERPOLATION = re.compile(r"\$\{(\w+)[.}\[]")


class ConfigError(ValueError):
    """A recipe or an override that cannot be used as it is."""


def recipes_folder() -> Path:
    """The folder of the recipes that come with robustlit (in the checkout, or installed inside the package)."""
    from importlib.util import find_spec

    spec = find_spec("robustlit.recipes")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the recipes are not installed; run `pip install -e .` in the checkout")
    return Path(next(iter(spec.submodule_search_locations)))


def recipe_files(extra: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Recipe name -> file, of the installed folder, of ROBUSTLIT_RECIPES and of `extra`; later folders win."""
    own = os.environ.get("ROBUSTLIT_RECIPES")
    files: dict[str, Path] = {}
    for folder in (recipes_folder(), *([own] if own else []), *extra):
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"there is no folder of recipes at {folder}")
        files.update({f.stem: f for f in sorted(folder.glob("*.yaml")) if f.stem != BASE})
    return files


def register_recipes(files: dict[str, Path]) -> None:
    """Makes each flat file an option of Hydra's group `recipe`, merged at the top level of the config."""
    store = ConfigStore.instance()
    for name, path in files.items():
        store.store(group="recipe", name=name, node=OmegaConf.load(path), package="_global_", provider="robustlit")


def check_recipe_name(name: str, files: dict[str, Path]) -> None:
    """Raises a ConfigError with the nearest names unless there is a recipe `name`."""
    if name in files:
        return
    near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(files)}"
    raise ConfigError(f"there is no recipe {name!r}; {hint} (`robustlit recipes` lists them)")


def first_line(path: Path) -> str:
    """What a recipe says of itself: its first comment line."""
    with path.open() as lines:
        line = lines.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""


def check_keys(config: DictConfig) -> None:
    """Raises a ConfigError for a top-level key that nothing reads: most likely a typo in a recipe.

    A recipe may have keys of its own for values that it refers to elsewhere as ${key}.
    """
    base = OmegaConf.load(recipes_folder() / f"{BASE}.yaml")
    assert isinstance(base, DictConfig)
    known = {*(str(k) for k in base), *GROUPS} - {"defaults", "hydra"}
    known |= {*_INTERPOLATION.findall(OmegaConf.to_yaml(config))}
    for sign, keys in _OPTIONAL.items():
        known |= {*keys} if config.get(sign) else set()
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"the recipe sets {key!r}, which nothing reads; {hint}")


def read_fractions(config: DictConfig | ListConfig) -> None:
    """Turns every value written as a fraction, such as 8/255, into its number, in place; paths and names excepted."""
    for owner, key, value in _leaves(config):
        if key not in _PATHS and isinstance(value, str) and (match := _FRACTION.fullmatch(value)):
            numerator, denominator = float(match[1]), float(match[2])
            if denominator == 0:
                raise ConfigError(f"{key}={value} divides by zero")
            owner[key] = numerator / denominator


def _leaves(config: DictConfig | ListConfig) -> Iterator[tuple[Any, Any, Any]]:
    keys: list[Any] = list(config.keys()) if isinstance(config, DictConfig) else list(range(len(config)))
    for key in keys:
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        value = config[key]
        if isinstance(value, (DictConfig, ListConfig)):
            yield from _leaves(value)
        else:
            yield config, key, value


def check_complete(config: DictConfig) -> None:
    """Raises a ConfigError that names the values a recipe still has to give (`???`)."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"the recipe must give {', '.join(missing)}; add e.g. {missing[0]}=VALUE")


def check_verdict(config: DictConfig) -> None:
    """Raises a ConfigError where a verdict is asked for and the sweep leaves nothing to judge."""
    if not config.get("verdict"):
        return
    asked = f"verdict={config.verdict} (--verdict, --strict)"
    if not config.sweep.get("_target_"):
        raise ConfigError(
            f"{asked} judges a sweep, and with sweep=none there is none: choose sweep=linf, worst_case, ..., or leave "
            "the verdict out"
        )
    known = config.sweep.get("knowledge")
    if isinstance(known, ListConfig) and "adaptive" not in known:
        raise ConfigError(
            f"{asked} judges attacks that know the defense, and sweep.knowledge=[{', '.join(map(str, known))}] runs "
            "none: add adaptive, or leave the verdict out"
        )


def stored(config: DictConfig) -> dict[str, Any]:
    """The composed recipe as plain containers, its interpolations kept, so that `eps=` still reaches everything."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
