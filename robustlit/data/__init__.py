"""Data: Lightning data modules, MNIST embedded in the package, batches cut out of memory."""

from robustlit.data.augment import crop_and_flip
from robustlit.data.batches import Batches, BatchIndices
from robustlit.data.downloads import CIFAR10, CIFAR100, SVHN, FashionMNIST
from robustlit.data.embedded import load_mnist
from robustlit.data.errors import DataError
from robustlit.data.examples import Examples
from robustlit.data.image_folder import ImageFolder
from robustlit.data.modules import MNIST, InMemoryDataModule

__all__ = [
    "CIFAR10", "CIFAR100", "MNIST", "SVHN", "BatchIndices", "Batches", "DataError", "Examples", "FashionMNIST",
    "ImageFolder", "InMemoryDataModule", "crop_and_flip", "load_mnist",
]  # fmt: skip
