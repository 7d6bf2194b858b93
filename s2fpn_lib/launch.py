"""Starting the processes of one training on this node, with torch's elastic launcher."""

import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from s2fpn_lib.distributed import local_rank

RENDEZVOUS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class WorkerFailed(RuntimeError):
    """A process of a distributed computation ended with an error; the message names it and holds its error."""


def node_rank(nodes: int) -> int:
    """Number of this node among `nodes`, 0 for the first: the environment variable NODE_RANK.

    Raises:
        ValueError: more than one node, and a variable that says where they meet is missing or no number.
    """
    if nodes == 1:
        return 0
    missing = [name for name in RENDEZVOUS_VARIABLES if not os.environ.get(name)]
    if missing:
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

    torch's elastic launcher starts and watches them; they are spawned, so `function` and `args` must be picklable, and
    a script calls this under `if __name__ == "__main__":`. When one process fails the others are stopped, and when this
    process dies they die with it.

    Args:
        devices: processes on each node, each with its share of this process's CPU threads.
        nodes: machines; on more than one the environment says where they meet (`node_rank`), and `launch` is called on
            each.
        backend: "nccl" for CUDA (one GPU a process), "gloo" for the CPU.

    Returns:
        What `function` returned in this node's first process.

    Raises:
        WorkerFailed: a process raised an error or was killed.
        ValueError: see `node_rank`.
    """
    first_node = node_rank(nodes) == 0
    endpoint = "localhost:0" if nodes == 1 else "{MASTER_ADDR}:{MASTER_PORT}".format(**os.environ)
    with tempfile.TemporaryDirectory(prefix="s2fpn-launch-") as logs, _signal_handlers_kept():
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=devices,
            run_id="s2fpn",
            rdzv_backend="c10d",
            rdzv_endpoint=endpoint,
            rdzv_configs={"is_host": first_node},
            local_addr="localhost" if nodes == 1 else None,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            returned = elastic_launch(config, _work)(function, args, backend, devices)
        except ChildFailedError as error:
            raise WorkerFailed(_first_failure(error, devices * nodes)) from error
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
    return returned[min(returned)]


def _work(function: Callable[..., Any], args: tuple[Any, ...], backend: str, devices: int) -> Any:
    """What each new process does: joins the others, then runs the function."""
    _die_with_parent()
    torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    dist.init_process_group(backend)
    if backend == "nccl":
        torch.cuda.set_device(local_rank())
    value = function(*args)
    dist.destroy_process_group()  # not after an error: the others may be stuck in what it would wait for
    return value


def _die_with_parent() -> None:
    """A process whose launcher was killed must not write into a run that somebody has taken up again."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _first_failure(error: ChildFailedError, processes: int) -> str:
    number, failure = error.get_first_failure()
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    return f"process {number} of {processes} failed: {message}"


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """The launcher installs handlers of its own and leaves them there, in the kernel of a notebook, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
