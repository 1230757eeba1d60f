"""Check and Verdict: what was looked at, what came out, and what to try next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlit.results.intervals import wilson_interval

if TYPE_CHECKING:
    from robustlit.results.evaluation import Evaluation

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
FILE = "verdict.json"
STATUSES = (PASS, FAIL, INCONCLUSIVE)
CAUTION = "PASS says that no sign of an overestimate was found; it does not prove robustness"
# What has happened where a check fails, in as few words as a figure's title has room for.
_FAILURES = {
    1: "witnesses beyond their budget", 2: "FGSM wins", 3: "an unbounded attack fails", 4: "accuracy rises with eps",
    5: "standing beyond other classes", 6: "more steps break more", 7: "more restarts break more",
    8: "stopped on its way up", 9: "no gradient", 10: "gradients jump", 11: "witnesses thrown away",
    12: "witnesses of the twin only", 13: "Square wins", 14: "black-box wins", 15: "random, not averaged",
    16: "outputs are no logits", 17: "the undefended net stands", 18: "random noise wins",
    19: "planted adversarials missed", 20: "a joint attack breaks more",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One reason to believe or to doubt a robust accuracy.

    Args:
        number: in the list of `robustlit.verdict`.
        name: in a few words.
        status: PASS, FAIL or INCONCLUSIVE.
        finding: one sentence: what came out and, unless it passed, what to try next.
        figure: what was measured, or None.
        threshold: what it was held against, or None.
        source: the paper that asks for it.
    """

    number: int
    name: str
    status: str
    finding: str
    figure: float | None = None
    threshold: float | None = None
    source: str = ""

    @property
    def failure(self) -> str:
        """In two to four words what is wrong where it fails, such as "Square wins"."""
        return _FAILURES.get(self.number, self.name)


@dataclass
class Verdict:
    """The checks of one evaluation.

    Args:
        checks: in the order of their numbers.
        profile: "quick" or "full".
        n: examples that probes looked at.
        norm, eps: the budget that is judged.
        seed: of the probes.
        passes: forward and backward passes that the probes cost.
        share: those as a share of the evaluation's.
        table: digest of the evaluation's table, see `robustlit.results.digest`; None in older files, which do not
            say what they judged.
        evaluated: examples in that table; None likewise.
    """

    checks: list[Check]
    profile: str
    n: int
    norm: str
    eps: float
    seed: int
    passes: int
    share: float
    table: str | None = None
    evaluated: int | None = None
    caution: str = field(default=CAUTION, init=False)

    @property
    def status(self) -> str:
        """FAIL if a check failed, PASS if most passed and none failed, else INCONCLUSIVE."""
        counts = self.counts
        if counts[FAIL]:
            return FAIL
        return PASS if counts[PASS] >= counts[INCONCLUSIVE] else INCONCLUSIVE

    @property
    def counts(self) -> dict[str, int]:
        """How many passed, failed, and could not be decided."""
        return {status: sum(c.status == status for c in self.checks) for status in STATUSES}

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == FAIL]

    @property
    def headline(self) -> str:
        """One line for a figure: "verdict FAIL (full, linf 0.3): 1 of 19 checks (Square wins)"."""
        counts, total = self.counts, len(self.checks)
        start = f"verdict {self.status} ({self.profile}, {self.norm} {self.eps:.4g})"
        if self.status == FAIL:
            return f"{start}: {counts[FAIL]} of {total} checks ({', '.join(c.failure for c in self.failed)})"
        return f"{start}: {counts[PASS]} of {total} checks passed, {counts[INCONCLUSIVE]} undecided"

    def of(self, evaluation: Evaluation) -> Verdict:
        """The same verdict, tied to the evaluation that was judged."""
        return replace(self, table=evaluation.digest, evaluated=evaluation.n)

    def is_of(self, evaluation: Evaluation) -> bool | None:
        """Whether it judged this evaluation, or the whole that this was cut from; None where it does not say."""
        judged = (evaluation.whole or evaluation).digest
        if self.table is None or self.table.partition(":")[0] != judged.partition(":")[0]:  # a digest of another kind
            return None
        return self.table == judged

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to verdict.json."""
        return {"status": self.status, "counts": self.counts, **asdict(self)}

    def save(self, folder: str | Path) -> Path:
        """Writes `verdict.json` into `folder`, which is made."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_finite(self.to_dict()), indent=2) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Verdict:
        """Reads what `save` wrote: the file, its folder, or the run folder above.

        Warns where a table of examples lies beside it that is not the one it judged.

        Raises:
            ValueError: there is none, or it is damaged or of another version.
        """
        found = place_of(path)
        if found is None:
            raise ValueError(f"there is no {FILE} in {path}; make one: robustlit evaluate {path} --verdict")
        verdict = cls.read(found)
        from robustlit.results.stored_verdict import warn_of_another_table

        warn_of_another_table(verdict, found)
        return verdict

    @classmethod
    def read(cls, file: Path) -> Verdict:
        """As `load`, of the file alone, whatever lies beside it.

        Raises:
            ValueError: it is damaged or of another version.
        """
        try:
            stored = json.loads(file.read_text())
            checks = [Check(**check) for check in stored["checks"]]
            names = ("profile", "n", "norm", "eps", "seed", "passes", "share")
            tie = {name: stored.get(name) for name in ("table", "evaluated")}
            verdict = cls(checks, **{name: stored[name] for name in names}, **tie)
            _sensible(verdict)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{file} is no verdict of this version: {what}; judge the checkpoint again (robustlit evaluate "
                "CHECKPOINT --verdict), or remove the file"
            ) from error
        return verdict


