"""Freed memory is kept, where the C library would return it to the operating system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
# Fills a block of 64 MiB five times, as a layer does with its output, and prints the page faults of the last four.
PROGRAM = """
import ctypes, resource
from robustlit.processes.memory import keep_freed_memory
print(keep_freed_memory() if {call} else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def faults():
    block = ctypes.c_void_p(libc.malloc(2**26))
    libc.memset(block, 1, 2**26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults()
for _ in range(4):
    last = faults()
print(last - first)
"""


def run(*, call: bool, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned in a process of its own, and the page faults after it."""
    program = PROGRAM.format(call=call)
    path = ":".join(p for p in sys.path if p)
    out = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path, **environment}, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    kept, faults = out.stdout.split()
    return kept, int(faults)


@glibc
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert run(call=False)[1] > 50  # at 2 MiB a page, 128
    kept, faults = run(call=True)
    assert kept == "True"
    assert faults < 20


@glibc
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_an_allocator_that_the_user_set_is_left_alone(name: str) -> None:
    value = {"MALLOC_ARENA_MAX": "8", "GLIBC_TUNABLES": "glibc.malloc.arena_max=8", "LD_PRELOAD": "libc.so.6"}[name]
    kept, faults = run(call=True, **{name: value})
    assert kept == "False"
    assert faults > 50
