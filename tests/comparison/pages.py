"""What is inside a page."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    values: dict[str, Any] = json.loads(found[1])
    return values


def bits(mask: str, n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8), bitorder="little")[:n].astype(bool)
