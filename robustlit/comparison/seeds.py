"""Runs that differ in the seed alone: means over seeds, and differences between such groups, paired seed by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from robustlit.comparison.differences import flattened
from robustlit.comparison.measures import unmasked
from robustlit.comparison.origin import run_folder
from robustlit.comparison.runs import Run

FIGURES = ("clean", "worst case", "certified")
_MOST = 5  # groups whose differences are shown, two by two
_ONE_SIDED = 0.975
# Settings that differ between the seeds of one recipe: the seed, and what follows from it.
_OF_A_SEED = re.compile(r"seed|ckpt_path|device|version of .*")
_NETS = ("base", "victim", "substitute")  # settings that name another run


@dataclass(frozen=True)
class Group:
    """Runs with equal settings, attacks and budgets, each with another seed.

    Attributes:
        name: Of the first run, without what names its seed.
        seeds: Ascending.
        places: Of the runs among those compared, in the order of `seeds`.
    """

    name: str
    seeds: tuple[int, ...]
    places: tuple[int, ...]


def over_seeds(runs: Sequence[Run], shown: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any] | None:
    """Return what a page shows of runs that differ in the seed alone, and of their differences; None without either.

    Args:
        runs: The runs.
        shown: What the page says of each, with `clean`, `worst`, `certified` and `mistakes`.
        n: Number of test images.

    Returns:
        `groups`: `name`, `seeds`, `runs` (places) and, for each of `FIGURES` that all of its runs have, mean, least and
        largest accuracy. `differences`: of two groups with a common seed and budget `a`, `b`, `seeds`, and for each
        figure that was measured alike the mean difference and its 95 % interval, which is None where all seeds differ
        by the same.
    """
    groups = grouped(runs)
    shares = [{name: _share(each, name) for name in FIGURES} for each in shown]
    described = []
    for group in groups:
        values = {name: [shares[k][name] for k in group.places] for name in FIGURES}
        whole = {name: [v for v in found if v is not None] for name, found in values.items() if None not in found}
        figures = {name: {"mean": float(np.mean(v)), "least": min(v), "largest": max(v)} for name, v in whole.items()}
        described.append(
            {"name": group.name, "seeds": list(group.seeds), "runs": list(group.places), "figures": figures}
        )
    apart = [*_differences(groups[:_MOST], runs, shown, shares, n)]
    several = any(len(group.seeds) > 1 for group in groups)
    return {"groups": described, "differences": apart} if several or apart else None


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of attacked runs that differ in the seed alone, the best represented first.

    A seed counts once, and so does a net: attacked again with other random numbers, it is no other seed. Of a network
    that robustlit did not train the seed is not known.
    """
    found: dict[object, dict[int, int]] = {}
    nets = set()
    for place, run in enumerate(runs):
        seed = run.config.get("seed")
        known = isinstance(seed, int) and not isinstance(seed, bool) and run.config.get("recipe") != "evaluate"
        if run.evaluation is None or not run.complete or not known:
            continue
        key, checkpoint = _key(run), run.config.get("ckpt_path")
        net = key, run_folder(str(checkpoint)).name if checkpoint else run.folder.resolve().name
        if net not in nets:
            nets.add(net)
            found.setdefault(key, {}).setdefault(int(str(seed)), place)
    groups = []
    for members in found.values():
        seeds = tuple(sorted(members))
        first = runs[members[seeds[0]]].name
        name = re.sub(rf"-seed_{seeds[0]}(?=-|$)", "", first) if len(seeds) > 1 else first
        groups.append(Group(name, seeds, tuple(members[seed] for seed in seeds)))
    return sorted(groups, key=lambda group: -len(group.seeds))


