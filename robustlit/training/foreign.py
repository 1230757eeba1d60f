"""What a file that is no checkpoint of robustlit seems to be, and how the net in it is evaluated."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path

from robustlit.training.stored import shown

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_LENGTH = 8  # bytes at the start of a safetensors file: the length of its header, which is JSON
_PICKLE = b"\x80"  # how pickles start since protocol 2


def way_in(weights: str | Path = "FILE") -> str:
    """Return the command that evaluates a net whose weights are in a file."""
    return f"`robustlit evaluate --model MODULE:FUNCTION --weights {shlex.quote(str(weights))}`"


def what_it_seems(path: Path, error: Exception) -> str:
    """Return what a file seems to be that was not read because of `error`, and the way out; "it is ..."."""
    if is_safetensors(path):
        return f"it is a safetensors file, weights without a recipe to build the net from: {way_in(path)}"
    if is_torchscript(path):
        way = f"torch.save(torch.jit.load(OLD).state_dict(), FILE) writes its state dict, for {way_in()}"
        return f"it is a TorchScript program; {way}"
    if (found := python_object(error)) is not None:
        way = "torch.save(torch.load(OLD, 'cpu', weights_only=False).state_dict(), FILE)"
        return (
            f"it holds whole Python objects ({found}), such as a pickled net, and reading those runs code. If you "
            f"trust it, write its state dict where its code is, {way}, for {way_in()}"
        )
    if _head(path)[:1] == _PICKLE:
        return f"it is a pickle, or a file of PyTorch before 1.6; if it holds a state dict: {way_in(path)}"
    return f"it is damaged, or of another program ({type(error).__name__}); for weights of a net of yours: {way_in()}"


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts as safetensors files do."""
    head = _head(path)
    return head[_LENGTH:] == b"{" and _LENGTH < int.from_bytes(head[:_LENGTH], "little") < path.stat().st_size


def is_torchscript(path: str | Path) -> bool:
    """Return whether a file is what `torch.jit.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def python_object(error: Exception) -> str | None:
    """Return the class that `torch.load(weights_only=True)` refused to build, None where it failed otherwise."""
    found = _GLOBAL.search(str(error))
    return None if found is None else shown(found[1])[1:-1]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LENGTH + 1)
    except OSError:
        return b""
