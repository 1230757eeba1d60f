"""A verdict is written, read back and summarised; a damaged one is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustlit.results import BELIEVABLE, FAIL, INCONCLUSIVE, PASS, Check, Verdict
from robustlit.results.rows import rows_of
from robustlit.results.verdict import digest_of


def made(*checks: Check) -> Verdict:
    return Verdict(list(checks), "quick", 9, "linf", 0.3, 0, 5, 0.1)


def test_a_verdict_is_written_and_read_back(tmp_path: Path) -> None:
    found = made(Check(1, "a", PASS, "b", 0.0, 0.1, "a paper"), Check(10, "c", INCONCLUSIVE, "d"))
    file = found.save(tmp_path / "evaluation")
    for path in (tmp_path, tmp_path / "evaluation", file):
        assert Verdict.load(path) == found
    stored = json.loads(file.read_text())
    assert stored["figure"] == found.status == BELIEVABLE
    assert "which is no proof" in stored["caution"]
    with pytest.raises(ValueError, match=r"no verdict\.json in .*--verdict"):
        Verdict.load(tmp_path / "nowhere")
    made(Check(1, "a", FAIL, "b", float("nan"), float("inf"))).save(tmp_path)
    assert Verdict.load(tmp_path).checks == [Check(1, "a", FAIL, "b")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checks": []}, "no checks"),
        ({"checks": None}, "not iterable"),
        ({"checks": [{"number": 1, "name": "a", "status": "MAYBE", "finding": "b"}]}, "status of check 1 must be PASS"),
        ({"checks": [{"number": 1, "name": "a", "status": PASS, "finding": "b", "figure": "2 %"}]}, "must be numbers"),
        ({"checks": [{"number": 1, "name": "a", "status": PASS}]}, "finding"),
        ({"checks": [{"number": 1, "name": "a", "status": PASS, "finding": "b", "colour": "red"}]}, "colour"),
        ({"eps": None}, "eps, seed, passes and share must be numbers"),
        ({"norm": 2}, "must be text"),
        ({"table": 3}, "table must be text and evaluated a number"),
        ({"evaluated": "many"}, "table must be text and evaluated a number"),
        ("{", "Expecting"),
        ("[]", "indices"),
        ("{}", "it lacks 'checks'"),
    ],
)
def test_a_verdict_that_is_damaged_or_of_another_version_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    file = made(Check(1, "a", PASS, "b")).save(tmp_path)
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=r"no verdict of this version: .*judge the checkpoint again") as caught:
        Verdict.load(tmp_path)
    assert message in str(caught.value)


def test_the_headline_names_the_failures() -> None:
    def headline(*statuses: str) -> str:
        return made(*(Check(k, "a", status, "b") for k, status in zip((2, 13, 18), statuses, strict=True))).headline

    names = "Square wins, random noise wins"
    assert headline(PASS, FAIL, FAIL) == f"figure overstated (quick, linf 0.3): 2 of 3 checks fail ({names})"
    assert headline(PASS, PASS, INCONCLUSIVE) == "figure believable (quick, linf 0.3): 2 of 3 checks pass, 1 undecided"
    assert headline(PASS, INCONCLUSIVE, INCONCLUSIVE).startswith("figure undecided (")
    known = replace(made(Check(2, "a", PASS, "b")), evaluated=1000, robust=827)
    assert known.headline.startswith("figure believable: 82.70 % [80.23, 84.92] of 1000 robust (quick, linf 0.3): 1 of")
    none = replace(known, robust=0)
    assert none.title == "figure believable, the net is not robust: 0.00 % [0.00, 0.38] of 1000"


def test_checks_that_share_a_reason_share_a_row() -> None:
    checks = [Check(n, f"check {n}", PASS, "no example is robust") for n in (2, 3, 6, 7, 8, 9, 20)]
    checks += [Check(4, "check 4", INCONCLUSIVE, "too few"), Check(5, "check 5", INCONCLUSIVE, "too few")]
    checks += [Check(10, "check 10", FAIL, "wins"), Check(11, "check 11", FAIL, "wins")]
    rows = {row.numbers: row.name for row in rows_of(checks)}
    one = "7 checks, for one reason"
    two = "2 checks, for one reason"
    assert rows == {"2, 3, 6-9, 20": one, "4, 5": two, "10": "check 10", "11": "check 11"}


EDITED = {
    "a status": lambda stored: stored["checks"][1] | {"status": PASS},
    "a figure": lambda stored: stored["checks"][1] | {"figure": 0.0},
    "both": lambda stored: stored["checks"][1] | {"status": PASS, "figure": 0.0},
}


@pytest.mark.parametrize("edit", list(EDITED))
@pytest.mark.parametrize("former", [False, True])
def test_an_edited_verdict_is_refused(edit: str, former: bool, tmp_path: Path) -> None:
    file = made(Check(1, "a", PASS, "b"), Check(13, "c", FAIL, "d", 0.04, 0.002)).save(tmp_path)
    stored = json.loads(file.read_text())
    if former:  # as versions before the renaming wrote it
        stored |= {"status": FAIL}
        for key in ("figure", "digest", "robust"):
            del stored[key]
    file.write_text(json.dumps(stored))
    assert Verdict.load(tmp_path).counts[FAIL] == 1
    stored["checks"][1] = EDITED[edit](stored)
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="damaged or edited"):
        Verdict.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.1}, "its digest is not that"),
        ({"figure": "believable"}, "its checks give overstated and .* its summary says believable"),
        ({"counts": {PASS: 2, FAIL: 0, INCONCLUSIVE: 0}}, "its summary says"),
        ({"robust": 10, "evaluated": 9}, "robust must be a number of the evaluated"),
    ],
)
def test_a_summary_that_contradicts_the_checks_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = made(Check(1, "a", PASS, "b"), Check(13, "c", FAIL, "d", 0.04, 0.002)).save(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Verdict.load(tmp_path)


def test_the_digest_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    file = made(Check(1, "a", PASS, "b", 0.1, 0.3)).save(tmp_path)
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(stored.items()))))
    assert Verdict.load(tmp_path) == made(Check(1, "a", PASS, "b", 0.1, 0.3))
    assert stored["digest"] == digest_of(stored)
