"""`robustlit dashboard`: writes a saved W&B view of a project's runs, or prints its specification."""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs, quote, unquote, urlsplit
from urllib.request import urlopen

if TYPE_CHECKING:
    from robustlit.results import Evaluation
    from robustlit.tracking.dashboard import Logged

PROJECT = "robustlit"
TIMEOUT = 15  # seconds that a server is waited for
NEWEST = 300  # runs of a project that are asked what they logged
_NOT_IN_NAMES = "/\\#?%:"


def dashboard(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        ConfigError: names that W&B does not take, no login, no server, no wandb-workspaces, attacks that no run has.
        EvaluationError: a folder given by --runs that holds no evaluation.
    """
    given = _parser().parse_args(list(arguments))
    if given.url is not None:
        given.entity, given.project = _place_of(given)
    _check_names(given)
    from robustlit.experiment.recipes import ConfigError

    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'the dashboard needs wandb-workspaces ({error}): pip install "robustlit[dashboard]"'
        ) from None
    return _print(given) if given.dry_run else _save(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustlit dashboard",
        description="Writes a saved view of a W&B project: runs ranked, curves over distance overlaid, verdicts.",
    )
    parser.add_argument("--project", help="W&B project (default robustlit)")
    parser.add_argument("--entity", help="user or team that owns it (default: yours)")
    parser.add_argument("--url", help="of a saved view to renew; what you added to it stays")
    parser.add_argument("--name", help="of the view (default robustlit)")
    parser.add_argument("--attacks", help="these alone, comma between them (default: all that the runs have)")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="RUN", help="take the attacks from these run folders")
    parser.add_argument("--dry-run", action="store_true", help="print the specification as JSON; asks no server")
    return parser


def _place_of(given: argparse.Namespace) -> tuple[str, str]:
    """Entity and project of the view that --url names."""
    from robustlit.experiment.recipes import ConfigError

    if given.dry_run:
        raise ConfigError("--dry-run asks no server, so it cannot renew the view of --url; leave one of them out")
    address = urlsplit(given.url)
    parts = [unquote(part) for part in address.path.strip("/").split("/")]
    if parts[2:] in (["workspace"], ["table"]):
        parts = parts[:2]
    if len(parts) != 2 or not all(parts) or not parse_qs(address.query).get("nw"):
        raise ConfigError(
            "--url must be the address of a saved view, such as https://wandb.ai/ENTITY/PROJECT?nw=ID, got "
            f"{given.url!r}"
        )
    for flag, asked, found in (("entity", given.entity, parts[0]), ("project", given.project, parts[1])):
        if asked not in (None, found):
            raise ConfigError(f"--{flag} {asked} is not that of --url, {found}; leave it out")
    return parts[0], parts[1]


def _check_names(given: argparse.Namespace) -> None:
    """W&B's rules for the names of projects (those of users and teams are narrower still) and of views."""
    from robustlit.experiment.recipes import ConfigError

    for flag, value in (("project", given.project), ("entity", given.entity)):
        if value is not None and (not value.strip() or len(value) > 128 or any(c in _NOT_IN_NAMES for c in value)):
            raise ConfigError(
                f"--{flag} must be 1 to 128 characters without any of {' '.join(_NOT_IN_NAMES)}, got {value!r}"
            )
    if given.name is not None and any(unicodedata.category(c)[0] == "S" for c in given.name):
        raise ConfigError(f"--name must be without symbols such as + = $ and emoji, got {given.name!r}")


def _print(given: argparse.Namespace) -> int:
    workspace = _made(_logged(given, None), given, given.entity or "")
    # The library has no public way to its specification; a test holds on to this one.
    print(json.dumps(workspace._model.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2))
    return 0


def _save(given: argparse.Namespace) -> int:
    from robustlit.experiment.recipes import ConfigError

    api = _connected()
    import wandb_workspaces.workspaces as ws

    from robustlit.tracking.dashboard import renew

    try:
        entity = given.entity or api.default_entity
        if not entity:
            raise ConfigError("W&B names no entity of yours; give --entity")
        logged = _logged(given, _Project(api, entity, given.project or PROJECT))
        if given.url is None:
            workspace = _made(logged, given, entity)
        else:
            workspace = ws.Workspace.from_url(f"https://wandb.ai/{entity}/{given.project}?{urlsplit(given.url).query}")
            renew(workspace, logged)
            workspace.name = given.name or workspace.name
        workspace.save()
        url = quote(workspace.url, safe=":/?=&")  # a project may have spaces
    except (ConfigError, OSError):
        raise
    except Exception as error:  # wandb and wandb-workspaces raise many kinds
        raise ConfigError(f"W&B did not take the dashboard: {_one_line(error)}") from error
    print(f"{'renewed' if given.url else 'saved'}: {url}")
    if given.url is None:
        print(f"to renew it: robustlit dashboard --url {url!r}", file=sys.stderr)
    return 0


def _connected() -> Any:
    """W&B's API, its server having answered.

    Raises:
        ConfigError: not logged in, known without asking a server; no answer, or none that lets us in.
    """
    import wandb

    from robustlit.experiment.recipes import ConfigError

    address = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    try:
        if not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "W&B is not logged in, or WANDB_MODE keeps it offline: run `wandb login`, or use --dry-run, which "
                "prints the specification"
            )
        _check_answers(address)
        return wandb.Api(timeout=TIMEOUT)
    except (wandb.Error, OSError) as error:
        raise ConfigError(
            f"W&B at {address} cannot be reached, or does not let you in: {_one_line(error)}; --dry-run prints the "
            "specification"
        ) from error


