"""Names and values of hostile runs reach the page as text: read in its source, and tried in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import body_of, data_of, needs_a_browser, shown

from robustlit.comparison import ComparisonError, compare, write_page
from robustlit.results import Check, Evaluation, Verdict

Make = Callable[..., Path]
PROBE = '<img src=x onerror="document.documentElement.dataset.broken=1">'
HOSTILE = f"</script>{PROBE}<script>document.documentElement.dataset.broken=1</script> & \"' \u2028 \u202e名\x00<!--"


@pytest.fixture
def hostile(make: Make, made: Callable[..., Evaluation], labels: np.ndarray) -> list[Path]:
    """Two runs whose every name and value is an attack on the page."""
    attacks = {f"</script>{PROBE}": ("linf", (0.3,)), "__proto__": ("linf", (0.3,))}
    evaluation = made(np.arange(40), labels[:40], attacks=attacks)
    runs = [
        make(
            "a",
            results={"name": HOSTILE, "recipe": HOSTILE},
            config={"note": HOSTILE, "objective": {"_target_": HOSTILE}, "ckpt_path": f"runs/{HOSTILE}"},
            evaluation=evaluation,
        ),
        make(
            "b",
            results={"name": "long " * 400, "seed": float("nan"), "parameters": "many", "seconds": HOSTILE},
            config={HOSTILE: 1, "model": {"_target_": HOSTILE, "name": "x" * 999}, "base": HOSTILE},
        ),
    ]
    checks = [Check(1, HOSTILE, "FAIL", HOSTILE, None, None, HOSTILE), Check(99, HOSTILE, "FAIL", HOSTILE)]
    Verdict(checks, HOSTILE, 5, HOSTILE, 0.3, 0, 1, 0.1).save(runs[0] / "evaluation")
    return runs


def test_names_and_values_are_data_and_never_markup(hostile: list[Path]) -> None:
    page = compare(hostile)
    assert page.count("</script>") == 2  # of the data and of the scripts
    assert "<img" not in page
    values = data_of(page)
    first, second = values["runs"]
    assert first["name"] == first["recipe"] == HOSTILE.replace("\x00", "�").replace("\u202e", "�")
    assert first["verdict"]["checks"][0]["finding"] == first["name"]
    assert len(second["name"]) == 300
    assert second["name"].endswith("…")
    assert (second["seed"], second["parameters"], second["seconds"]["train"]) == (None, None, None)
    assert any(setting["key"].startswith("</script>") for setting in values["settings"])


def test_the_page_loads_nothing(make: Make) -> None:
    page = compare([make("a")])
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<link|<script[^>]* src|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


@needs_a_browser
def test_a_browser_shows_hostile_runs_as_text(hostile: list[Path], tmp_path: Path) -> None:
    page = compare(hostile)
    elements, console = shown(write_page(page, tmp_path / "page.html"))
    body = body_of(elements)
    assert console == ""
    assert "data-broken" not in elements
    assert '<img src="x"' not in body
    assert '<h1 id="title">Robustness of 2 runs</h1>' in body
    assert "&lt;/script&gt;&lt;img src=x onerror=" in body
    assert body.count('aria-sort="descending"') == 1
    assert body.count('class="plot"') == 2
    assert "None between the runs shown" not in body


@needs_a_browser
def test_the_page_would_hold_against_markup_that_slipped_in(hostile: list[Path], tmp_path: Path) -> None:
    page = compare(hostile)
    slipped = page.replace("<main>", f"<main>{PROBE}")
    elements, console = shown(write_page(slipped, tmp_path / "slipped.html"))
    assert "Content Security Policy" in console
    assert "data-broken" not in elements
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", slipped)
    assert "data-broken" in shown(write_page(bare, tmp_path / "bare.html"))[0]  # the probe is a live one


def test_a_verdict_that_is_none_is_refused(make: Make) -> None:
    run = make("a")
    (run / "evaluation" / "verdict.json").write_text(json.dumps({"checks": [{"number": 1, "status": "fine"}]}))
    with pytest.raises(ComparisonError, match=r"verdict\.json is no verdict.*--verdict") as refused:
        compare([run])
    assert "\n" not in str(refused.value)
