"""Files that are no checkpoints of robustlit are named for what they seem to be, with the way to evaluate their net."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustlit.models import SmallCNN
from robustlit.training import CheckpointError, read_checkpoint

WAY = "`robustlit evaluate --model MODULE:FUNCTION --weights "


def program(net: nn.Module, path: Path) -> None:
    torch.jit.trace(net, torch.zeros(1, 1, 28, 28)).save(path)  # type: ignore[no-untyped-call]


def before_1_6(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "seems", "itself"),
    [
        (lambda net, path: save_file(net.state_dict(), path), "read safely: it is a safetensors file", True),
        (lambda net, path: torch.save(net, path), "it holds whole Python objects (robustlit.models.cnn.", False),
        (lambda net, path: torch.save(net.state_dict(), path), "was not written by robustlit", True),
        (lambda net, path: path.write_bytes(pickle.dumps(net.state_dict())), "it is a pickle, or a file of", True),
        (lambda net, path: path.write_bytes(b"no such thing"), "it is damaged, or of another program", False),
        (before_1_6, "it is a pickle, or a file of PyTorch before 1.6", True),
        (program, "it is a TorchScript program; torch.save(", False),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_file_of_another_kind_is_named(
    write: Callable[[nn.Module, Path], object], seems: str, itself: bool, tmp_path: Path
) -> None:
    write(SmallCNN().eval(), path := tmp_path / "w.bin")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path} ")
    assert seems in text
    assert WAY + (f"{path}`" if itself else "FILE`") in text
    assert "\n" not in text
