"""The page: all that it shows as data inside it, and the scripts that show it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from robustlit import __version__
from robustlit.comparison.caveats import caveats
from robustlit.comparison.curves import curves, views
from robustlit.comparison.differences import differences
from robustlit.comparison.excerpt import Excerpt, common_excerpt
from robustlit.comparison.measures import accuracies, facts, mistakes, unmasked
from robustlit.comparison.pictures import mnist_pictures
from robustlit.comparison.runs import ComparisonError, Run, read_run, text
from robustlit.comparison.seeds import over_seeds
from robustlit.files import write_file
from robustlit.results.evaluation import Evaluation

MARK = "<!doctype html><!-- written by robustlit compare -->"
SCRIPTS = ("page.js", "table.js", "seeds.js", "verdicts.js", "curves.js", "mistakes.js", "settings.js")
PICTURES = 400  # about 300 bytes each


def compare(
    runs: Sequence[str | Path], *, intersect: bool = False, left_out: Callable[[str], None] | None = None
) -> str:
    """Return one self-contained HTML page that shows runs side by side, made from their folders alone.

    Args:
        runs: Run folders, all attacked on the same test images.
        intersect: Where the test images differ, compare on those that every run has.
        left_out: Called with a line for each folder that is no run, has no results or is damaged, as `runs/*` may name
            some; the others are compared. None raises for such a folder.

    Raises:
        ComparisonError: A folder is given twice, no run is left, or the runs cannot be compared.
    """
    return render(compared(runs, intersect=intersect, left_out=left_out))


def compared(
    runs: Sequence[str | Path], *, intersect: bool = False, left_out: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Return what `compare` shows, as plain values; the arguments are the same."""
    read, failed = [], []
    for folder in _each_once(runs):
        try:
            read.append(read_run(folder))
        except ComparisonError as error:
            if left_out is None or len(runs) == 1:
                raise
            failed.append(f"left out {folder}: {error}")
    for line in failed:
        assert left_out is not None
        left_out(line)
    if not read:
        raise ComparisonError(f"none of these {len(runs)} folders can be compared; give run folders, such as runs/*")
    count = Counter(run.name for run in read)
    distinct = [run if count[run.name] == 1 else replace(run, name=f"{run.name} ({run.folder})") for run in read]
    return content(*common_excerpt(distinct, intersect))


def write_page(page: str, path: str | Path) -> Path:
    """Write a page; an older page is replaced, any other file is not.

    Raises:
        FileExistsError: Another file has that name.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; give a file, such as --out {path / 'compare.html'}")
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        raise FileExistsError(f"{path} exists and is no page of robustlit compare; choose another --out")
    return write_file(path, page)


def content(runs: Sequence[Run], excerpt: Excerpt) -> dict[str, Any]:
    """Return what the page shows, as plain values."""
    shown = views(runs)
    named = [(text(Evaluation.label(v.attack or "worst case", v.knowledge)), v) for v in shown]
    axes, drawn = curves(runs, shown)
    wrong = [mistakes(run, excerpt) for run in runs]
    each = [
        {**facts(run), **accuracies(run, shown), "curves": lines, "mistakes": mine}
        for run, lines, mine in zip(runs, drawn, wrong, strict=True)
    ]
    return {
        "version": __version__,
        "data": excerpt.data,
        "split": _split(runs, excerpt),
        "index": excerpt.index.tolist(),
        "labels": excerpt.labels.tolist(),
        "classes": _class_names(runs),
        "caveats": caveats(runs, excerpt),
        "views": [{"name": name, "knowledge": v.knowledge, "worst": v.attack is None} for name, v in named],
        "axes": axes,
        "runs": each,
        "seeds": over_seeds(runs, each, len(excerpt.index)),
        "settings": differences(runs),
        "pictures": mnist_pictures(excerpt, _pictured(wrong, excerpt)),
    }


def _class_names(runs: Sequence[Run]) -> list[str] | None:
    """Return the names of the classes, None where no run stores any or runs disagree."""
    stored = [run.evaluation.meta.get("class_names") for run in runs if run.evaluation is not None]
    named = [names for names in stored if names]
    return [text(name, 60) for name in named[0]] if named and all(names == named[0] for names in named) else None


def _split(runs: Sequence[Run], excerpt: Excerpt) -> int | None:
    """Return how many images the test split has that the examples were chosen from; None where that is not known."""
    known = {run.evaluation.of for run in runs if run.evaluation is not None} - {None}  # older tables do not say
    of = known.pop() if len(known) == 1 and excerpt.of is None else None
    return of if of is not None and len(excerpt.index) < of < 1e9 else None


def render(values: dict[str, Any]) -> str:
    """Return the page around its data. Names and values reach it as data only, never as markup."""
    assets = resources.files("robustlit.comparison") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # Pure ASCII, without the characters that could end the element around the data.
    data = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:"
    parts = {"POLICY": policy, "STYLE": style, "DATA": data, "SCRIPT": script}
    # Text, name, text, name, ...: inserted parts are not searched again.
    pieces = (assets / "page.html").read_text(encoding="utf-8").split("%%")
    return MARK + "\n" + "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _each_once(runs: Sequence[str | Path]) -> Sequence[str | Path]:
    if isinstance(runs, (str, Path)) or not runs:
        raise ComparisonError(f"runs must be a list of at least one run folder, got {runs!r}")
    given: dict[Path, str | Path] = {}
    for folder in runs:
        real = Path(os.path.realpath(folder))  # `resolve` raises for a link to itself
        real = real.parent if real.name == "evaluation" else real
        if real in given:
            twice = f"{folder} was given twice" if folder == given[real] else f"{folder} and {given[real]} are one run"
            raise ComparisonError(f"{twice}; give each run once")
        given[real] = folder
    return runs


def _pictured(wrong: Sequence[dict[str, Any] | None], excerpt: Excerpt) -> list[int]:
    """Return the numbers of the examples with a picture.

    The runs take turns, each with those of its mistakes that the fewest other runs make, until there are enough.
    """
    queues = []
    for kind in ("worst", "clean"):
        masks = [unmasked(found[kind]["wrong"], len(excerpt.index)) for found in wrong if found and found[kind]]
        times = np.sum(masks, axis=0)
        for mask in masks:
            mine = np.flatnonzero(mask & (times < max(2, len(masks))))
            queues.append(iter(mine[np.argsort(times[mine], kind="stable")].tolist()))
    seen: dict[int, None] = {}
    while queues and len(seen) < PICTURES:
        for queue in list(queues):
            number = next((k for k in queue if k not in seen), None)
            if number is None:
                queues.remove(queue)
            else:
                seen[number] = None
    return sorted(int(excerpt.index[k]) for k in list(seen)[:PICTURES])
