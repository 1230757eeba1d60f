import pytest
import torch

from robustlit.data import crop_and_flip, load_mnist
from robustlit.data.batches import seeded_generator


@pytest.fixture(scope="module")
def x():
    return load_mnist()[0][:200].float() / 255


def test_each_example_is_one_of_its_windows(x):
    # Two channels that differ, so that a crop that mixes channels or examples would show.
    x = torch.cat([x[:60], x[100:160]], dim=1)
    out = crop_and_flip(padding=2)(x, seeded_generator(0))
    padded = torch.nn.functional.pad(x, [2] * 4)
    windows = torch.stack([padded[:, :, i : i + 28, j : j + 28] for i in range(5) for j in range(5)])
    candidates = torch.cat([windows, windows.flip(4)])  # (50, B, C, H, W)
    hits = (candidates == out).flatten(2).all(2)  # (50, B)
    assert hits.any(0).all()
    # All offsets and both sides occur among enough examples.
    many = crop_and_flip(padding=2)(x[:1].repeat(2000, 1, 1, 1), seeded_generator(1))
    assert (candidates[:, :1] == many[None]).flatten(2).all(2).any(1).all()


def test_flip_alone_mirrors_about_half(x):
    out = crop_and_flip(padding=0)(x, seeded_generator(0))
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert torch.equal(out[~mirrored], x[~mirrored])
    assert 70 < mirrored.sum() < 130


def test_nothing_to_do_does_nothing(x):
    assert torch.equal(crop_and_flip(padding=0, flip=False)(x, seeded_generator(0)), x)


def test_same_generator_state_same_result(x):
    augment = crop_and_flip()
    assert torch.equal(augment(x, seeded_generator(1, 2)), augment(x, seeded_generator(1, 2)))
    assert not torch.equal(augment(x, seeded_generator(1, 2)), augment(x, seeded_generator(2, 1)))


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        crop_and_flip(padding=-1)
