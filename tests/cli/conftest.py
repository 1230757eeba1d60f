"""Pictures in colour, in folders of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"brick": (170, 60, 60), "grass": (60, 170, 60), "sea": (60, 60, 170)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 12-pixel pictures of three classes: 30 of each for training, 6 for testing."""
    root, draws = tmp_path / "pictures", np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 6)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = draws.integers(-40, 40, (12, 12, 3))
                Image.fromarray(np.uint8(np.clip(np.array(colour) + noise, 0, 255))).save(folder / f"{number}.png")
    return root
