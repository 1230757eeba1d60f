"""Memory of a process that computes on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def keep_freed_memory() -> bool:
    """Keep freed memory in this process instead of returning it to the operating system, so that it is used again.

    glibc returns every freed block of more than 32 MiB, and the next layer of a large batch then waits for new pages,
    one page fault each. After this call it does so for blocks of 1 GiB and more, and for what exceeds 2 GiB at the end
    of the heap. Nothing is changed where MALLOC_... or GLIBC_TUNABLES is set, where an allocator is preloaded, and
    where the C library is not glibc.

    Returns:
        Whether it was changed.
    """
    set_by_user = (name for name, value in os.environ.items() if value)
    chosen = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in set_by_user)
    if chosen or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # musl has no mallopt
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
