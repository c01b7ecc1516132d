"""Memory of the host: what a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_LARGEST = 2**31 - 1
_TOP_PAD = 64 * 2**20


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of handing it back to the kernel.

    On a CPU, XLA allocates and frees the buffers of each step. As glibc does it by default, the
    kernel then clears the same pages anew every time, a third of the time of a small model. The
    process stays as large as it once was. Elsewhere than on glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    mallopt(_M_TOP_PAD, _TOP_PAD)
