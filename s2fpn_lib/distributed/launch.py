"""Processes that train together, by torchrun's elastic launcher, and the signals that stop them after a step."""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import ANY

import torch
import torch.distributed as dist

from s2fpn_lib.distributed import any_process, local_rank, world_size

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class WorkerFailed(RuntimeError):
    """A process of a distributed computation ended with an error; the message names it and contains its error."""


def node_rank(nodes: int) -> int:
    """Number of this node among `nodes` (0 for the first), from NODE_RANK; ValueError if the environment lacks it."""
    if nodes == 1:
        return 0
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)]:
        raise ValueError(
            f"nodes is {nodes}, but {', '.join(missing)} of the environment is not set: start the same training on "
            "every node with MASTER_ADDR (host name of the first node), MASTER_PORT (a free port there, such as 29500) "
            f"and NODE_RANK (0 to {nodes - 1}, 0 on the first node)"
        )
    number = os.environ["NODE_RANK"]
    if not number.isdecimal() or int(number) >= nodes:
        raise ValueError(f"NODE_RANK is {number!r}; with nodes={nodes} it is a number from 0 to {nodes - 1}")
    return int(number)


def launch(function: Callable[..., Any], *args: Any, devices: int, nodes: int, backend: str) -> Any:
    """Runs `function(*args)` in `devices` new processes on this node, connected to those of the other nodes.

    The processes are spawned, so `function` and `args` must be picklable, and a script calls this under
    `if __name__ == "__main__":`. Each gets an equal share of the CPU threads. When one fails, the others are stopped; a
    signal that ends this process goes to all of them first, which have half a minute to end, see `StopSignals`.

    nodes: number of machines; `launch` is called on each of them, see `node_rank`. backend: "cpu:gloo,cuda:nccl" for
    CUDA (one GPU per process), "gloo" for the CPU, over the network of the host's name or of GLOO_SOCKET_IFNAME.
    Returns what `function` returned in this node's first process, or raises WorkerFailed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    first_node = node_rank(nodes) == 0
    returned, received, deterministic = {}, None, torch.are_deterministic_algorithms_enabled()
    endpoint = "localhost:0" if nodes == 1 else "{MASTER_ADDR}:{MASTER_PORT}".format(**os.environ)
    # the elastic launcher replaces signal handlers, which a notebook's kernel needs
    with tempfile.TemporaryDirectory(prefix="s2fpn-launch-") as logs, restored_signal_handlers(), parent_watched():
        # nohup lets a process ignore SIGHUP
        handled = [each.name for each in STOP_SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
        place = {"rdzv_backend": "c10d", "rdzv_endpoint": endpoint, "rdzv_configs": {"is_host": first_node}}
        place |= {"local_addr": "localhost" if nodes == 1 else None, "run_id": "s2fpn"}
        rules = {"max_restarts": 0, "logs_specs": DefaultLogsSpecs(logs), "signals_to_handle": ",".join(handled)}
        config = LaunchConfig(min_nodes=nodes, max_nodes=nodes, nproc_per_node=devices, **place, **rules)
        try:
            returned = elastic_launch(config, _run_worker)(function, args, backend, devices, deterministic)
        except ChildFailedError as error:
            number, failure = error.get_first_failure()
            message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
            raise WorkerFailed(f"process {number} of {devices * nodes} failed: {message}") from error
        except SignalException as error:
            received = error.sigval
    if received:
        signal.raise_signal(received)  # for the handlers of this process
        raise KeyboardInterrupt("the training was stopped")
    return returned[min(returned)]


def _run_worker(
    function: Callable[..., Any], args: tuple[Any, ...], backend: str, devices: int, deterministic: bool
) -> Any:
    """What each new process does: it joins the others, then runs the function."""
    if sys.platform.startswith("linux"):
        # A process whose launcher was killed must not write into a run that has been resumed meanwhile
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    torch.use_deterministic_algorithms(deterministic)
    dist.init_process_group(backend)
    if "nccl" in backend:
        torch.cuda.set_device(local_rank())
    try:
        value = function(*args)
    except KeyboardInterrupt as stopped:  # the launcher would wait for a value of a process that ends with it
        raise RuntimeError("the training was stopped") from stopped
    dist.destroy_process_group()  # not after an error: the other processes may be stuck in a collective
    return value


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
    """Holds back SIGINT, SIGTERM, and SIGHUP until a block ends, so that it can end where nothing is lost. The end of
    the parent of a notebook's kernel counts as SIGTERM. A second SIGINT raises KeyboardInterrupt at once, except in one
    of several processes, which get SIGINT from the terminal and from their launcher. An ignored signal stays ignored.
    Outside the main thread, which alone has handlers, nothing is held back."""

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
