"""Keeps the memory that a training step frees, for the next step to use again (glibc's malloc on a CPU)."""

import ctypes
import sys

# The names and values of glibc's <malloc.h>.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tells malloc of this process not to hand large blocks back to the kernel; False where it is not glibc's.

    By default glibc maps every block over 32 MB afresh and unmaps it when it is freed: each step then waits for the
    kernel to clear the same hundreds of megabytes again, a fifth of a training step of s2fpn_lite. The price is that
    the process stays as large as it once was.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
