"""Train by a recipe, then attack the best checkpoint.

`robustlit recipes` lists the recipes.

Leaves in runs/NAME/: config.yaml, checkpoints/, evaluation/ (per-example table, curves, figures), results.json.

Any value of a recipe can be overridden: eps=8/255 optimizer.lr=1e-3 data.train_size=1000 trainer.max_epochs=2
  groups      model= data= trainer= logger=(wandb, tensorboard, csv, none) sweep=(linf, l2, worst_case, none, ...)
  the run     name= or run_dir=, seed=, verdict=quick, resume=auto (or ckpt_path=runs/NAME)
  a gate      min_robust=0.4: exit with 4 where less than that share of the images is robust at eps
  processes   trainer.devices=2 trainer.accelerator=cpu; trainer=ddp; a cluster: docs/cluster.md
  add, drop   +key=value adds a key that the recipe lacks, ~key drops one
  your own    --config-dir FOLDER or ROBUSTLIT_RECIPES=FOLDER, a folder with recipes of yours

examples:
  %(prog)s recipe=pgd_adv_train
  %(prog)s recipe=pgd_adv_train data=cifar10 model=resnet18 eps=8/255 verdict=quick
  %(prog)s recipe=fgsm_rs -m seed=0,1,2            several runs, one after the other
  %(prog)s recipe=pgd_adv_train --cfg job          print the composed recipe, train nothing
  %(prog)s recipe=pgd_adv_train resume=auto     go on where this command last stopped
"""

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, cast

from robustlit.cli.parser import UsageError, run_reporting_errors

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Environment of the processes that Lightning starts; it must not reach the next job of a multirun.
_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ROBUSTLIT_RUN_DIR")
_LONGEST_LABEL = 100  # characters of a folder's name
_DIGITS = 8  # of a digest in a label that is too long
_MULTIRUN = {"-m", "--multirun"}
_CONFIG_DIR = {"-cd", "--config-dir"}
_NEEDS_NO_RECIPE = {"-sc", "--shell-completion", "--experimental-rerun", "--hydra-help", "--version"}


class PassOn(argparse.Action):
    """Append a flag of Hydra's to `namespace.hydra` as it was typed: [flag] or [flag, value]."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.hydra = [*namespace.hydra, [option, *([values] if isinstance(values, str) else [])]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s recipe=NAME [key=value ...] [flag of Hydra ...]"
    parser.set_defaults(hydra=[])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=NAME, and values to override")
    flags = parser.add_argument_group("flags of Hydra (https://hydra.cc)")

    def add(*names: str, **settings: Any) -> None:
        flags.add_argument(*names, action=PassOn, dest="hydra", default=argparse.SUPPRESS, **settings)

    add("-m", "--multirun", nargs=0, help="run once for each of several values, as in eps=0.1,0.2")
    add("-c", "--cfg", choices=("job", "hydra", "all"), metavar="WHAT", help="job: print the recipe, train nothing")
    add("--resolve", nargs=0, help="with --cfg: resolve ${...}")
    add("-p", "--package", metavar="KEY", help="with --cfg: print this part alone")
    add("-cd", "--config-dir", metavar="FOLDER", help="a folder with recipes of yours")
    add("-cn", "--config-name", metavar="NAME", help="compose this file in place of base.yaml")
    add("-cp", "--config-path", metavar="FOLDER", help="look for it there")
    add("-i", "--info", nargs="?", choices=_INFO, metavar="WHAT", help=f"print how it is composed: {', '.join(_INFO)}")
    add("-r", "--run", nargs=0, help="run one job (the default)")
    add("-sc", "--shell-completion", nargs=0, help="install or remove shell completion")
    add("--experimental-rerun", metavar="FILE", help="run a job again from Hydra's pickle of it")
    add("--hydra-help", nargs=0, help="print Hydra's own help")
    add("--version", nargs=0, help="print Hydra's version")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the largest exit code of its jobs."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from robustlit.experiment.recipes import BASE, recipes_folder

    _check(arguments.overrides, arguments.hydra)
    flags = [word for flag in arguments.hydra for word in flag]
    again = [word for flag in arguments.hydra if flag[0] not in _MULTIRUN for word in flag]
    multirun = any(flag[0] in _MULTIRUN for flag in arguments.hydra)
    swept = _keys(arguments.overrides, swept=True) if multirun else {}
    if multirun:
        _check_labels(arguments.overrides, swept)
    codes: list[int] = []

    def job(config: Any) -> None:
        from robustlit.experiment.train import train
        from robustlit.processes import exit_code

        if codes and codes[-1] >= exit_code(0):  # a signal ended the job before
            return
        config.recipe = config.recipe  # resolve ${hydra:...} while Hydra answers
        # As they were typed: reading one by one would resolve their ${...}.
        own = cast("list[str]", OmegaConf.to_container(HydraConfig.get().overrides.task))
        words = [*again, *own]
        command = shlex.join([*arguments.program.split(), *words])
        # The processes that Lightning starts for several devices run this very job again: one job of a multirun, by
        # its own overrides, not through Hydra's stored config.
        with _process([*arguments.script, *words]):
            codes.append(run_reporting_errors(lambda: train(config, command=command, label=_label(own, swept))))

    with _process([arguments.script[0], *flags, *arguments.overrides]):  # Hydra reads flags before overrides alone
        hydra.main(config_path=str(recipes_folder()), config_name=BASE, version_base="1.3")(job)()
    return max(codes, default=0)


def _keys(overrides: Sequence[str], swept: bool = False) -> dict[str, str]:
    """Return the keys of overrides with their values as text; with `swept` of those alone that have several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:  # Hydra says so itself
        return {}
    given = [o for o in parsed if not o.is_delete() and (o.is_sweep_override() or not swept)]
    return {o.key_or_group: o.get_value_string() for o in given}


