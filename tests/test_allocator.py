"""The allocator: what is freed is not handed back to the kernel."""

import ctypes
import subprocess
import sys

import pytest

from clipdef_jax import allocator

# Whether the pages of buffers that are made and freed in turn are cleared once, or every time.
FAULTS = """
import resource, sys
from clipdef_jax import allocator
if sys.argv[1] == "kept":
    allocator.keep_freed_memory()
for _ in range(50):
    buffers = [b"x" * 2**20 for _ in range(32)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_freed_memory_is_used_again_without_the_kernel():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
        for how in ("kept", "as usual")
    }
    pages = 32 * 2**20 // 4096
    assert faults["as usual"] - faults["kept"] > 20 * pages


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    allocator.keep_freed_memory()