def _check_answers(address: str) -> None:
    """Raises an OSError unless something answers there, be it with a refusal: wandb itself would try for very long."""
    try:
        urlopen(address, timeout=TIMEOUT).close()
    except HTTPError:
        return
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # wandb has certificates of its own
            raise


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _made(logged: Logged, given: argparse.Namespace, entity: str) -> Any:
    from robustlit.tracking.dashboard import view

    return view(logged, entity=entity, project=given.project or PROJECT, name=given.name or PROJECT)


# What runs logged


class _Project:
    """A project on the server, by what its newest runs logged."""

    def __init__(self, api: Any, entity: str, project: str) -> None:
        self.place = f"{entity}/{project}"
        # lazy=False: all summaries in a few requests, not one request for each run.
        self._runs = api.runs(self.place, order="-created_at", per_page=100, lazy=False)

    def names(self) -> Iterator[tuple[list[str], tuple[str, float] | None]]:
        """Of each run its summary's names and the budget (norm, eps) that its recipe quotes."""
        try:
            for run in islice(iter(self._runs), NEWEST):
                yield list(run.summary_metrics), _budget(run.config)
        except ValueError:  # how wandb says that there is no such project yet
            return


def _logged(given: argparse.Namespace, project: _Project | None) -> Logged:
    """From the runs named, else from the server's, else from what recipes attack with unless told otherwise."""
    from robustlit.experiment.recipes import ConfigError
    from robustlit.tracking.dashboard import Logged

    found = _of_folders(given.runs) if given.runs else list(project.names()) if project else []
    if not any(name.startswith("robust/") for names, _ in found for name in names):
        if given.runs:
            raise ConfigError("none of these runs was attacked at a budget: there is nothing to rank by")
        if project is not None:
            print(f"no run of {project.place} was attacked yet: the view is for sweep=linf", file=sys.stderr)
        found = [_of_recipes()]
    quoted = [budget for _, budget in found if budget is not None]
    most = max(dict.fromkeys(quoted), key=quoted.count, default=None)
    try:
        logged = Logged.of_names(dict.fromkeys(name for names, _ in found for name in names), most)
        return logged.only([name.strip() for name in given.attacks.split(",")]) if given.attacks else logged
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _of_folders(folders: Sequence[Path]) -> list[tuple[list[str], tuple[str, float] | None]]:
    import yaml  # type: ignore[import-untyped]
    from omegaconf import OmegaConf

    from robustlit.experiment.recipes import ConfigError
    from robustlit.results import Evaluation

    found = []
    for folder in folders:
        if folder.name == "multirun.yaml":  # lies in runs/ after -m, so runs/* has it
            continue
        config = folder / "config.yaml"
        try:
            read: Any = OmegaConf.load(config) if config.is_file() else {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{config} cannot be read ({' '.join(str(error).split())}); leave the run out") from None
        found.append((_names_of(Evaluation.load(folder)), _budget(read)))
    return found


def _names_of(evaluation: Evaluation) -> list[str]:
    """The names that a run with this evaluation has in its summary."""
    from robustlit.tracking.dashboard import WORST, robust

    names = []
    for attack, knowledge in evaluation.runs:
        norm, label = evaluation.norm_of(attack), evaluation.label(attack, knowledge)
        for eps in evaluation.budgets(attack, knowledge):
            names += [robust(one, norm, f"{eps:g}") for one in (label, evaluation.label(WORST, knowledge))]
        names.append(f"robust/{label}/auc_l2")
    return names


def _of_recipes() -> tuple[list[str], tuple[str, float]]:
    """What a run of a recipe has that does not choose another sweep."""
    from omegaconf import DictConfig, OmegaConf

    from robustlit.experiment.recipes import recipes_folder
    from robustlit.tracking.dashboard import WORST, robust

    base, sweep = (OmegaConf.load(recipes_folder() / file) for file in ("base.yaml", "sweep/linf.yaml"))
    assert isinstance(base, DictConfig)
    assert isinstance(sweep, DictConfig)
    names = []
    for attack in map(str, sweep.attacks):
        for eps in sorted({*sweep.grid[base.norm], base.eps}):
            names += [robust(label, base.norm, f"{eps:g}") for label in (attack, WORST)]
        names.append(f"robust/{attack}/auc_l2")
    return names, (base.norm, base.eps)


def _budget(config: Any) -> tuple[str, float] | None:
    """The budget that a recipe quotes, where it says one."""
    norm, eps = config.get("norm"), config.get("eps")
    return (norm, float(eps)) if isinstance(norm, str) and isinstance(eps, (int, float)) else None
