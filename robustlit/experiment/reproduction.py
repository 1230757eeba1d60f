"""The figures of the 2019 report: the runs that each needs, each a command of this program, and their records.

A run's folder is named by a digest of its command, with the folders of the runs that it needs in it: a command that
changes, or comes after one that does, has another folder, and a finished run is never computed again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from robustlit.checks import did_you_mean
from robustlit.experiment.recipes import ConfigError, recipes_folder
from robustlit.experiment.resume import is_finished
from robustlit.figures.stored import Wanted, figure_record
from robustlit.results import Evaluation

_NAME = re.compile(r"<(\w+)>")
_OF_RESULTS = ("seconds", "device", "parameters")  # what a record repeats of a run's results.json
Choice = tuple[tuple[str, Any], ...]  # the values of the `for` of one run, by name


@dataclass(frozen=True)
class Part:
    """A run of a figure."""

    name: str
    words: tuple[str, ...]  # of the command, without the program: train recipe=...
    folder: Path
    needs: tuple[Part, ...]
    taken: bool = False  # a run of the user's in its place

    @property
    def finished(self) -> bool:
        """Whether there is nothing to compute."""
        return self.taken or is_finished(self.folder)

    @property
    def command(self) -> str:
        """The command, as a user would type it."""
        return shlex.join(["robustlit", *self.words])

    def in_order(self) -> Iterator[Part]:
        """Yield what it needs, then itself."""
        for part in self.needs:
            yield from part.in_order()
        yield self


@dataclass
class Reproduction:
    """The runs and figures of recipes/report/report.yaml.

    Args:
        folder: Where runs and figures go.
        n, few: Numbers of test images: `few` for attacks that cost too much for `n`.
        taken: Name of a run -> a run folder of the user's that takes its place.
        overrides: Values of the recipes of all trainings, such as trainer.accelerator=gpu.

    Raises:
        ConfigError: A run that is taken does not exist, or a name is none.
    """

    folder: Path
    n: int = 1000
    few: int = 100
    taken: Mapping[str, Path] = field(default_factory=dict)
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        content: Any = OmegaConf.to_container(OmegaConf.load(recipes_folder() / "report" / "report.yaml"))
        self._runs: dict[str, Any] = content["runs"]
        self.figures: dict[str, dict[str, Any]] = content["figures"]
        for name, place in self.taken.items():
            _check(name, "run", self._runs)
            if not (Path(place) / "results.json").is_file():
                raise ConfigError(f"--take {name}={place}: there is no finished run at {place} (no results.json)")

    def parts(self, figure: str) -> list[Part]:
        """Return the runs of a figure in the order in which they can be computed, each once."""
        _check(figure, "figure", self.figures)
        lines = self.figures[figure]["lines"]
        wanted = [part for line in lines for part in self._of_line(line)]
        return [*{part.folder: part for last in wanted for part in last.in_order()}.values()]

    def title(self, figure: str) -> str:
        """Return a figure's title, after its number in the report or that of its section."""
        return f"{'Section' if '.' in figure else 'Figure'} {figure}: {self.figures[figure]['title']}"

    def record(self, figure: str) -> dict[str, Any]:
        """Return the record of a figure whose runs are finished."""
        described = self.figures[figure]
        lines = [
            Wanted(
                line["name"], [Evaluation.load(part.folder) for part in self._of_line(line)], line.get("attack"),
                line.get("knowledge", "adaptive"),
            )
            for line in described["lines"]
        ]  # fmt: skip
        more = {
            "figure": figure,
            "claim": " ".join(described["claim"].split()),
            "runs": {part.name: _about(part) for part in self.parts(figure)},
        }
        return figure_record(self.title(figure), described["distance"], described["at"], lines, more)

    def _of_line(self, line: Mapping[str, Any]) -> list[Part]:
        where = {(key, value) for key, value in line.get("where", {}).items()}
        return [self._part(line["run"], choice) for choice in self._choices(line["run"]) if where <= {*choice}]

    def _choices(self, name: str) -> list[Choice]:
        run = self._runs[name]
        several = run["for"] if isinstance(run, dict) else {}
        return [tuple(zip(several, values, strict=True)) for values in itertools.product(*several.values())]

    def _part(self, name: str, choice: Choice) -> Part:
        """Return a run; `<name>` in its command is a number of images, a value of `for` or another run's folder."""
        label = "_".join([name, *(_plain(value) for _, value in choice)])
        if name in self.taken:
            return Part(label, (), Path(self.taken[name]), (), taken=True)
        run, needs = self._runs[name], []
        values: dict[str, str] = {"n": str(self.n), "few": str(self.few), **{k: str(v) for k, v in choice}}
        text = run["command"] if isinstance(run, dict) else run
        for other in _NAME.findall(text):
            if other not in values:
                needs.append(self._part(other, choice if isinstance(self._runs[other], dict) else ()))
                values[other] = str(needs[-1].folder)
        words = shlex.split(_NAME.sub(lambda found: values[found[1]], text))
        if words[0] == "train":
            words += [*self.overrides]
        folder = self.folder / "runs" / f"{label}-{_digest(words)}"
        words += [f"run_dir={folder}", "resume=auto", "logger=none"]
        return Part(label, tuple(words), folder, tuple(needs))


def _check(name: str, kind: str, there: Mapping[str, Any]) -> None:
    if name not in there:
        hint = did_you_mean(name, there) or f"there are {', '.join(there)}"
        raise ConfigError(f"there is no {kind} {name!r} of the report; {hint}")


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([version("robustlit"), *words]).encode()).hexdigest()[:8]


def _plain(value: Any) -> str:
    return re.sub(r"\W+", "_", str(value))


def _about(part: Part) -> dict[str, Any]:
    """Return a run's command and what it took; of one that was taken over, its own command line."""
    results = json.loads((part.folder / "results.json").read_text())
    typed = part.folder / "command.txt"
    command = typed.read_text().strip() if part.taken and typed.is_file() else part.command
    return {"command": command, **{key: results[key] for key in _OF_RESULTS if key in results}}
