"""Signals that ask a training to stop, which it does after its step."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any
from unittest.mock import ANY

from s2fpn_lib.distributed import any_process, world_size

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextlib.contextmanager
def parent_watched() -> Iterator[None]:
    """In a notebook's kernel, SIGTERM when its parent process ends (papermill that was terminated, JupyterLab), instead
    of ipykernel's own thread, which ends the process without a signal."""
    kernels, parent, left = sys.modules.get("ipykernel.kernelapp"), os.getppid(), threading.Event()
    poller = getattr(kernels and kernels.IPKernelApp._instance, "poller", None)  # `instance` would create one

    def watch() -> None:
        while not left.wait(0.2):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if not hasattr(poller, "parent_pid") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, poller.parent_pid = poller.parent_pid, ANY  # which differs from no process number
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        poller.parent_pid = before


def ignore_stop_signals(_: int) -> None:
    """Lets a worker live through the signals of its process group. A second SIGTERM, from its process, ends it."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextlib.contextmanager
def restored_signal_handlers() -> Iterator[dict[signal.Signals, Any]]:
    """Restores the handlers of `STOP_SIGNALS`, which it gives, at the end of the block."""
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    try:
        yield before
    finally:
        with contextlib.suppress(ValueError):  # only the main thread has handlers
            for each, handler in before.items():
                if handler is not None:  # else it was not installed from Python
                    signal.signal(each, handler)


class StopRequested(BaseException):
    """Raised after a signal, at a point where the training can stop without loss; see `StopSignals`."""


class StopSignals:
    """Holds back SIGINT, SIGTERM, and SIGHUP until a block ends, so that it can end where nothing is lost.

    The end of the parent of a notebook's kernel counts as SIGTERM. A second SIGINT raises KeyboardInterrupt at once; it
    has no effect in one of several processes, which get SIGINT from the terminal and from their launcher. An ignored
    signal stays ignored. Outside the main thread, which alone has handlers, nothing is held back.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at_once = False

    def __enter__(self) -> "StopSignals":
        self._stack = contextlib.ExitStack()
        before = self._stack.enter_context(restored_signal_handlers())
        self._stack.enter_context(parent_watched())
        with contextlib.suppress(ValueError):
            for each, handler in before.items():
                if handler not in (None, signal.SIG_IGN):
                    signal.signal(each, self._hold)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._stack.close()
        if self.received:
            if isinstance(error, Exception):  # which the end of the process by the signal would hide
                traceback.print_exception(error)
                sys.stderr.flush()
            signal.raise_signal(self.received)

    def _hold(self, number: int, _: Any) -> None:
        if self.received == number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        at_once, self._at_once = self._at_once, False  # once: what follows saves the state
        if at_once:
            raise StopRequested

    def check(self) -> None:
        """Raises StopRequested in all processes if one of them has received a signal."""
        if any_process(self.received is not None):
            raise StopRequested

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A part of the block that may be left anywhere: a signal raises StopRequested there."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
