"""The image grid of a test run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks import FGSM, PGD
from robustlit.callbacks import AdversarialImages, AttackSweep, adversarial_images
from robustlit.data import MNIST
from robustlit.training import RobustClassifier

Test = Callable[..., None]
Drawn = list[tuple[Any, ...]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What figures were drawn of."""
    calls: Drawn = []
    draw = adversarial_images.images_figure
    kept = lambda *given, **named: calls.append(given) or draw(*given, **named)  # noqa: E731
    monkeypatch.setattr(adversarial_images, "images_figure", kept)
    return calls


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_given_attack_is_shown_on_images_of_the_first_batch_that_it_broke(
    module: RobustClassifier, data: MNIST, run_test: Test, tmp_path: Path, drawn: Drawn, inference_mode: bool
) -> None:
    attack = PGD(eps=0.2, steps=5)
    run_test(AdversarialImages(attack, count=6, seed=9, folder=tmp_path / "new"), inference_mode=inference_mode)
    ((clean, adversarial, labels, before, after, title, magnify),) = drawn
    x, y, index = (part[:40] for part in data.tensors("test"))
    places = [int((x == image).flatten(1).all(1).nonzero()) for image in torch.from_numpy(clean)]
    expected = attack.run(module.net, x[places], y[places], index=index[places], seed=9)
    np.testing.assert_allclose(adversarial, expected.x_adv, atol=1e-6)
    assert (labels, after, magnify) == (y[places].tolist(), expected.prediction.tolist(), 5)
    assert before == labels
    assert all(found != label for found, label in zip(after, labels, strict=True))
    assert len({*labels}) > 3
    assert re.fullmatch(r"true → predicted; pgd, L∞ 0.2: broke \d+ of \d+ correctly classified test images; .*", title)
    assert (tmp_path / "new" / "adversarial_images.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("with_index", [True, False])
def test_the_quoted_attack_of_the_sweep_is_shown_on_examples_of_many_classes_that_it_broke(
    module: RobustClassifier, data: MNIST, run_test: Test, drawn: Drawn, with_index: bool
) -> None:
    sweep = AttackSweep({"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=8)}, seed=3)
    loader = None if with_index else DataLoader(TensorDataset(*data.tensors("test")[:2]), batch_size=40)
    run_test(sweep, AdversarialImages(count=8, norm="linf", eps=0.1), loader=loader)
    ((clean, adversarial, labels, before, after, title, _),) = drawn
    found = sweep.evaluation
    assert found is not None
    broken = {
        name: found.clean_accuracy.correct - found.accuracy(eps=0.1, attack=name).correct for name in found.attacks
    }
    assert broken["pgd"] >= max(broken["fgsm"], 1)
    assert title.startswith(f"true → predicted; pgd, L∞ 0.1: broke {broken['pgd']} of {found.clean_accuracy.correct} ")
    assert len(labels) == min(8, broken["pgd"])
    assert before == labels == sorted(labels)
    assert all(one != label for one, label in zip(after, labels, strict=True))
    at = found.rows("pgd", "adaptive").query("clean and success")
    assert len({*labels}) == min(8, at["label"].nunique())
    assert np.abs(adversarial - clean).max() <= 0.1 + 1e-6


def test_an_attack_that_broke_nothing_says_so(
    module: RobustClassifier, data: MNIST, run_test: Test, drawn: Drawn
) -> None:
    sweep = AttackSweep({"pgd": PGD(eps=1e-4 / 255, steps=2)})
    run_test(sweep, AdversarialImages(count=8))
    ((_, _, labels, before, after, title, _),) = drawn
    assert "pgd, L∞ 3.922e-07: broke none of" in title
    assert "its best attempts on 8 of them" in title
    assert labels == before == after
    assert len({*labels}) == 8
    drawn.clear()
    run_test(AdversarialImages(count=8))  # no attack and no sweep
    assert drawn == []


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
