"""Save a W&B view of a project, in which runs rank and overlay.

Runs ranked, curves over distance overlaid, verdicts. Needs pip install "robustlit[dashboard]" and a login to W&B.

examples:
  %(prog)s                              a view of your project robustlit; prints its address
  %(prog)s --url ADDRESS                renew it; what you added to it stays
  %(prog)s --attacks pgd,worst_case --entity my-team --name attacks
  %(prog)s --dry-run --runs runs/*      the specification as JSON: no server, no login
"""

import argparse
import json
import re
import sys
import unicodedata
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from robustlit.tracking.logged import Logged, Summary, of_folders, of_project, of_sweep
from robustlit.tracking.server import connect, refusals

PROJECT = "robustlit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", help="W&B project (default robustlit)")
    parser.add_argument("--entity", help="user or team that owns it (default: yours)")
    parser.add_argument("--url", help="address of a saved view to renew; what you added to it stays")
    parser.add_argument("--name", help="name of the view (default robustlit)")
    parser.add_argument("--attacks", help="these attacks alone, separated by commas (default: all that the runs have)")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="RUN", help="take the attacks from these run folders")
    parser.add_argument("--dry-run", action="store_true", help="print the specification as JSON; no server is asked")


def run(arguments: argparse.Namespace) -> int:
    if arguments.url is not None:
        arguments.entity, arguments.project = _place_of(arguments)
    _check_names(arguments)
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ValueError(f'dashboard needs wandb-workspaces ({error}): pip install "robustlit[dashboard]"') from None
    arguments.project = arguments.project or PROJECT
    if not arguments.dry_run:
        return _save(arguments)
    from robustlit.tracking.dashboard import specification, view

    workspace = view(_logged(arguments, []), arguments.entity or "", arguments.project, arguments.name or PROJECT)
    print(json.dumps(specification(workspace), indent=2))
    return 0


def _save(arguments: argparse.Namespace) -> int:
    api = connect()
    import wandb_workspaces.workspaces as ws

    from robustlit.tracking.dashboard import renew, view

    with refusals():
        entity = arguments.entity or api.default_entity
        place = f"{entity}/{arguments.project}"
        found = of_project(api, place) if entity and not arguments.runs else []
    if not entity:
        raise ValueError("W&B names no entity of yours; give --entity")
    logged = _logged(arguments, found, place)
    with refusals():
        if arguments.url is None:
            workspace = view(logged, entity, arguments.project, arguments.name or PROJECT)
        else:
            workspace = ws.Workspace.from_url(f"https://wandb.ai/{place}?{urlsplit(arguments.url).query}")
            renew(workspace, logged)
            workspace.name = arguments.name or workspace.name
        workspace.save()
    url = quote(workspace.url, safe=":/?=&")  # a project may have spaces
    print(f"{'renewed' if arguments.url else 'saved'}: {url}")
    if arguments.url is None:
        print(f"to renew it: robustlit dashboard --url {url!r}", file=sys.stderr)
    return 0


def _logged(arguments: argparse.Namespace, found: list[Summary], place: str = "") -> Logged:
    """Return what the runs named logged, else what those found on the server did, else what `sweep=linf` logs."""
    if arguments.runs:
        found = of_folders(arguments.runs)
    if not any(name.startswith("robust/") for run in found for name in run.names):
        if arguments.runs:
            raise ValueError("none of these runs was attacked at a budget: there is nothing to rank by")
        if place:
            print(f"no run of {place} was attacked yet: the view is for sweep=linf", file=sys.stderr)
        found = [_of_recipes()]
    logged = Logged.of(found)
    return logged.only([name.strip() for name in arguments.attacks.split(",")]) if arguments.attacks else logged


def _of_recipes() -> Summary:
    """Return what a run of a recipe logs by default."""
    from omegaconf import OmegaConf

    from robustlit.experiment.recipes import recipes_folder

    files = ("base.yaml", "data/mnist.yaml", "sweep/linf.yaml")
    base, data, sweep = (OmegaConf.load(recipes_folder() / file) for file in files)
    return of_sweep(OmegaConf.merge(base, {"data": data, "sweep": sweep}))


def _place_of(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return entity and project of the view that --url names."""
    example = "https://wandb.ai/ENTITY/PROJECT?nw=ID"
    if arguments.dry_run:
        raise ValueError("--dry-run asks no server, so it cannot renew the view of --url; leave one of them out")
    address = urlsplit(arguments.url)
    parts = [unquote(part) for part in address.path.strip("/").split("/")]
    if parts[2:] in (["workspace"], ["table"]):
        parts = parts[:2]
    if len(parts) != 2 or not all(parts) or not parse_qs(address.query).get("nw"):
        raise ValueError(f"--url must be the address of a saved view, such as {example}, got {arguments.url!r}")
    for flag, found in zip(("entity", "project"), parts, strict=True):
        if (asked := getattr(arguments, flag)) not in (None, found):
            raise ValueError(f"--{flag} {asked} is not that of --url, {found}; leave it out")
    return parts[0], parts[1]


def _check_names(arguments: argparse.Namespace) -> None:
    """Raise for a project, an entity (W&B's own rules for these are even narrower) or a view with a name it refuses."""
    for flag in ("project", "entity"):
        name = getattr(arguments, flag)
        if name is not None and not (name.strip() and re.fullmatch(r"[^/\\#?%:]{1,128}", name)):
            raise ValueError(f"--{flag} must be 1 to 128 characters without any of / \\ # ? % :, got {name!r}")
    if arguments.name is not None and any(unicodedata.category(c)[0] == "S" for c in arguments.name):
        raise ValueError(f"--name must be without symbols such as + = $ and emoji, got {arguments.name!r}")
