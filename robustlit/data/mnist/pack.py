"""Packs MNIST's four idx files into `mnist.xz`: python -m robustlit.data.mnist.pack RAW_FOLDER [mnist.xz]."""

import hashlib
import lzma
import sys
from pathlib import Path

# The order is the format: the reader takes the four arrays in this sequence.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def pack(raw: Path, out: Path) -> str:
    """Compress the four idx files of the folder `raw` into `out`; return its SHA-256 for `embedded.MNIST_SHA256`."""
    packed = lzma.compress(b"".join((raw / name).read_bytes() for name in FILES), preset=9 | lzma.PRESET_EXTREME)
    out.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(pack(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).with_name("mnist.xz")))
