"""A run as its folder describes it: results.json, config.yaml, command.txt, the per-example table and the verdict."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustlit.results.evaluation import Evaluation
from robustlit.results.files import read_json, read_yaml
from robustlit.results.stored_verdict import stored_verdict
from robustlit.results.table import DISTANCES, KNOWLEDGE, TABLE, EvaluationError
from robustlit.results.verdict import Verdict

INFORMED = ("adaptive", "greybox", "blackbox")  # kinds of attackers, by how much they know
LONGEST_COMMAND = 4000  # characters
_LONGEST = 300  # characters of a name or value on a page
# Control characters, lone surrogates, and characters that reverse the direction of the text around them.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class ComparisonError(EvaluationError):
    """Runs that cannot be compared, or a folder that is not a run."""


def text(value: object, longest: int = _LONGEST) -> str:
    """Return any value as one line of at most `longest` characters, without control characters."""
    shown = _UNSHOWN.sub("�", value if isinstance(value, str) else json.dumps(value, default=str))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def section(values: object, key: str) -> Mapping[Any, Any]:
    """Return the group of settings under a key, {} where there is none."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    name: str
    results: Mapping[str, Any]  # results.json, or {}
    config: Mapping[str, Any]  # config.yaml with interpolations unresolved, or {}
    command: str  # the command line that made the run, "" where it is not stored
    evaluation: Evaluation | None  # None for a run that was trained but not attacked
    verdict: Verdict | None  # None without one, or where it judged another table
    verdict_note: str = ""  # what a reader must know of verdict.json, see `stored_verdict`; mostly empty

    @property
    def data(self) -> str | None:
        """Name of the data set, None where the folder does not say."""
        target = section(self.config, "data").get("_target_")
        meta = self.evaluation.meta.get("data") if self.evaluation else None
        found = self.results.get("data") or (target and str(target).rsplit(".", 1)[-1]) or meta
        return None if found is None else text(found)

    @property
    def complete(self) -> bool | None:
        """Whether the evaluation finished; None where that is not known."""
        return self.evaluation.complete if self.evaluation else None

    @cached_property
    def budget(self) -> tuple[str, float] | None:
        """Norm and eps, in pixel units, at which the run's accuracies are reported; None without any."""
        for source in (self.results.get("worst_case"), self.config):
            if isinstance(source, Mapping):
                norm, eps = source.get("norm"), source.get("eps")
                if norm in DISTANCES and isinstance(eps, (int, float)) and not isinstance(eps, bool) and 0 < eps < 1e6:
                    return str(norm), float(eps)
        # Evaluated from Python: the largest budget of the first attack that has one.
        for attack, knowledge in self.evaluation.runs if self.evaluation else ():
            if self.evaluation and (budgets := self.evaluation.budgets(attack, knowledge)):
                return self.evaluation.norm_of(attack), budgets[-1]
        return None

    @cached_property
    def counted(self) -> list[str]:
        """The kinds of knowledge that count in the worst case, best informed first.

        An adaptive attacker can also run every grey-box and black-box attack (see `Evaluation.worst_case`).
        """
        ran = {knowledge for _, knowledge in self.evaluation.runs} if self.evaluation else set()
        known = [knowledge for knowledge in INFORMED if knowledge in ran]
        return known if "adaptive" in known else known[:1]

    @property
    def knowledge(self) -> str | None:
        """The best informed attacker that was run, for which the worst case is reported."""
        return next(iter(self.counted), None)

    @cached_property
    def rests_on(self) -> list[str]:
        """Names of the attacks that the reported worst case rests on, as in figures; empty without a worst case."""
        if self.evaluation is None or self.budget is None:
            return []
        (norm, eps), found = self.budget, self.evaluation
        ran = {k: found.rests_on(norm=norm, eps=eps, knowledge=k) for k in self.counted}
        return [found.label(a, k) for k, attacks in ran.items() for a in attacks] if ran[self.counted[0]] else []


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Args:
        folder: runs/NAME, the evaluation/ inside it, or a folder that `Evaluation.save` wrote.

    Raises:
        ComparisonError: There is no such folder, it is not a run, or a file is damaged or of another version.
    """
    folder = Path(folder)
    try:
        return _read_run(folder)
    except OSError as error:  # no permission, a device that fails
        raise ComparisonError(f"{folder} cannot be read: {error.strerror or error}; leave it out") from None


def _read_run(folder: Path) -> Run:
    if folder.is_file():
        raise ComparisonError(f"{folder} is a file; give the run's folder, such as runs/NAME")
    if not folder.is_dir():
        raise ComparisonError(f"there is no folder {folder}; give run folders, such as runs/*")
    if folder.name == "evaluation" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    held = [file for file in ("results.json", TABLE, f"evaluation/{TABLE}") if (folder / file).is_file()]
    if not held:
        what, way_out = "is no run of robustlit", "leave it out"
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            what, way_out = "was not finished", f"attack it (robustlit evaluate {folder}) or leave it out"
        raise ComparisonError(f"{folder} {what}: it has neither results.json nor evaluation/{TABLE}; {way_out}")
    results, config = _read(folder / "results.json", read_json), _read(folder / "config.yaml", read_yaml)
    evaluation = _evaluation(folder) if held != ["results.json"] else None
    try:  # a verdict on a table that is gone says nothing about what is shown
        verdict, note = stored_verdict(folder, evaluation) if evaluation else (None, "")
    except ValueError as error:
        raise ComparisonError(str(error)) from None
    name = text(str(results.get("name") or folder.resolve().name))
    return Run(folder, name, results, config, _command(folder / "command.txt"), evaluation, verdict, note)


def _read(path: Path, parse: Callable[[Path], Any]) -> dict[str, Any]:
    """Return what a JSON or YAML file holds, {} without the file."""
    if not path.is_file():
        return {}
    try:
        found = parse(path)
        json.dumps(found, default=str)  # raises for a value that contains itself
    except (OSError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ComparisonError(f"{path} is damaged ({reason}); restore it, or leave the run out") from None
    if not isinstance(found, dict):
        raise ComparisonError(f"{path} is not of robustlit: it holds no names with values; leave the folder out")
    return {str(key): value for key, value in found.items()}


def _command(path: Path) -> str:
    """Return the command line that a run stored, "" without one."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return text(file.read(LONGEST_COMMAND + 1).strip(), LONGEST_COMMAND)


def _evaluation(folder: Path) -> Evaluation:
    checkpoint = folder if (folder / "checkpoints").is_dir() else "CHECKPOINT"  # an evaluation's folder holds none
    way_out = f"attack it again (robustlit evaluate {checkpoint}), or leave it out"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="there is no evaluation.json")  # the page has a note about it
            evaluation = Evaluation.load(folder)
    except EvaluationError as error:
        raise ComparisonError(f"{error}; or leave {folder} out") from None
    table = evaluation.table
    for column, allowed in (("knowledge", KNOWLEDGE), ("norm", DISTANCES)):
        if unknown := [value for value in table[column].unique() if value not in allowed]:
            rule = f"{column} must be among {', '.join(allowed)}, got {unknown[0]!r}"
            raise ComparisonError(f"{folder}: {rule}; {way_out}")
    if (table.groupby("index")[["label", "clean"]].nunique().max() > 1).any():
        raise ComparisonError(f"{folder}: an example has two labels, or is both right and wrong unattacked; {way_out}")
    return evaluation
