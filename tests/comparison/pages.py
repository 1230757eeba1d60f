"""What is inside a page, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _starts(browser: str) -> bool:
    """Whether it is one: some systems have a script of that name that asks for an installation."""
    try:
        return subprocess.run([browser, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


_NAMED = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
CHROMIUM = next(filter(_starts, _NAMED), None)
needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    values: dict[str, Any] = json.loads(found[1])
    return values


def bits(mask: str, n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8), bitorder="little")[:n].astype(bool)


def read_off(steps: list[int], unit: float, n: int, at: float) -> int:
    """How many stand at a distance, as the page's script reads it."""
    marks = np.cumsum(steps[::2])
    return n - int(np.sum(np.array(steps[1::2])[marks * unit <= at + 1.001e-6]))


def shown(page: Path) -> tuple[str, str]:
    """What Chromium makes of a page: all of its elements as text, and what its console said."""
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
    """A page that also runs a script of the test's at its end, which its policy would not let it."""
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    return bare.replace("</body>", f"<script>{{{script}}}</script></body>")


def body_of(elements: str) -> str:
    """The visible part of what `shown` returns."""
    return elements.split("</style>")[1].split('id="data"')[0]
