"""A run as its folder tells it: results.json, config.yaml, the table of examples, the verdict."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from robustlit.results.evaluation import Evaluation
from robustlit.results.stored_verdict import stored_verdict
from robustlit.results.table import DISTANCES, KNOWLEDGE, TABLE, EvaluationError
from robustlit.results.verdict import Verdict

# Control characters, halves of pairs, and what turns the direction of the text around it.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
INFORMED = ("adaptive", "greybox", "blackbox")  # attackers, by how much they know
_LONGEST = 300  # letters of a name or value that a page shows


class ComparisonError(EvaluationError):
    """Runs that cannot be compared, or a folder that is none."""


def text(value: object, longest: int = _LONGEST) -> str:
    """Any value as one line of text that can be written anywhere: no control characters, at most `longest` letters."""
    shown = _UNSHOWN.sub("�", value if isinstance(value, str) else json.dumps(value, default=str))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


@dataclass(frozen=True)
class Run:
    """What a run left.

    Args:
        folder: its folder.
        name: what to call it.
        results: results.json, or {}.
        config: config.yaml as stored, interpolations unresolved, or {}.
        evaluation: the table of examples; None for a run that was trained but not attacked.
        verdict: verdict.json; None without one, or where it judged another table.
        told: what a reader must be told of verdict.json, see `stored_verdict`; empty where all is well.
    """

    folder: Path
    name: str
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    evaluation: Evaluation | None
    verdict: Verdict | None
    told: str = ""

    def with_evaluation(self, evaluation: Evaluation) -> Run:
        """The same run with another table."""
        return replace(self, evaluation=evaluation)

    @property
    def data(self) -> str | None:
        """Name of the data set, where the folder says it."""
        section = self.config.get("data")
        target = section.get("_target_") if isinstance(section, Mapping) else None
        meta = self.evaluation.meta.get("data") if self.evaluation else None
        found = self.results.get("data") or (target and str(target).rsplit(".", 1)[-1]) or meta
        return None if found is None else text(found)

    @cached_property
    def budget(self) -> tuple[str, float] | None:
        """Norm and eps, in pixel units, that the run's accuracies are quoted at; None without any."""
        for source in (self.results.get("worst_case"), self.config):
            if isinstance(source, Mapping):
                norm, eps = source.get("norm"), source.get("eps")
                if norm in DISTANCES and isinstance(eps, (int, float)) and not isinstance(eps, bool) and 0 < eps < 1e6:
                    return str(norm), float(eps)
        if self.evaluation is None:
            return None
        # Evaluated from Python: the largest budget of the first norm that attacks were run at.
        for attack, knowledge in self.evaluation.runs:
            if budgets := self.evaluation.budgets(attack, knowledge):
                return self.evaluation.norm_of(attack), budgets[-1]
        return None

    @cached_property
    def knowledge(self) -> str | None:
        """The best informed attacker that the run faced, which its worst case is quoted for."""
        known = {k for _, k in self.evaluation.runs} if self.evaluation else set()
        return next((k for k in INFORMED if k in known), None)

    @cached_property
    def rests_on(self) -> list[str]:
        """The attacks on which the quoted worst case rests, named as by figures; empty where there is none."""
        if self.evaluation is None or self.budget is None or self.knowledge is None:
            return []
        norm, eps = self.budget
        best = self.evaluation.rests_on(norm=norm, eps=eps, knowledge=self.knowledge)
        return best and [
            self.evaluation.label(attack, known)
            for known in self.counted
            for attack in self.evaluation.rests_on(norm=norm, eps=eps, knowledge=known)
        ]

    @property
    def counted(self) -> list[str]:
        """The kinds of knowledge whose witnesses the worst case counts, best informed first.

        Whoever knows the defense can also do what those can who do not (see `Evaluation.worst_case`).
        """
        known = {k for _, k in self.evaluation.runs} if self.evaluation else set()
        every = [k for k in INFORMED if k in known]
        return every if self.knowledge == "adaptive" else every[:1]


def read_run(folder: str | Path) -> Run:
    """Reads a run folder.

    Args:
        folder: runs/NAME, its evaluation/ inside, or a folder that `Evaluation.save` wrote.

    Raises:
        ComparisonError: no such folder, not a run, or one of its files is damaged or of another version.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ComparisonError(f"{folder} is a file; give the run's folder, such as runs/NAME")
    if not folder.is_dir():
        raise ComparisonError(f"there is no folder {folder}; give run folders, such as runs/*")
    if folder.name == "evaluation" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    held = [f for f in ("results.json", TABLE, f"evaluation/{TABLE}") if (folder / f).is_file()]
    if not held:
        ours = (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()
        what = "was not finished" if ours else "is no run of robustlit"
        raise ComparisonError(
            f"{folder} {what}: it has neither results.json nor evaluation/{TABLE}; "
            + ("attack it (robustlit evaluate " + str(folder) + ") or leave it out" if ours else "leave it out")
        )
    results = _json(folder / "results.json")
    evaluation = _evaluation(folder) if held != ["results.json"] else None
    verdict, told = _verdict(folder, evaluation)
    return Run(
        folder=folder,
        name=text(str(results.get("name") or folder.resolve().name)),
        results=results,
        config=read_config(folder / "config.yaml"),
        evaluation=evaluation,
        verdict=verdict,
        told=told,
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ComparisonError(f"{path} is damaged ({error}); evaluate the run again, or leave it out") from None
    if not isinstance(found, dict):
        raise ComparisonError(f"{path} is not of robustlit: it holds no JSON object; leave the folder out")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """A config.yaml as stored, interpolations unresolved; {} where there is none.

    Raises:
        ComparisonError: it is damaged, or of something else.
    """
    if not path.is_file():
        return {}
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        json.dumps(found, default=str)  # a value that contains itself has no end
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise ComparisonError(f"{path} is damaged ({line}); mend it, or leave the run out") from None
    if not isinstance(found, dict):
        raise ComparisonError(f"{path} is not of robustlit: it holds no settings; leave the folder out")
    return {str(key): value for key, value in found.items()}


def _evaluation(folder: Path) -> Evaluation:
    net = folder if (folder / "checkpoints").is_dir() else "CHECKPOINT"  # the folder of an evaluation holds none
    again = f"attack it again (robustlit evaluate {net}), or leave it out"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="there is no evaluation.json")  # the page says it of the run
            evaluation = Evaluation.load(folder)
    except EvaluationError as error:
        raise ComparisonError(f"{error}; or leave {folder} out") from None
    table = evaluation.table
    for column, allowed in (("knowledge", KNOWLEDGE), ("norm", DISTANCES)):
        for value in table[column].unique():
            if value not in allowed:
                raise ComparisonError(f"{folder}: {column} must be among {', '.join(allowed)}, got {value!r}; {again}")
    each = table.groupby("index")[["label", "clean"]].nunique().max()
    if (each > 1).any():
        raise ComparisonError(f"{folder}: one example has two labels or is both right and wrong unattacked; {again}")
    return evaluation


def _verdict(folder: Path, evaluation: Evaluation | None) -> tuple[Verdict | None, str]:
    if evaluation is None:  # a verdict on a table that is gone says nothing of what is shown
        return None, ""
    try:
        return stored_verdict(folder, evaluation)
    except ValueError as error:
        raise ComparisonError(str(error)) from None
