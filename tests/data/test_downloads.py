import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from robustlit.data import CIFAR10, CIFAR100, SVHN, DataError, FashionMNIST, load_mnist

EXPECTED_FILES = {
    FashionMNIST: "FashionMNIST/raw/",
    CIFAR10: "data_batch_1",
    CIFAR100: "cifar-100-python/",
    SVHN: "train_32x32.mat",
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args, **kwargs):
        raise URLError("no network")

    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", unreachable)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", unreachable)


@pytest.mark.parametrize("cls", EXPECTED_FILES)
def test_offline_error_names_folder_files_and_alternative(cls, tmp_path: Path, offline: None):
    for act in (cls(root=tmp_path).prepare_data, cls(root=tmp_path).setup):
        with pytest.raises(DataError) as error:
            act()
        for part in (str(tmp_path), EXPECTED_FILES[cls], "data=mnist", cls.name):
            assert part in str(error.value)


def coloured_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits as (N, 3, 32, 32) uint8 with another brightness in each channel, ten of each class in turn."""
    images, labels = load_mnist()[:2]
    order = torch.cat([(labels == label).nonzero()[: count // 10, 0] for label in range(10)])
    padded = torch.nn.functional.pad(images[order], [2] * 4)
    return torch.cat([padded, padded // 2, padded // 4], dim=1).numpy(), labels[order].numpy()


def test_cifar10_reads_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The digests are of the real files, so they are not asked for.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = coloured_digits(100)
    for number in range(5):
        part = {"data": images[number::5].reshape(-1, 3072), "labels": labels[number::5].tolist()}
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(part))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images.reshape(-1, 3072), "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {label}" for label in range(10)]}))

    module = CIFAR10(root=tmp_path, val_size=20)
    x, y, index = module.tensors("test")
    assert torch.equal(x, torch.from_numpy(images).float().div(255))
    assert y.tolist() == labels.tolist()
    assert index.tolist() == list(range(100))
    assert len(module.train_val_indices[0]) == 80
    x, _, _ = next(iter(module.train_dataloader()))
    assert x.shape == (80, 3, 32, 32)
    assert x.is_contiguous()
    assert CIFAR10(root=tmp_path, val_size=20).class_names == tuple(f"class {label}" for label in range(10))


def test_svhn_reads_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    images, labels = coloured_digits(100)
    # On disk the digit 0 is class 10, and the example is the last dimension.
    stored = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", stored)
    module = SVHN(root=tmp_path, val_size=20)
    x, y, _ = module.tensors("test")
    assert module.class_names == (*"0123456789",)
    assert torch.equal(x, torch.from_numpy(images).float().div(255))
    assert y.tolist() == labels.tolist()


def test_fashion_mnist_reads_its_format(tmp_path: Path):
    images, labels, *_ = load_mnist()
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = b"".join(size.to_bytes(4, "big") for size in (300, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + header + images[:300].numpy().tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + header[:4] + labels[:300].to(torch.uint8).numpy().tobytes()
        )
    module = FashionMNIST(root=tmp_path, val_size=20)
    x, y, _ = module.tensors("test")
    assert module.class_names[:2] == ("T-shirt/top", "Trouser")
    assert torch.equal(x, images[:300].float().div(255))
    assert torch.equal(y, labels[:300])
