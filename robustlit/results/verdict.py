"""Check and Verdict: what was measured, what was found, and what to try next. Read and written without torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlit.checks import budget_text
from robustlit.files import write_file
from robustlit.results.files import read_json
from robustlit.results.html import html_table
from robustlit.results.intervals import Accuracy
from robustlit.results.table import TABLE, EvaluationError, digest, read_table

if TYPE_CHECKING:
    from robustlit.results.evaluation import Evaluation

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"  # of a check
# Of the judged figure, the robust accuracy. A believable one may well be 0 %.
BELIEVABLE, OVERSTATED, UNDECIDED = "believable", "overstated", "undecided"
FILE = "verdict.json"
STATUSES = (PASS, FAIL, INCONCLUSIVE)
CAUTION = (
    "The figure is the robust accuracy. Believable means that no sign of an overestimate was found, which is no proof; "
    "a believable figure may be low"
)
_AGAIN = "judge the checkpoint again (robustlit evaluate CHECKPOINT --verdict), or remove the file"
# Status of the figure -> what files before the renaming call it.
_FORMER = {BELIEVABLE: PASS, OVERSTATED: FAIL, UNDECIDED: INCONCLUSIVE}
# What a failed check means, by its number, short enough for the title of a figure; read without torch.
_FAILURES = {
    1: "adversarial examples beyond their budget", 2: "FGSM wins", 3: "an unbounded attack fails",
    4: "accuracy rises with eps", 5: "robust beyond other classes", 6: "more steps break more",
    7: "more restarts break more", 8: "stopped before convergence", 9: "no gradient", 10: "gradients jump",
    11: "adversarial examples lost", 12: "adversarial for the attack view only", 13: "Square wins",
    14: "black-box wins", 15: "random, not averaged", 16: "outputs are no logits", 17: "the undefended net is robust",
    18: "random noise wins", 19: "planted adversarial examples missed", 20: "a joint attack breaks more",
    21: "the model remembers questions", 22: "the images are known to it", 23: "masked inside the ball",
    24: "gradients mislead", 25: "flat between jumps", 26: "the table cannot be repeated", 27: "copies of images",
    28: "an example is both proven and broken", 29: "an attack from outside the ball wins",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One reason to believe or to doubt a robust accuracy.

    Args:
        number, name: Place in `robustlit.verdict.checks.CHECKS`, and what holds where it passes, in a few words.
        status: PASS, FAIL or INCONCLUSIVE.
        finding: One sentence: what was found and, unless it passed, what to try next.
        figure, threshold: The number that was measured and the largest that passes, or None.
        source: The paper that asks for the check.
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
        """What is wrong where the check fails, in a few words such as "Square wins"."""
        return _FAILURES.get(self.number, self.name)


@dataclass
class Verdict:
    """The checks of one evaluation, and what they say of its robust accuracy.

    Args:
        checks: The checks, ascending by number.
        profile, n: "quick" or "full", and the number of examples that were probed.
        norm, eps: The budget that was judged, eps in pixel units.
        seed: Seed of the probes.
        passes, share: Forward and backward passes that the probes cost, also as a share of the evaluation's.
        table, evaluated: Digest of the evaluation's table and number of its examples; None in files of older versions.
        robust: Number of these examples that are robust at the budget; None in files of older versions.
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
    robust: int | None = None
    caution: str = field(default=CAUTION, init=False)

    @property
    def status(self) -> str:
        """OVERSTATED if a check failed, BELIEVABLE if none did and at least half are decided, else UNDECIDED."""
        counts = self.counts
        if counts[FAIL]:
            return OVERSTATED
        return BELIEVABLE if counts[PASS] >= counts[INCONCLUSIVE] else UNDECIDED

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by status."""
        return {status: sum(c.status == status for c in self.checks) for status in STATUSES}

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == FAIL]

    @property
    def accuracy(self) -> Accuracy | None:
        """The judged robust accuracy; None where the evaluation is not known."""
        return None if self.robust is None or not self.evaluated else Accuracy(self.robust, self.evaluated)

    @property
    def none_robust(self) -> bool:
        """Whether no example is robust at the budget, so that nothing could be overstated."""
        return self.robust == 0

    @property
    def title(self) -> str:
        """The status with the figure: "figure believable: 82.70 % [80.23, 84.92] of 1000 robust"."""
        accuracy, start = self.accuracy, f"figure {self.status}"
        if accuracy is None:
            return start
        if self.none_robust and self.status == BELIEVABLE:
            return f"{start}, the net is not robust: {accuracy} of {accuracy.n}"
        return f"{start}: {accuracy} of {accuracy.n} robust"

    @property
    def headline(self) -> str:
        """One line for a figure: the title, the profile, the budget and the checks that failed."""
        counts, total = self.counts, len(self.checks)
        start = f"{self.title} ({self.profile}, {self.norm} {budget_text(self.eps)})"
        if counts[FAIL]:
            return f"{start}: {counts[FAIL]} of {total} checks fail ({', '.join(c.failure for c in self.failed)})"
        return f"{start}: {counts[PASS]} of {total} checks pass, {counts[INCONCLUSIVE]} undecided"

    def _repr_html_(self) -> str:
        from robustlit.results.rows import rows_of  # which needs this module

        rows = [(row.numbers, row.name, row.first.status, row.first.finding) for row in rows_of(self.checks)]
        return html_table(self.headline, ("", "check", "", "finding"), rows, self.caution)

    def of(self, evaluation: Evaluation) -> Verdict:
        """Return the same verdict, tied to the evaluation that was judged."""
        robust = evaluation.worst_case(norm=self.norm, eps=self.eps).correct
        return replace(self, table=evaluation.digest, evaluated=evaluation.n, robust=robust)

    def is_of(self, evaluation: Evaluation) -> bool | None:
        """Return whether this verdict judged `evaluation`, or the full one it was cut from; None if not known."""
        return self._judged((evaluation.whole or evaluation).digest)

    def other_table(self, n: int) -> str:
        """Return a phrase that this verdict judged another table than the one here, of `n` examples."""
        if self.evaluated in (None, n):
            return "judged another table than the one here (of as many examples, with other results)"
        return f"judged another table than the one here (of {self.evaluated} examples; here are {n})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as written to verdict.json; NaN and inf, which JSON lacks, become None."""
        accuracy = self.accuracy
        judged = {} if accuracy is None else {"accuracy": float(accuracy), "interval": [*accuracy.interval]}
        values = {"figure": self.status, **judged, "counts": self.counts, **asdict(self)}
        finite: dict[str, Any] = json.loads(json.dumps(values), parse_constant=lambda _: None)
        return {**finite, "digest": digest_of(finite)}

    def save(self, folder: str | Path) -> Path:
        """Write `verdict.json` into `folder`, which is created if needed."""
        return write_file(Path(folder) / FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Verdict:
        """Read what `save` wrote, from the file, its folder or the run folder above it.

        Warns where the table in the same folder is not the one that was judged.

        Raises:
            ValueError: There is no verdict, or it is damaged, edited or of another version.
        """
        file = place_of(path)
        if file is None:
            raise ValueError(f"there is no {FILE} in {path}; make one: robustlit evaluate {path} --verdict")
        verdict, beside = cls.read(file), table_in(file.parent)
        if beside is not None and verdict._judged(beside[0]) is False:
            again = "judge the checkpoint again (robustlit evaluate CHECKPOINT --verdict)"
            warnings.warn(f"{file} {verdict.other_table(beside[1])}; {again}", stacklevel=2)
        return verdict

    @classmethod
    def read(cls, file: Path) -> Verdict:
        """Read one file, as `load` does, without a look at the table beside it."""
        try:
            stored = read_json(file)
            checks = [Check(**check) for check in stored["checks"]]
            tie = {name: stored.get(name) for name in ("table", "evaluated", "robust")}
            needed = {name: stored[name] for name in ("profile", "n", "norm", "eps", "seed", "passes", "share")}
            verdict = cls(checks, **needed, **tie)
            _check_fields(verdict)
            _check_agreement(verdict, stored)
        except _ContradictionError as error:
            raise ValueError(f"{file} was damaged or edited: {error}; {_AGAIN}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{file} is no verdict of this version: {what}; {_AGAIN}") from error
        return verdict

    def _judged(self, table: str) -> bool | None:
        if self.table is None or self.table.partition(":")[0] != table.partition(":")[0]:  # digests of other versions
            return None
        return self.table == table


def place_of(path: str | Path) -> Path | None:
    """Return the verdict's file: `path` itself, or in it as evaluation or run folder; None where there is none."""
    path = Path(path)
    return next((p for p in (path, path / FILE, path / "evaluation" / FILE) if p.is_file()), None)


def table_in(folder: Path) -> tuple[str, int] | None:
    """Return digest and number of examples of the table in `folder`; None without a readable one."""
    if not (folder / TABLE).is_file():  # `read_table` would look in a folder below too
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever opens the table itself gets its warnings
            table = read_table(folder)[0]
    except EvaluationError:
        return None
    return digest(table), int(table["index"].nunique())


def _check_fields(verdict: Verdict) -> None:
    """Raise where a stored value has the wrong type."""
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
    if verdict.robust is not None and not (
        isinstance(verdict.robust, int) and 0 <= verdict.robust <= (verdict.evaluated or 0)
    ):
        raise ValueError(f"robust must be a number of the evaluated examples, got {verdict.robust!r}")


def digest_of(stored: dict[str, Any]) -> str:
    """Return a digest of all that a verdict.json holds beside it: a changed status or figure is noticed."""
    text = json.dumps({key: value for key, value in stored.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _ContradictionError(ValueError):
    """A verdict.json that contradicts itself."""


def _check_agreement(verdict: Verdict, stored: dict[str, Any]) -> None:
    """Raise where a file contradicts itself."""
    for check in verdict.checks:
        if check.figure is not None and check.threshold is not None:
            within = check.figure <= check.threshold
            if (check.status == PASS and not within) or (check.status == FAIL and within):
                found = f"is {check.status} with {check.figure:.4g}, and at most {check.threshold:.4g} passes"
                raise _ContradictionError(f"check {check.number} {found}")
    former = "figure" not in stored  # written before the renaming, without a digest
    if former and (verdict.robust is not None or (verdict.table or "").startswith("v2:")):
        raise _ContradictionError("it lacks 'figure' and 'digest'")
    told, is_so = stored["status" if former else "figure"], _FORMER[verdict.status] if former else verdict.status
    if told != is_so or stored["counts"] != verdict.counts:
        made = f"its checks give {is_so} and {verdict.counts}, its summary says {told} and {stored['counts']}"
        raise _ContradictionError(made)
    if not former and stored["digest"] != digest_of(stored):
        raise _ContradictionError("its digest is not that of what it holds")
