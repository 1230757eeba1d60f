import gzip
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from robustlit.data import CIFAR10, CIFAR100, MNIST, SVHN, DataError, FashionMNIST, load_mnist
from robustlit.data.downloads import DEBIAN_FASHION_MNIST

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

    monkeypatch.setattr("robustlit.data.downloads.DEBIAN_FASHION_MNIST", Path("nowhere"))
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


def write_fashion_mnist(raw: Path, zipped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels, *_ = load_mnist()
    raw.mkdir(parents=True, exist_ok=True)
    header = b"".join(size.to_bytes(4, "big") for size in (300, 28, 28))
    for part in ("train", "t10k"):
        for name, idx in (
            (f"{part}-images-idx3-ubyte", bytes([0, 0, 8, 3]) + header + images[:300].numpy().tobytes()),
            (f"{part}-labels-idx1-ubyte", bytes([0, 0, 8, 1]) + header[:4] + labels[:300].byte().numpy().tobytes()),
        ):
            (raw / f"{name}.gz").write_bytes(gzip.compress(idx)) if zipped else (raw / name).write_bytes(idx)
    return images[:300].float().div(255), labels[:300]


@pytest.mark.parametrize(("folder", "zipped"), [("FashionMNIST/raw", False), ("FashionMNIST/raw", True), (".", True)])
def test_fashion_mnist_reads_its_format(folder: str, zipped: bool, tmp_path: Path, offline: None):
    images, labels = write_fashion_mnist(tmp_path / folder, zipped)
    module = FashionMNIST(root=tmp_path, val_size=20)
    module.prepare_data()  # there is nothing to download
    x, y, _ = module.tensors("test")
    assert module.class_names[:2] == ("T-shirt/top", "Trouser")
    assert torch.equal(x, images)
    assert torch.equal(y, labels)


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_fashion_mnist_of_unequal_lengths_is_refused(part: str, tmp_path: Path, offline: None):
    write_fashion_mnist(tmp_path, False)
    labels = tmp_path / f"{part}-labels-idx1-ubyte"
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 200]) + labels.read_bytes()[8:208])
    with pytest.raises(DataError, match=rf"{part}-images-idx3-ubyte holds 300 pictures and .* 200 labels; replace"):
        FashionMNIST(root=tmp_path, val_size=20).setup("fit")


def test_fashion_mnist_of_debian_is_found_and_that_of_root_comes_first(tmp_path: Path, monkeypatch, offline: None):
    write_fashion_mnist(tmp_path / "debian", zipped=True)
    monkeypatch.setattr("robustlit.data.downloads.DEBIAN_FASHION_MNIST", tmp_path / "debian")
    FashionMNIST(root=tmp_path / "none").prepare_data()
    assert len(FashionMNIST(root=tmp_path / "none", val_size=20).tensors("test")[1]) == 300
    write_fashion_mnist(tmp_path / "own", zipped=True)
    (tmp_path / "own" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"own/t10k-labels-idx1-ubyte.gz is no idx file that can be read"):
        FashionMNIST(root=tmp_path / "own", val_size=20).setup()


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_package_of_debian_holds_the_data(tmp_path: Path):
    module = FashionMNIST(root=tmp_path)
    labels = module.split_labels()
    assert [part.bincount().tolist() for part in labels] == [[6000] * 10, [1000] * 10]


@pytest.mark.parametrize(("cls", "eps"), [(MNIST, 0.3), (FashionMNIST, 0.1), (CIFAR10, 8 / 255), (SVHN, 8 / 255)])
def test_each_set_names_its_usual_budget(cls, eps: float):
    assert cls.usual_eps == eps
