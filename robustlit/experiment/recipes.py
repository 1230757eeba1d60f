"""Recipes: where they lie, which keys they may hold, and how their values are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from robustlit.checks import did_you_mean, is_number

BASE = "base"
USUAL_EPS = "${usual_eps:${data._target_},${norm}}"  # what recipes/base.yaml has
GROUPS = ("model", "data", "trainer", "logger", "sweep")
_FRACTION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*/\s*(\d+(?:\.\d*)?|\.\d+)\s*")
# Keys of paths and names, whose values are never fractions.
_PATHS = {"run_dir", "ckpt_path", "name", "folder", "path", "root", "save_dir", "victim", "generator", "base",
          "substitute", "weights"}  # fmt: skip
# Top-level keys that are allowed only beside the key on the left.
_OPTIONAL = {"module": ("victim", "victim_epochs"), "defense": ("base", "base_epochs"), "base_epochs": ("base",)}
_INTERPOLATION = re.compile(r"\$\{(\w+)[.}\[]")
_DIGITS = 12  # significant ones that a product keeps: a third of 0.3 is then 0.1, not 0.09999999999999999


class ConfigError(ValueError):
    """A recipe or an override that cannot be used as it is."""


def number(value: str | float) -> float:
    """Return a number that may be written as a fraction, such as 8/255."""
    numerator, _, denominator = str(value).partition("/")
    return float(numerator) / float(denominator or 1)


def times(eps: str | float, multiple: str | float) -> float:
    """Return `${times:${eps},2/3}`: a multiple of eps, rounded to 12 significant digits; 1 times eps is eps itself."""
    factor = number(multiple)
    return number(eps) if factor == 1 else float(f"{number(eps) * factor:.{_DIGITS}g}")


def usual_eps(data: str, norm: str) -> float | None:
    """Return `${usual_eps:${data._target_},${norm}}`: the data's L-inf budget; None where they have none."""
    try:
        return getattr(get_object(data), "usual_eps", None) if norm == "linf" else None
    except Exception:  # what cannot be imported is reported where it is built
        return None


def eps_for(data: str, norm: str, eps: float, *, _root_: Any) -> float | None:
    """Return `${eps_for:MNIST,linf,0.1}`: a recipe's own budget on that data in that norm, elsewhere `usual_eps`."""
    target = str(_root_.data.get("_target_", ""))
    return eps if (target.rsplit(".", 1)[-1], _root_.norm) == (data, norm) else usual_eps(target, _root_.norm)


def chosen_eps(recipe: dict[str, Any]) -> Any:
    """Return the budget of a recipe, that of its data where it leaves it to them.

    Raises:
        ConfigError: It leaves it to data that have none.
    """
    eps = read_only(recipe).eps
    if eps is None:
        data = str(recipe["data"].get("_target_", "")).rsplit(".", 1)[-1]
        usual = "0.5 on CIFAR-10, 2 on MNIST" if recipe["norm"] == "l2" else "8/255 for colour pictures"
        raise ConfigError(f"no budget goes with {data} in {recipe['norm']}: give eps= in pixel units; usual is {usual}")
    return eps


def budgets(norm: str, eps: str | float, *multiples: str | float) -> list[float]:
    """Return `${budgets:linf,${eps},1/3,1}`: the multiples that are budgets of the norm; in L-inf none is above 1."""
    return [value for value in (times(eps, multiple) for multiple in multiples) if norm != "linf" or value <= 1]


OmegaConf.register_new_resolver("times", times, replace=True)
OmegaConf.register_new_resolver("budgets", budgets, replace=True)
OmegaConf.register_new_resolver("usual_eps", usual_eps, replace=True)
OmegaConf.register_new_resolver("eps_for", eps_for, replace=True)


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with robustlit (in the checkout, or inside the installed package)."""
    spec = find_spec("robustlit.recipes")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the recipes are not installed; run `pip install -e .` in the checkout")
    return Path(next(iter(spec.submodule_search_locations)))


def recipe_files(extra: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Return recipe name -> file, from the installed folder, ROBUSTLIT_RECIPES and `extra`; later folders win."""
    own = os.environ.get("ROBUSTLIT_RECIPES")
    files: dict[str, Path] = {}
    for folder in map(Path, (recipes_folder(), *([own] if own else []), *extra)):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder of recipes at {folder}")
        files.update({f.stem: f for f in sorted(folder.glob("*.yaml")) if f.stem != BASE})
    return files


def register_recipes(files: dict[str, Path], asked: Sequence[str] = ()) -> None:
    """Make each flat file an option of Hydra's group `recipe`, merged at the top level of the config.

    Raises:
        ConfigError: A recipe in `asked` cannot be read. Other files that cannot be read are skipped: a folder of
            recipes may hold YAML files of other programs.
    """
    store = ConfigStore.instance()
    for name, path in files.items():
        try:
            node = OmegaConf.load(path)
        except (YAMLError, UnicodeDecodeError, OSError) as error:
            if name in asked:
                raise ConfigError(f"{path} is not a recipe that can be read: {_problem(error)}") from error
            continue
        store.store(group="recipe", name=name, node=node, package="_global_", provider="robustlit")


def _problem(error: Exception) -> str:
    """Return what is wrong with a YAML file, with the line number."""
    problem, mark = getattr(error, "problem", None) or str(error), getattr(error, "problem_mark", None)
    line = f" (line {mark.line + 1})" if mark else ""
    hint = "; indent with spaces" if r"'\t'" in problem else ""
    return f"{problem}{line}{hint}"