def _label(overrides: Sequence[str], swept: Collection[str]) -> str:
    """Return what tells a job of a multirun from the others, such as "seed_1-eps_0.2"; "" if its folder's name does."""
    given = _keys(overrides)
    # The folder has the recipe's name unless another is given.
    in_name = {"name", "run_dir"} if {"name", "run_dir"} & set(given) else {"recipe"}
    named = {key.rsplit(".", 1)[-1]: key for key in swept}
    short = {key: name for name, key in named.items()}  # two keys may end alike
    values = {short.get(key, key): value for key, value in given.items() if key in swept and key not in in_name}
    label = "-".join(re.sub(r"[^\w.+]", "_", f"{name}_{value}") for name, value in values.items())
    if len(label) <= _LONGEST_LABEL:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:_DIGITS]  # of what is cut off, too
    return f"{label[: _LONGEST_LABEL - _DIGITS - 1]}-{digest}"


def _check_labels(overrides: Sequence[str], swept: Collection[str]) -> None:
    """Raise a UsageError where two jobs of a multirun with a name would share a folder, before the first job starts.

    Folders of jobs without one are numbered.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:  # Hydra says so itself
        return
    several = [o for o in parsed if o.is_sweep_override()]
    if not all(o.is_choice_sweep() or o.is_range_sweep() for o in several):  # what only Hydra's sweeper can expand
        return
    values = [[f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in several]
    alone = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    folders: dict[str, str] = {}  # name -> what is swept
    for job in map(list, product(*values)):
        given, words = _keys([*alone, *job]), " ".join(job)
        name = given.get("run_dir") or given.get("name")
        if name is None or "${" in name:  # the folder gets a number, or Hydra fills in the name
            continue
        folder = "-".join(filter(None, (name, _label([*alone, *job], swept))))
        if folder in folders:
            raise UsageError(
                f"two of these runs would have one folder, {folder}: that with {folders[folder]} and that with "
                f"{words}; start them by two commands, each with a name= of its own"
            )
        folders[folder] = words


def _check(overrides: Sequence[str], flags: Sequence[Sequence[str]]) -> None:
    """Register the recipes, and raise for a recipe or an override that does not exist: Hydra says it in many lines."""
    from robustlit.experiment.composition import check_overrides
    from robustlit.experiment.recipes import check_recipe_name, recipe_files, register_recipes

    given = {flag[0] for flag in flags}
    folders = [str(Path(flag[1]).absolute()) for flag in flags if flag[0] in _CONFIG_DIR]
    files = recipe_files(folders)
    asked = [name for o in overrides if o.startswith("recipe=") for name in o.removeprefix("recipe=").split(",")]
    register_recipes(files, asked)
    for name in asked:
        check_recipe_name(name, files)
    if not asked and not given & _NEEDS_NO_RECIPE:
        raise UsageError(f"which recipe? add recipe=NAME; there are {', '.join(files)} (`robustlit recipes` says more)")
    if asked and not given & {"-cn", "--config-name"}:
        check_overrides(overrides, folders, several=bool(given & _MULTIRUN))


@contextmanager
def _process(arguments: list[str]) -> Iterator[None]:
    """Give a job the command line that starts its further processes; restore that and the environment afterwards."""
    from hydra.core.hydra_config import HydraConfig

    singleton = HydraConfig.instance()
    kept = sys.argv, singleton.cfg
    environment = {name: os.environ[name] for name in _LAUNCHER if name in os.environ}
    sys.argv, singleton.cfg = arguments, None  # else Lightning would start them through Hydra's stored config
    try:
        yield
    finally:
        sys.argv, singleton.cfg = kept
        for name in _LAUNCHER:
            os.environ.pop(name, None)
        os.environ.update(environment)
