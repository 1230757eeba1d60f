"""Read what an offline W&B run holds, with W&B's own reader; make the files of one by hand."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def records(folder: Path) -> dict[str, list[Any]]:
    """Return the records of the only W&B run below a folder, by kind."""
    (log,) = folder.rglob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[Any]] = {}
    for record in map(json.loads, printed.splitlines()):
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def values(record: dict[str, Any]) -> dict[str, Any]:
    """Return the keys and values of a history, summary or config record."""
    items = record.get("item") or record.get("update") or []
    return dict(items) if isinstance(items, dict) else {item["key"]: item["value"] for item in items}


def keep(folder: str | Path, *, synced: bool = False, ended: bool = True, age: float = 0) -> Path:
    """Make a W&B run `<run folder>/wandb/run-DATE-ID`, last written `age` seconds ago, and return its record."""
    at = Path(folder)
    (at / "logs").mkdir(parents=True)
    (at.parents[1] / "config.yaml").touch()
    file = at / f"run-{at.name.rpartition('-')[2]}.wandb"
    file.write_bytes(b"0" * 200_000)
    (at / "logs" / "debug-internal.log").write_text('{"msg":"stream: all finished"}\n' if ended else '{"msg":"x"}\n')
    os.utime(file, (time.time() - age,) * 2)
    if synced:
        file.with_suffix(".wandb.synced").touch()
    return file
