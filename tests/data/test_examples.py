"""Examples: so many of each class, of a split that is not tested on, read when they are asked for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from robustlit.attacks import LogitMatching
from robustlit.data import MNIST, Examples, ImageFolder, load_mnist


@pytest.mark.parametrize("split", ["train", "val"])
def test_so_many_of_every_class_and_only_of_the_split(split: str) -> None:
    data = MNIST()
    examples = Examples(data, per_class=7, split=split)
    assert examples.images.shape == (70, 1, 28, 28)
    assert examples.images.dtype == torch.float32
    assert 0 <= examples.images.min() < examples.images.max() <= 1
    assert examples.labels.tolist() == [k for k in range(10) for _ in range(7)]
    images, labels, _, _ = load_mnist()
    train, val = data.train_val_indices
    mine, other = (train, val) if split == "train" else (val, train)
    of = {bytes((images[i]).flatten().tolist()): int(labels[i]) for i in mine.tolist()}
    found = [bytes(x.mul(255).round().byte().flatten().tolist()) for x in examples.images]
    assert len({*found}) == 70
    assert [of[x] for x in found] == examples.labels.tolist()
    assert not {*found} & {bytes(images[i].flatten().tolist()) for i in other[:2000].tolist()}


def test_the_seed_decides_and_augmentation_does_not_touch_them() -> None:
    first = Examples(MNIST(), 2, seed=1).images
    assert torch.equal(Examples(MNIST(augment=True), 2, seed=1).images, first)
    assert not torch.equal(Examples(MNIST(), 2, seed=2).images, first)


def test_they_are_read_when_they_are_asked_for() -> None:
    class Slow(MNIST):
        def read(self):  # type: ignore[no-untyped-def]
            raise AssertionError("read too early")

    examples = Examples(Slow())
    assert LogitMatching(guides=examples).guides is examples
    assert repr(examples) == "Examples(<Slow>, per_class=10, split='train', seed=0)"
    with pytest.raises(AssertionError, match="read too early"):
        _ = examples.images


def test_from_a_folder_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(8):
                Image.new("RGB", (10, 10), (100 * number, 10 * k, 0)).save(tmp_path / split / name / f"{k}.png")
    examples = Examples(ImageFolder(tmp_path, 8, num_workers=0, val_size=4, augment=True), per_class=3)
    assert examples.labels.tolist() == [0, 0, 0, 1, 1, 1]
    red = (examples.images[:, 0] * 255).round()
    assert torch.equal(red, torch.tensor([0.0, 0, 0, 100, 100, 100]).view(6, 1, 1).expand(6, 8, 8))
    with pytest.raises(ValueError, match=r"class 0 of .* has 6 images in the train split, per_class=7 .* lower"):
        _ = Examples(examples.data, per_class=7).images


def test_a_recipe_names_them() -> None:
    guides = {"_target_": "robustlit.data.Examples", "data": "${data}", "per_class": 4}
    sweep = {"_target_": "robustlit.attacks.LogitMatching", "guides": guides}
    config = OmegaConf.create({"data": {"_target_": "robustlit.data.MNIST", "val_size": 500}, "sweep": sweep})
    attack = instantiate(config.sweep, _convert_="all")
    assert attack.guides.data.val_size == 500
    assert len(attack.guides.labels) == 40
    with pytest.raises(Exception, match="guides must be clean images of every class"):
        instantiate({**sweep, "guides": None})


def test_a_value() -> None:
    data = MNIST()
    assert Examples(data, 3) == Examples(data, 3)
    assert Examples(data, 3) != Examples(data, 4)
    assert hash(Examples(data, 3)) == hash(Examples(data, 3))
    again = pickle.loads(pickle.dumps(Examples(data, 3)))
    assert (again.per_class, again.split, again.seed) == (3, "train", 0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"data": "mnist"}, ["data module", "'mnist'"]),
        ({"per_class": 0}, ["per_class", "got 0"]),
        ({"per_class": 2.0}, ["per_class", "2.0"]),
        ({"split": "test"}, ["train, val", "'test'", "answer"]),
        ({"seed": -1}, ["seed", "at least 0", "-1"]),
    ],
)
def test_what_it_refuses(settings: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        Examples(**{"data": MNIST(), **settings})  # type: ignore[arg-type]
    for part in parts:
        assert part in str(caught.value)
