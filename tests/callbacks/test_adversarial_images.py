"""The image grid of a test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustlit.attacks import FGSM, PGD
from robustlit.callbacks import AdversarialImages, adversarial_images
from robustlit.data import MNIST
from robustlit.training import RobustClassifier

Test = Callable[..., None]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_the_first_images_are_shown_under_the_attack(
    module: RobustClassifier, data: MNIST, run_test: Test, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    inference_mode: bool,
) -> None:  # fmt: skip
    drawn: list[tuple[Any, ...]] = []
    draw = adversarial_images.images_figure
    monkeypatch.setattr(adversarial_images, "images_figure", lambda *given: drawn.append(given) or draw(*given))
    attack = PGD(eps=0.2, steps=5)
    run_test(AdversarialImages(attack, count=6, seed=9, folder=tmp_path / "new"), inference_mode=inference_mode)
    ((clean, adversarial, labels, before, after, title, magnify),) = drawn  # of the first batch alone
    x, y, index = (part[:6] for part in data.tensors("test"))
    expected = attack.run(module.net, x, y, index=index, seed=9)
    np.testing.assert_array_equal(clean, x)
    np.testing.assert_allclose(adversarial, expected.x_adv, atol=1e-6)
    with torch.no_grad():
        predicted = module.net(x).argmax(1).tolist()
    assert (labels, before, after, magnify) == (y.tolist(), predicted, expected.prediction.tolist(), 5)
    assert str(attack) in title
    assert (tmp_path / "new" / "adversarial_images.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_a_warning(run_test: Test, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="could not write the image grid"):
        run_test(AdversarialImages(FGSM(eps=0.1), count=100, folder=tmp_path / "file" / "below"))
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        AdversarialImages(FGSM(eps=0.1), count=0)


def test_colour_pictures_keep_their_channels() -> None:
    image = torch.rand(3, 5, 4)
    picture = adversarial_images._picture(image)
    assert picture.shape == (5, 4, 3)
    np.testing.assert_array_equal(picture[..., 1], (image[1] * 255).round())
    assert adversarial_images._picture(image[:1]).shape == (5, 4)
