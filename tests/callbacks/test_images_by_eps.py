"""The grid of images at growing budgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustlit.attacks import FGSM
from robustlit.callbacks import ImagesByEps, images_by_eps
from robustlit.data import MNIST
from robustlit.training import RobustClassifier


def test_each_column_is_the_attack_at_that_budget(
    module: RobustClassifier, data: MNIST, run_test: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    drawn: list[tuple[Any, ...]] = []
    draw = images_by_eps.budgets_figure
    monkeypatch.setattr(images_by_eps, "budgets_figure", lambda *a, **rest: drawn.append(a) or draw(*a, **rest))
    attack = FGSM(eps=0.3)
    run_test(ImagesByEps(attack, [0.2, 0.05], count=3, folder=tmp_path / "new"))
    ((images, budgets, labels, predictions, title),) = drawn  # of the first batch alone
    x, y, index = (part[:3] for part in data.tensors("test"))
    assert title == "fgsm (random_start=False, start_in_box=True) at growing eps, the first 3 test images"
    assert (budgets, labels) == ([0, 0.05, 0.2], y.tolist())
    np.testing.assert_array_equal(images[0], x)
    for column, eps in ((1, 0.05), (2, 0.2)):
        expected = attack.run(module.net, x, y, index=index, seed=0, eps=eps)
        np.testing.assert_allclose(images[column], expected.x_adv, atol=1e-6)
        assert list(predictions[column]) == expected.prediction.tolist()
        assert np.abs(images[column] - images[0]).max() == pytest.approx(eps, abs=1e-5)
    assert (tmp_path / "new" / "images_by_eps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "images_by_eps.svg").is_file()


@pytest.mark.parametrize(("budgets", "message"), [([], "at least one eps"), ([0.1, 8], "budgets must")])
def test_budgets_that_are_none_are_refused(budgets: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagesByEps(FGSM(eps=0.3), budgets)
