"""The grid of images at growing budgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustlit.attacks import FGSM, DeepFool
from robustlit.callbacks import AttackSweep, ImagesByEps, images_by_eps
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
    ((images, budgets, labels, predictions, title),) = drawn
    x, y, index = (part[:40] for part in data.tensors("test"))
    places = [int((x == image).flatten(1).all(1).nonzero()) for image in torch.from_numpy(images[0])]
    x, y, index = x[places], y[places], index[places]
    assert title.startswith("fgsm, L∞ 0.3: broke ")
    assert (budgets, labels, len(labels)) == ([0, 0.05, 0.2], y.tolist(), 3)
    for column, eps in ((1, 0.05), (2, 0.2)):
        expected = attack.run(module.net, x, y, index=index, seed=0, eps=eps)
        np.testing.assert_allclose(images[column], expected.x_adv, atol=1e-6)
        assert list(predictions[column]) == expected.prediction.tolist()
        assert np.abs(images[column] - images[0]).max() == pytest.approx(eps, abs=1e-5)
    assert (tmp_path / "new" / "images_by_eps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "images_by_eps.svg").is_file()


def test_the_quoted_attack_is_shown_at_budgets_about_its_own(
    run_test: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []
    draw = images_by_eps.budgets_figure
    monkeypatch.setattr(images_by_eps, "budgets_figure", lambda *a, **rest: drawn.append(a) or draw(*a, **rest))
    run_test(AttackSweep({"deepfool": DeepFool(steps=3), "fgsm": FGSM(eps=8 / 255)}), ImagesByEps(count=2))
    ((_, budgets, _, _, title),) = drawn
    assert budgets == pytest.approx([0, 2 / 255, 4 / 255, 8 / 255, 16 / 255])
    assert title.startswith("fgsm, L∞ 8/255: broke ")
    with pytest.warns(UserWarning, match="no images by eps: the sweep ran no attack with a budget"):
        run_test(AttackSweep({"deepfool": DeepFool(steps=3)}), ImagesByEps(count=2))


@pytest.mark.parametrize(("budgets", "message"), [([], "at least one eps"), ([0.1, 8], "budgets must")])
def test_budgets_that_are_none_are_refused(budgets: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagesByEps(FGSM(eps=0.3), budgets)
