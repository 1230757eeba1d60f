import hashlib
import lzma
import runpy
from pathlib import Path

import pytest
import torch

from robustlit.data import DataError, load_mnist
from robustlit.data.embedded import MNIST_SHA256, read_checked
from robustlit.data.mnist import pack


def test_digits_are_mnist():
    train_images, train_labels, test_images, test_labels = load_mnist()
    assert load_mnist()[0] is train_images  # unpacked once per process
    assert train_images.shape == (60000, 1, 28, 28)
    assert test_images.shape == (10000, 1, 28, 28)
    assert train_images.dtype == test_images.dtype == torch.uint8
    assert train_labels.dtype == test_labels.dtype == torch.int64
    # Counts a digit and mean pixel as known from the published data.
    assert train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train_images.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_a_flipped_bit_and_a_missing_file_are_errors_with_the_way_out(tmp_path: Path):
    packed = bytearray((Path(pack.__file__).parent / "mnist.xz").read_bytes())
    packed[1000] ^= 1
    damaged = tmp_path / "mnist.xz"
    damaged.write_bytes(packed)
    with pytest.raises(DataError, match=r"mnist\.xz is damaged.*Reinstall") as error:
        read_checked(damaged, MNIST_SHA256)
    assert MNIST_SHA256 in str(error.value)
    assert hashlib.sha256(packed).hexdigest() in str(error.value)
    with pytest.raises(DataError, match=r"nowhere\.xz.*cannot be read.*Reinstall"):
        read_checked(tmp_path / "nowhere.xz", MNIST_SHA256)


def test_damage_surfaces_in_load_mnist(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("robustlit.data.embedded.MNIST_SHA256", "0" * 64)
    with pytest.raises(DataError, match="expected SHA-256 0000"):
        load_mnist.__wrapped__()


def test_pack_keeps_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for number, name in enumerate(pack.FILES):
        (tmp_path / name).write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, number, 7, 255]))
    out = tmp_path / "out.xz"
    monkeypatch.setattr("sys.argv", ["pack", str(tmp_path), str(out)])
    runpy.run_path(pack.__file__, run_name="__main__")
    assert capsys.readouterr().out.strip() == hashlib.sha256(out.read_bytes()).hexdigest()
    assert lzma.decompress(out.read_bytes()) == b"".join((tmp_path / name).read_bytes() for name in pack.FILES)
