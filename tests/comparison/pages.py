"""Read a page, show it in a browser, and make evaluations and verdicts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustlit.comparison import compare
from robustlit.results import Check, Evaluation, Verdict


def _starts(browser: str) -> bool:
    """Whether it starts: on some systems a script of that name only asks for an installation."""
    try:
        return subprocess.run([browser, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


_NAMED = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
CHROMIUM = next(filter(_starts, _NAMED), None)
needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

ATTACKS = {"fgsm": ("linf", (0.1, 0.3, 0.4)), "pgd": ("linf", (0.1, 0.3, 0.4)), "nearest_l2": ("l2", ())}
PROBE = '<img src=x onerror="document.documentElement.dataset.broken=1">'
HOSTILE = f"</script>{PROBE}<script>document.documentElement.dataset.broken=1</script> & \"' \u2028 \u202e名\x00<!--"


def made_evaluation(
    index: np.ndarray, labels: np.ndarray, seed: int = 0, knowledge: tuple[str, ...] = ("adaptive",),
    attacks: dict[str, tuple[str, tuple[float, ...]]] = ATTACKS, strength: float = 1.0, **meta: Any,
) -> Evaluation:  # fmt: skip
    """Random adversarial examples of a few attacks on the examples `index` of classes `labels`; 5 % need no attack."""
    draws = np.random.default_rng(seed)
    n = len(index)
    clean = draws.random(n) > 0.05
    columns: dict[str, list[np.ndarray]] = {}
    for known in knowledge:
        for attack, (norm, budgets) in attacks.items():
            reach = draws.uniform(0, 0.6 if norm == "linf" else 4, n) / strength
            for eps in budgets or (np.nan,):
                broken = ~clean | ((reach <= eps) if budgets else (reach < 3.5))
                spot = np.where(clean, reach, 0.0)
                linf, l2 = (spot, 20 * spot) if norm == "linf" else (spot / 3, spot)
                rows = {
                    "index": index, "label": labels, "clean": clean, "attack": np.full(n, attack),
                    "knowledge": np.full(n, known), "norm": np.full(n, norm), "eps": np.full(n, eps),
                    "success": broken, "prediction": np.where(broken, (labels + 1 + draws.integers(0, 9, n)) % 10, -1),
                    "l0": 700 * linf, "l1": 90 * linf, "l2": l2, "linf": linf,
                    "forwards": np.full(n, 3), "backwards": np.full(n, 2),
                }  # fmt: skip
                for name, values in rows.items():
                    columns.setdefault(name, []).append(values)
    stored = {"attacks": {a: f"{a}()" for a in attacks}, "complete": True, **meta}
    return Evaluation.from_columns({name: np.concatenate(parts) for name, parts in columns.items()}, stored)


def judge(folder: Path, status: str = "PASS", *, eps: float = 0.3, of: Evaluation | None = None) -> Path:
    """Write a verdict of one check into a run folder; `of` is the table that it says it judged."""
    check = Check(13, "gradient-free does not win", status, "Square alone breaks 9: attack by WorstCase")
    verdict = Verdict([check], "quick", 40, "linf", eps, 0, 10, 0.1)
    (verdict if of is None else verdict.of(of)).save(folder / "evaluation")
    return folder


def caveats_of(*folders: Path, **given: Any) -> list[str]:
    """The notes of a page."""
    return data_of(compare(folders, **given))["caveats"]


def run_of(folder: Path) -> dict[str, Any]:
    """What the page of one run says about it."""
    return data_of(compare([folder]))["runs"][0]


def data_of(page: str) -> dict[str, Any]:
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def read_off(steps: list[int], unit: float, n: int, at: float) -> int:
    """How many examples are robust at a distance, as the page's script counts them."""
    marks = np.cumsum(steps[::2])
    return n - int(np.sum(np.array(steps[1::2])[marks * unit <= at + 1.001e-6]))


def shown(page: Path) -> tuple[str, str]:
    """The elements of a page in Chromium, as text, and what its console printed."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=2000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "<body" in done.stdout, done.stderr
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


def with_a_script(page: str, script: str) -> str:
    """A page that also runs a script of the test at its end, without the policy that would forbid it."""
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    return bare.replace("</body>", f"<script>{{{script}}}</script></body>")


def body_of(elements: str) -> str:
    """The visible part of what `shown` returns."""
    return elements.split("</style>")[1].split('id="data"')[0]
