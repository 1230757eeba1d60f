"""Upload the W&B runs that were kept offline or interrupted.

They are those of the run folders given, else of all in runs/. Without a login to W&B it prints how to get one.

examples:
  %(prog)s
  %(prog)s runs/fgsm_rs
  %(prog)s --dry-run
"""

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path

from robustlit.cli.parser import print_error
from robustlit.tracking.offline import USAGE, find_kept, relative, sync_arguments, upload
from robustlit.tracking.server import logged_in, server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of them")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and the commands")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.runs and not Path("runs").is_dir():
        raise ValueError(f"there is no folder runs/ here; name the run folders: {USAGE}")
    runs = [run for run in arguments.runs if run.name != "multirun.yaml"]  # lies in runs/ after -m
    kept = find_kept(runs or [Path("runs")], left_out=partial(print, file=sys.stderr))
    waiting = [k for k in kept if not k.uploaded]
    ready = [k for k in waiting if k.ended]
    if not waiting:
        print(f"nothing to upload: {f'all {len(kept)} W&B runs are on the server' if kept else 'no W&B runs there'}")
    for k in waiting:
        print(k.line)
    if len(ready) < len(waiting):
        print("a run that is still being written is left alone: sync it when it has ended")
    if arguments.dry_run or not ready:
        for k in ready:
            print(shlex.join(["wandb", *sync_arguments([k])]))
        return 0
    if not logged_in():
        again = shlex.join(["robustlit", "sync", *map(str, arguments.runs)])
        host = "" if "WANDB_BASE_URL" not in os.environ else f" --host {server()}"
        print(f"not logged in to {server()}; run `wandb login{host}`, then again `{again}`", file=sys.stderr)
        return 1
    addresses, reason = upload(ready)
    for address in addresses:
        print(f"uploaded to {address}")
    failed = [k for k in ready if not k.uploaded]
    for k in failed:
        print_error(f"{relative(k.run)} was not uploaded{f': {reason}' if reason else ''}")
    if not failed:
        print(f"{len(ready)} W&B run{'s' * (len(ready) > 1)} uploaded")
    return 1 if failed else 0
