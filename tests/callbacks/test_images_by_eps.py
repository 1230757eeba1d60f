"""The grid of images at growing budgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from robustlit.attacks import FGSM
from robustlit.callbacks import ImagesByEps, images_by_eps
from robustlit.data import MNIST
from robustlit.training import RobustClassifier

MakeTrainer = Callable[..., pl.Trainer]


def test_each_column_is_the_attack_at_that_budget(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def spy(*arguments: Any, **rest: Any) -> Any:
        drawn.append(arguments)
        return draw(*arguments, **rest)

    draw = images_by_eps.budgets_figure
    monkeypatch.setattr(images_by_eps, "budgets_figure", spy)
    attack = FGSM(eps=0.3)
    callback = ImagesByEps(attack, [0.2, 0.05], count=3, folder=tmp_path / "new")
    trainer(callback).test(module, datamodule=data, verbose=False)
    ((images, budgets, labels, predictions, title),) = drawn  # of the first batch alone
    x, y, index = (part[:3] for part in data.tensors("test"))
    assert title == "fgsm (random_start=False, start_in_box=True) at growing eps, the first 3 test images"
    assert budgets == [0, 0.05, 0.2]
    assert labels == y.tolist()
    np.testing.assert_array_equal(images[0], x)
    for column, eps in ((1, 0.05), (2, 0.2)):
        expected = attack.run(module.net, x, y, index=index, seed=0, eps=eps)
        np.testing.assert_allclose(images[column], expected.x_adv, atol=1e-6)
        assert list(predictions[column]) == expected.prediction.tolist()
        assert np.abs(images[column] - images[0]).max() == pytest.approx(eps, abs=1e-5)
    assert (tmp_path / "new" / "images_by_eps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "images_by_eps.svg").is_file()


def test_a_folder_that_cannot_be_written_is_a_warning(
    module: RobustClassifier, data: MNIST, trainer: MakeTrainer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    callback = ImagesByEps(FGSM(eps=0.3), [0.1], count=1, folder=tmp_path / "file" / "new")
    with pytest.warns(UserWarning, match="could not write the images by eps"):
        trainer(callback).test(module, datamodule=data, verbose=False)


def test_budgets_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one eps"):
        ImagesByEps(FGSM(eps=0.3), [])
    with pytest.raises(ValueError, match="budgets must"):
        ImagesByEps(FGSM(eps=0.3), [0.1, 8])
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        ImagesByEps(FGSM(eps=0.3), count=0)
