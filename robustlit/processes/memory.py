"""Memory that the C library gives back to the system after each layer, and asks for again at the next."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)
LARGEST_KEPT = 2**31 - 1  # bytes: mallopt takes an int


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB that it frees: on a CPU, large batches otherwise wait for fresh pages.

    glibc returns a freed block of over 32 MiB to the system, and every page of the next one is faulted in anew. A user
    who sets MALLOC_... or GLIBC_TUNABLES, or preloads an allocator, has chosen, and nothing is changed; nor is it where
    the C library is another one.

    Returns:
        Whether it was set.
    """
    set_by_user = (name for name, value in os.environ.items() if value)
    chosen = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in set_by_user)
    if chosen or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # musl has no mallopt
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, LARGEST_KEPT))
