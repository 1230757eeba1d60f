"""Check and Verdict: what was looked at, what came out, and what to try next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustlit.evaluation.intervals import wilson_interval

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
FILE = "verdict.json"
CAUTION = "PASS says that no sign of an overestimate was found; it does not prove robustness"


@dataclass(frozen=True)
class Check:
    """One reason to believe or to doubt a robust accuracy.

    Args:
        number: in the list of `robustlit.evaluation.verdict`.
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
    """

    checks: list[Check]
    profile: str
    n: int
    norm: str
    eps: float
    seed: int
    passes: int
    share: float
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
        return {status: sum(c.status == status for c in self.checks) for status in (PASS, FAIL, INCONCLUSIVE)}

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == FAIL]

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

        Raises:
            ValueError: there is none, or it is damaged.
        """
        path = Path(path)
        places = [path, path / FILE, path / "evaluation" / FILE]
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            raise ValueError(f"there is no {FILE} in {path}; make one: robustlit evaluate {path} --verdict")
        try:
            stored = json.loads(found.read_text())
            checks = [Check(**check) for check in stored["checks"]]
            names = ("profile", "n", "norm", "eps", "seed", "passes", "share")
            return cls(checks, **{name: stored[name] for name in names})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{found} is no verdict of this version: {error}") from error


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


def judged_value(number: int, name: str, value: float, limit: float, source: str, *, found: str, advice: str) -> Check:
    """A check that a number stays within `limit`."""
    text = f"{found} {value:.3g} (at most {limit:.3g})"
    if not math.isfinite(value):
        return Check(number, name, INCONCLUSIVE, f"{found} is no number: {advice}", None, limit, source)
    if value <= limit:
        return Check(number, name, PASS, text, value, limit, source)
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
