"""The page: everything that it shows as data inside it, and the scripts that show it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from robustlit import __version__
from robustlit.comparison.caveats import caveats
from robustlit.comparison.curves import curves, views
from robustlit.comparison.differences import differences
from robustlit.comparison.excerpt import ComparisonError, Excerpt, common_excerpt
from robustlit.comparison.measures import accuracies, facts, mistakes
from robustlit.comparison.pictures import mnist_pictures
from robustlit.comparison.runs import Run, read_run

MARK = "<!doctype html><!-- written by robustlit compare -->"
SCRIPTS = ("page.js", "table.js", "verdicts.js", "curves.js", "mistakes.js", "settings.js")
PICTURES = 400  # about 300 bytes each


def compare(runs: Sequence[str | Path], *, intersect: bool = False) -> str:
    """One self-contained HTML page that lays runs side by side, from their folders alone.

    Args:
        runs: run folders, each attacked on the same test images.
        intersect: where the test images differ, compare on those that every run holds.

    Returns:
        The page. It loads nothing from anywhere.

    Raises:
        ComparisonError: a folder that is no run, the same run twice, damaged files, runs that cannot be compared.
    """
    read = _named_apart([read_run(folder) for folder in _each_once(runs)])
    compared, excerpt = common_excerpt(read, intersect)
    return render(content(compared, excerpt))


def write_page(page: str, path: str | Path) -> Path:
    """Writes a page, over an older one but over nothing else.

    Raises:
        FileExistsError: another file has that name.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; give a file, such as --out {path / 'compare.html'}")
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        raise FileExistsError(f"{path} exists and is no page of robustlit compare; choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def content(runs: Sequence[Run], excerpt: Excerpt) -> dict[str, Any]:
    """What the page shows, as plain values."""
    shown = views(runs)
    axes, drawn = curves(runs, shown)
    wrong = [mistakes(run, excerpt) for run in runs]
    return {
        "version": __version__,
        "data": excerpt.data,
        "index": [int(k) for k in excerpt.index],
        "labels": [int(k) for k in excerpt.labels],
        "intersected": excerpt.of,
        "caveats": caveats(runs, excerpt),
        "views": [{"name": v.name, "knowledge": v.knowledge, "worst": v.attack is None} for v in shown],
        "axes": axes,
        "runs": [
            {**facts(run), **accuracies(run, shown), "curves": lines, "mistakes": mine}
            for run, lines, mine in zip(runs, drawn, wrong, strict=True)
        ],
        "settings": differences(runs),
        "pictures": mnist_pictures(excerpt, _telling(wrong, excerpt)),
    }


def render(values: dict[str, Any]) -> str:
    """The page around its data. Names and values reach it as data only, never as markup."""
    assets = resources.files("robustlit.comparison") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # Pure ASCII, and no character that could end the element that it stands in.
    data = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:"
    parts = {"POLICY": policy, "STYLE": style, "DATA": data, "SCRIPT": script}
    page = (assets / "page.html").read_text(encoding="utf-8")
    pieces = page.split("%%")  # text, name, text, name, ...: what is put in is not looked into again
    return MARK + "\n" + "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _each_once(runs: Sequence[str | Path]) -> list[Path]:
    if isinstance(runs, (str, Path)) or not runs:
        raise ComparisonError(f"runs must be a list of at least one run folder, got {runs!r}")
    given: dict[Path, str | Path] = {}
    for folder in runs:
        real = Path(folder).resolve()
        real = real.parent if real.name == "evaluation" else real
        if real in given:
            twice = f"{folder} was given twice" if folder == given[real] else f"{folder} and {given[real]} are one run"
            raise ComparisonError(f"{twice}; give each run once")
        given[real] = folder
    return [Path(folder) for folder in runs]


def _named_apart(runs: list[Run]) -> list[Run]:
    """Runs of one name get their folder's beside it."""
    count = Counter(run.name for run in runs)
    return [run if count[run.name] == 1 else replace(run, name=f"{run.name} ({run.folder})") for run in runs]


def _telling(wrong: Sequence[dict[str, Any] | None], excerpt: Excerpt) -> list[int]:
    """Numbers of the examples worth a picture: of each run in turn those that the fewest others get wrong too."""
    n = len(excerpt.index)
    queues = []
    for kind in ("worst", "clean"):
        masks = [_bits(found[kind]["who"], n) for found in wrong if found and found[kind]]
        times = np.sum(masks, axis=0)
        for mask in masks:
            mine = np.flatnonzero(mask & (times < max(2, len(masks))))
            queues.append(iter(mine[np.argsort(times[mine], kind="stable")].tolist()))
    chosen: dict[int, None] = {}
    while queues and len(chosen) < PICTURES:
        for queue in list(queues):
            number = next((k for k in queue if k not in chosen), None)
            if number is None:
                queues.remove(queue)
            elif len(chosen) < PICTURES:
                chosen[number] = None
    return sorted(int(excerpt.index[k]) for k in chosen)


def _bits(mask: str, n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8), bitorder="little")[:n].astype(bool)
