"""The command that attacks a run's net again as it was attacked, and judges it; or why that is not known."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlit.comparison.origin import attacked_run, is_own_net
from robustlit.comparison.overrides import UnwritableError, overrides
from robustlit.comparison.runs import ComparisonError, Run, read_config, text

_LONGEST = 4000  # letters of a command that anybody would paste


@dataclass(frozen=True)
class Again:
    """How a run's net is attacked and judged again.

    Args:
        command: that does it; None where it is not known from what.
        doubt: why it may give other figures than the run's, one clause; empty where it gives the same.
    """

    command: str | None
    doubt: str = ""

    @property
    def said(self) -> str:
        """The command, or what is known of it, and the doubt."""
        doubt = f" (its figures may differ from those here: {self.doubt})" if self.doubt else ""
        return (self.command or "robustlit evaluate CHECKPOINT --verdict") + doubt


def again(run: Run) -> Again:
    """The command that composes the recipe which a run was evaluated by, with --verdict.

    `robustlit evaluate` goes by the recipe in the checkpoint, so everything set differently is said in the command.
    """
    if is_own_net(run.config):
        return _own(run)
    given = run.config.get("ckpt_path")
    trained_here = (run.folder / "checkpoints").is_dir()
    place = run.folder if trained_here else given
    if not isinstance(place, str | Path) or not str(place):
        return Again(None)
    changes, doubt = _changes(run, run.folder if trained_here else attacked_run(run))
    if run.evaluation is None and not _attacks(run):
        changes = [*changes, "sweep=worst_case"]  # or there would be nothing to judge
    return _asked([str(place)], changes, doubt or _foreign(run))


def _own(run: Run) -> Again:
    """That of a net of the user's, whose recipe is composed anew: what was set differently from what is by default."""
    from robustlit.comparison.own import default_recipe, of_its_evaluation

    function = ["--model", str(run.config["ckpt_path"])]
    try:
        changes = overrides(of_its_evaluation(default_recipe()), of_its_evaluation(run.config))
    except UnwritableError as error:
        return _asked(function, [], f"{error} was set differently and cannot be written on a command line")
    return _asked(
        function, changes, _foreign(run) or "the folder does not say from which --weights the net was, if any"
    )


def _asked(net: Sequence[str], changes: Sequence[str], doubt: str) -> Again:
    """The command on a net, as its first words name it, with all that was set differently."""
    command = " ".join(["robustlit", "evaluate", *(shlex.quote(word) for word in (*net, *changes)), "--verdict"])
    if text(command, _LONGEST) != command:
        short = text(" ".join(["robustlit", "evaluate", *map(shlex.quote, net), "--verdict"]))
        return Again(short, "what was set differently does not fit on a line")
    return Again(command, doubt)


def _changes(run: Run, trained: Path | None) -> tuple[list[str], str]:
    """What the run set differently from the recipe of the checkpoint, as overrides; and why that is not known."""
    if not run.config:
        return [], "there is no config.yaml that would say how it was attacked"
    if trained is None:
        return [], "the run that it attacked is not found, so what was set differently for this evaluation is not known"
    try:
        stored = run.config if trained == run.folder else read_config(trained / "config.yaml")
    except ComparisonError:
        stored = {}
    if not stored:
        return [], f"{trained / 'config.yaml'} cannot be read, so what was set differently is not known"
    try:
        changes = [] if trained == run.folder else overrides(stored, run.config)
    except UnwritableError as error:
        return [], f"{error} was set differently and cannot be written on a command line"
    resumed = "the training was resumed, and its checkpoint may be from before" if stored.get("ckpt_path") else ""
    return changes, resumed


def _foreign(run: Run) -> str:
    """Why the table was not made by the run's own recipe, if it was not."""
    if run.evaluation is None:
        return ""
    sweep, attacks = run.config.get("sweep"), _attacks(run)
    known = sweep.get("knowledge") if isinstance(sweep, Mapping) else None
    allowed = known if isinstance(known, list) else ["adaptive"]
    other = [name for name, knowledge in run.evaluation.runs if name not in attacks or knowledge not in allowed]
    return f"its config.yaml names no such attack as {text(other[0], 60)}" if other else ""


def _attacks(run: Run) -> Mapping[Any, Any]:
    sweep = run.config.get("sweep")
    found = sweep.get("attacks") if isinstance(sweep, Mapping) and sweep.get("_target_") else None
    return found if isinstance(found, Mapping) else {}
