"""Keeps a thread's stack for signal handlers as it was, whatever a library does to it in between."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """glibc's stack_t, of <signal.h>."""

    _fields_ = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Puts the calling thread's alternative signal stack back at the end of the block.

    OpenVINO's CPU plugin installs one of its own when it is loaded, remembers the one before it, and brings that back
    when it goes. Where plugins do not go in the reverse order of their coming, that one is freed memory, and the next
    signal that Python handles, a child's end or an interrupt, kills the process. With the first one put back at once,
    there is nothing for the plugin to bring back.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None, use_errno=True).sigaltstack
    before = _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
