"""Processes that train together: torchrun's elastic launcher, called from a script or a notebook."""

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from s2fpn_lib.distributed import local_rank
from s2fpn_lib.distributed.stop import STOP_SIGNALS, parent_watched, restored_signal_handlers

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


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