def place_of(path: str | Path) -> Path | None:
    """The verdict's file in an evaluation folder or the run folder above it, or the file itself; None without one."""
    path = Path(path)
    return next((p for p in (path, path / FILE, path / "evaluation" / FILE) if p.is_file()), None)


def _sensible(verdict: Verdict) -> None:
    """Raises where a stored value is not of the kind that its field has."""
    if not verdict.checks:
        raise ValueError("it holds no checks")
    for check in verdict.checks:
        if check.status not in STATUSES:
            raise ValueError(f"the status of check {check.number} must be {', '.join(STATUSES)}, got {check.status!r}")
        if not (isinstance(check.number, int) and isinstance(check.name, str) and isinstance(check.finding, str)):
            raise TypeError(f"check {check.number!r} must have a number, a name and a finding")
        if not all(isinstance(value, int | float | None) for value in (check.figure, check.threshold)):
            raise TypeError(f"figure and threshold of check {check.number} must be numbers")
    numbers = (verdict.n, verdict.eps, verdict.seed, verdict.passes, verdict.share)
    if not all(isinstance(value, int | float) for value in numbers):
        raise TypeError("n, eps, seed, passes and share must be numbers")
    if not (isinstance(verdict.profile, str) and isinstance(verdict.norm, str)):
        raise TypeError("profile and norm must be text")
    if not (isinstance(verdict.table, str | None) and isinstance(verdict.evaluated, int | None)):
        raise TypeError("table must be text and evaluated a number, or both left out")


def judged_share(
    number: int, name: str, count: int, n: int, limit: float, source: str, *, found: str, advice: str
) -> Check:
    """A check that a share of examples stays within `limit`.

    It passes at or below, and fails only where the Wilson 95 % interval lies above: a single example of a few decides
    nothing.

    Args:
        count, n: the share.
        limit: the largest that passes.
        found: what the share is of, e.g. "FGSM alone breaks".
        advice: what to try next.
    """
    if n < 1:
        return Check(number, name, INCONCLUSIVE, "no example was looked at; evaluate more", None, limit, source)
    share, low = count / n, wilson_interval(count, n)[0]
    text = f"{found} {count} of {n} ({100 * share:.3g} %; at most {100 * limit:.3g} %)"
    if share <= limit:
        return Check(number, name, PASS, text, share, limit, source)
    if low > limit:
        return Check(number, name, FAIL, f"{text}: {advice}", share, limit, source)
    few = f"{text}, too few to tell: {advice}"
    return Check(number, name, INCONCLUSIVE, few, share, limit, source)


def judged_value(
    number: int,
    name: str,
    value: float,
    limit: float,
    source: str,
    *,
    found: str,
    advice: str,
    low: float | None = None,
) -> Check:
    """A check that a number stays within `limit`.

    Args:
        value: the number.
        limit: the largest that passes.
        found: what the number is.
        advice: what to try next.
        low: lower end of its 95 % interval, where it has one: it fails only where that lies above the limit, too.
    """
    text = f"{found} {value:.3g} (at most {limit:.3g})"
    if not math.isfinite(value):
        return Check(number, name, INCONCLUSIVE, f"{found} is no number: {advice}", None, limit, source)
    if value <= limit:
        return Check(number, name, PASS, text, value, limit, source)
    if low is not None and low <= limit:
        few = f"{text}, too near the limit to tell: {advice}"
        return Check(number, name, INCONCLUSIVE, few, value, limit, source)
    return Check(number, name, FAIL, f"{text}: {advice}", value, limit, source)


def undecided(number: int, name: str, why: str, source: str) -> Check:
    """A check that could not be made."""
    return Check(number, name, INCONCLUSIVE, why, None, None, source)


def _finite(value: Any) -> Any:
    """JSON has no NaN: numbers that are none become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Checks = Sequence[Check]