def check_recipe_name(name: str, files: dict[str, Path]) -> None:
    """Raise a ConfigError with the nearest names unless there is a recipe `name`."""
    if name not in files:
        hint = did_you_mean(name, files, most=3, cutoff=0.5) or f"there are {', '.join(files)}"
        raise ConfigError(f"there is no recipe {name!r}; {hint} (`robustlit recipes` lists them)")


def first_line(path: Path) -> str:
    """Return a recipe's description: its first comment line."""
    with path.open() as lines:
        line = lines.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""


def stored(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain containers, with its interpolations, so that `eps=` still reaches everything."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def is_left_out(part: Any) -> bool:
    """Return whether a part of a recipe is null, or says that null is to be built: nothing is."""
    return part is None or (isinstance(part, Mapping) and part.get("_target_", "") is None)


def drop_left_out(recipe: dict[str, Any]) -> None:
    """Delete the attacks and certificates of the sweep that are left out."""
    sweep = recipe.get("sweep") or {}
    for kind in ("attacks", "certificates"):
        if isinstance(sweep.get(kind), dict):
            sweep[kind] = {name: part for name, part in sweep[kind].items() if not is_left_out(part)}


def make_lists(recipe: dict[str, Any]) -> None:
    """Replace a single name or budget of the sweep by a list of one, and null by an empty list.

    Raises:
        ConfigError: A grid without norms.
    """
    sweep = recipe.get("sweep") or {}
    grid = sweep.get("grid") or {}
    if not isinstance(grid, dict):
        raise ConfigError(f"sweep.grid must give the budgets of a norm, got {grid!r}: sweep.grid.linf=[0.1, 0.2]")
    lists = [(sweep, key) for key in ("knowledge", "on_all", "own_eps") if key in sweep] + [(grid, n) for n in grid]
    for section, key in lists:
        value = section[key]
        is_interpolation = isinstance(value, str) and value.startswith("${")
        if value is None:
            section[key] = []
        elif not is_interpolation and not isinstance(value, (list, dict)):
            section[key] = [value]


def read_only(recipe: dict[str, Any]) -> DictConfig:
    """Return plain containers as a config that raises a ReadonlyConfigError on every write."""
    config = OmegaConf.create(recipe)
    OmegaConf.set_readonly(config, True)
    return config


def read_fractions(value: Any, key: object = "") -> Any:
    """Return plain containers with each fraction, such as 8/255, as a number; paths and names stay as they are."""
    if isinstance(value, dict):
        return {k: read_fractions(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [read_fractions(v, position) for position, v in enumerate(value)]
    if not isinstance(value, str) or key in _PATHS or not _FRACTION.fullmatch(value):
        return value
    try:
        return number(value)
    except ZeroDivisionError:
        raise ConfigError(f"{key}={value} divides by zero") from None


def check_keys(config: DictConfig) -> None:
    """Raise a ConfigError for a top-level key that nothing reads: most likely a typo in a recipe.

    A recipe may have keys of its own for values that it refers to elsewhere as ${key}.
    """
    base = OmegaConf.load(recipes_folder() / f"{BASE}.yaml")
    assert isinstance(base, DictConfig)
    known = {*(str(k) for k in base), *GROUPS} - {"defaults", "hydra"}
    known |= {*_INTERPOLATION.findall(OmegaConf.to_yaml(config))}
    for sign, keys in _OPTIONAL.items():
        known |= {sign, *keys} if config.get(sign) else set()
    for key in config:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"the recipe sets {key!r}, which nothing reads; {hint}")


def check_switches(config: DictConfig) -> None:
    """Raise a ConfigError for a value of `ema`, `channels_last` or `compile` that cannot be used."""
    if (decay := config.get("ema")) is not None and not (is_number(decay) and 0 < decay < 1):
        raise ConfigError(f"ema must be null or what the average keeps a step, in (0, 1), got {decay}; 0.999 is usual")
    for switch in ("channels_last", "compile"):
        if not isinstance(value := config.get(switch, False), bool):
            raise ConfigError(f"{switch} must be true or false, got {value}")


def check_complete(config: DictConfig) -> None:
    """Raise a ConfigError that names the values a recipe still has to give (`???`)."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"the recipe must give {', '.join(missing)}; add e.g. {missing[0]}=VALUE")


def check_name(name: object) -> None:
    """Raise a ConfigError unless `name` is null or names a folder inside runs/."""
    if name is None:
        return
    text = str(name)
    inside = text.isprintable() and not Path(text).is_absolute() and "\\" not in text and text.strip(". ")
    if not inside or {"..", "."} & {*text.split("/")} or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ConfigError(f"name={text[:80]!a} must name a folder inside runs/; run_dir= takes any other new folder")


def check_verdict(config: DictConfig) -> None:
    """Raise a ConfigError where a verdict is requested and the sweep leaves nothing to judge."""
    if not config.get("verdict"):
        return
    known = config.sweep.get("knowledge")
    if not config.sweep.get("_target_"):
        why = "judges a sweep, and with sweep=none there is none: choose sweep=linf, worst_case, ..."
    elif isinstance(known, ListConfig) and "adaptive" not in known:
        knows = ", ".join(map(str, known))
        why = f"judges attacks that know the defense, and sweep.knowledge=[{knows}] runs none: add adaptive"
    else:
        return
    raise ConfigError(f"verdict={config.verdict} (--verdict, --strict) {why}, or leave the verdict out")