def _key(run: Run) -> object:
    """Return what runs of one group have in common."""
    assert run.evaluation is not None
    settings = {key: value for key, value in flattened(run) if not _OF_A_SEED.fullmatch(key)}
    for key in _NETS:  # of a defense with seed 1 the net with seed 1 is defended
        if key in settings:
            settings[key] = re.sub(r"seed_\d+", "seed_*", settings[key])
    checkpoint = Path(str(run.config.get("ckpt_path") or "")).name
    attacked = checkpoint if checkpoint.endswith(".ckpt") else ""  # best or last
    return tuple(sorted(settings.items())), attacked, *map(partial(_measured, run), FIGURES), run.budget, run.data


def _measured(run: Run, figure: str) -> object:
    """Return how a figure was measured: the attacks or certificates with their settings."""
    assert run.evaluation is not None
    if figure == "clean":
        return None
    kind = "attacks" if figure == "worst case" else "certificates"
    settings = run.evaluation.meta.get(kind)
    named = sorted((str(k), str(v)) for k, v in settings.items()) if isinstance(settings, Mapping) else []
    return tuple(named), tuple(run.rests_on) if figure == "worst case" else ()


def _share(shown: Mapping[str, Any], name: str) -> float | None:
    """Return a figure of a run as a share, None where it has none."""
    pair = shown["clean"] if name == "clean" else shown["certified"]
    if name == "worst case":
        worst = shown["worst"]
        pair = None if worst is None else (worst["correct"], worst["n"])
    return None if pair is None else pair[0] / pair[1]


def _differences(
    groups: Sequence[Group], runs: Sequence[Run], shown: Sequence[Mapping[str, Any]],
    shares: Sequence[Mapping[str, float | None]], n: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    for one, other in combinations(groups, 2):
        seeds = [seed for seed in one.seeds if seed in other.seeds]
        if not seeds or runs[one.places[0]].budget != runs[other.places[0]].budget:
            continue
        pairs = [(one.places[one.seeds.index(s)], other.places[other.seeds.index(s)]) for s in seeds]
        figures = {}
        for name in FIGURES:
            values = [(shares[a][name], shares[b][name]) for a, b in pairs]
            apart = [a - b for a, b in values if a is not None and b is not None]
            alike = _measured(runs[pairs[0][0]], name) == _measured(runs[pairs[0][1]], name)
            if len(apart) < len(pairs) or not alike:
                continue
            kind = {"clean": "clean", "worst case": "worst"}.get(name)
            wrong = None
            if len(pairs) == 1 and kind is not None:
                wrong = [_wrong(shown[k], kind, n) for k in pairs[0]]
            if len(pairs) > 1 or wrong is not None:
                mean, low, high = over_images(*wrong) if wrong else over_pairs(apart)
                figures[name] = {"mean": mean, "low": low, "high": high}
        if figures:
            yield {"a": one.name, "b": other.name, "seeds": seeds, "figures": figures}


def _wrong(shown: Mapping[str, Any], kind: str, n: int) -> np.ndarray:
    return unmasked(shown["mistakes"][kind]["wrong"], n)


def over_pairs(apart: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean of at least two paired differences, and the ends of Student's 95 % interval of it.

    Without ends where all are equal: so few seeds say nothing of how far others lie apart.
    """
    from scipy.stats import t

    mean, count = float(np.mean(apart)), len(apart)
    if max(apart) - min(apart) < 1e-12:
        return mean, None, None
    half = float(t.ppf(_ONE_SIDED, count - 1)) * float(np.std(apart, ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def over_images(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Return how much more often the first of two nets is right on the same images, and a 95 % interval of that.

    Agresti, Min: Simple improved confidence intervals for comparing matched proportions, 2005, Statistics in Medicine
    24, section 3: Wald's interval with half an image added to each of the four outcomes, so that it has a width where
    the nets never differ.

    Args:
        first, second: (n,) bool, the images that each gets wrong.
    """
    n, better, worse = len(first) + 2, float((second & ~first).sum()) + 0.5, float((first & ~second).sum()) + 0.5
    middle = (better - worse) / n
    half = 1.959963984540054 * math.sqrt(better + worse - (better - worse) ** 2 / n) / n
    return (better - worse) / len(first), middle - half, middle + half
