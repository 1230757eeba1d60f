"""A verdict is written, read back and summarised; a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustlit.results import FAIL, INCONCLUSIVE, PASS, Check, Verdict


def made(*checks: Check) -> Verdict:
    return Verdict(list(checks), "quick", 9, "linf", 0.3, 0, 5, 0.1)


def test_a_verdict_is_written_and_read_back(tmp_path: Path) -> None:
    found = made(Check(1, "a", PASS, "b", 0.0, 0.1, "a paper"), Check(10, "c", INCONCLUSIVE, "d"))
    file = found.save(tmp_path / "evaluation")
    for path in (tmp_path, tmp_path / "evaluation", file):
        assert Verdict.load(path) == found
    stored = json.loads(file.read_text())
    assert stored["status"] == found.status
    assert stored["caution"].endswith("does not prove robustness")
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
    assert headline(PASS, FAIL, FAIL) == f"verdict FAIL (quick, linf 0.3): 2 of 3 checks ({names})"
    assert headline(PASS, PASS, INCONCLUSIVE) == "verdict PASS (quick, linf 0.3): 2 of 3 checks passed, 1 undecided"
    assert headline(PASS, INCONCLUSIVE, INCONCLUSIVE).startswith("verdict INCONCLUSIVE")
