"""What the processes of one training tell one another; `launch` starts them.

In a process that is not one of several, these functions answer for it alone: rank 0 of 1, and a sum is what it was.
"""

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
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

# MERGED devices: """Which device a computation runs on, and in which precision it is fast there."""
# MERGED launch: """Starting the processes of one training on this node, with torch's elastic launcher."""
# MERGED sync_batch_norm: """BatchNorm over the batches of all processes: torch's own on CUDA, this file's on the CPU, where torch has none."""
# MERGED allocator: """Keeps the memory that a training step frees, for the next step to use again (glibc's malloc on a CPU)."""


def rank() -> int:
    """Number of this process among all, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process among those on its node."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes compute together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's `value`, bit-equal in all of them; no gradient flows through it."""
    if world_size() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of every process's `value`, as `sum_over_processes`."""
    return value if world_size() == 1 else sum_over_processes(value) / world_size()


def from_first(value: Any) -> Any:
    """The first process's `value`, a picklable one, in all of them. A process waits here for all others."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def refuse_differing(what: str, value: Any, advice: str) -> None:
    """ValueError where the processes do not all have the same `value`. A process waits here for all others."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    if any(other != value for other in values):
        raise ValueError(f"the processes of this training differ in {what} ({values}): {advice}")


# What autocast is told for the precisions that configurations and notebooks name
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1"); "auto" is CUDA where there is one, else the CPU.

    local_rank: which of this node's processes asks; each gets the GPU of that number.

    Raises ValueError for a device that torch does not see, or that several processes cannot share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'device is {name!r}; use "auto", "cpu", "cuda" or "cuda:1"') from error
    if local_rank and device.type == "cuda":
        if device.index is not None:
            raise ValueError(f'device is {name!r}, one GPU for several processes; use "cuda", which gives each its own')
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{local_rank + 1} processes on this node need as many GPUs, but torch sees "
                f'{torch.cuda.device_count()}: lower devices, or use device="cpu"'
            )
        return torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; use "auto"')
    return device


def choose_amp(amp: str, device: torch.device) -> str | None:
    """The precision of autocast, "bf16", "fp16" or None (float32), for a training run's `amp`.

    "auto" is bf16 where the device multiplies bf16 matrices in hardware (Ampere and later; CPUs with AMX or
    AVX512-BF16), else fp16 on CUDA and float32 on a CPU, which would only emulate it, slowly.
    """
    if amp != "auto":
        return None if amp == "off" else amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bf16"
    return None


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


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm taking its training statistics over all processes; parameters, buffers and their
    names stay. A BatchNorm in eval mode computes what it always does."""
    if any(parameter.is_cuda for parameter in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        plain = isinstance(child, nn.modules.batchnorm._BatchNorm)
        setattr(model, name, SyncBatchNorm.like(child) if plain else synchronize_batch_norm(child))
    return model


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of (B, C, ...) inputs whose mean and variance are those of the concatenated batches of all processes.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Statistics are float32 under any autocast; the running variance is the unbiased one, as torch's.
    """

    @classmethod
    def like(cls, plain: nn.Module) -> "SyncBatchNorm":
        """One that shares parameters and buffers with a BatchNorm that has them (affine, with running statistics)."""
        synced = cls(plain.num_features, plain.eps, plain.momentum, device="meta")
        for name, tensor in plain.named_parameters():
            setattr(synced, name, tensor)
        for name, tensor in plain.named_buffers():
            setattr(synced, name, tensor)
        return synced.train(plain.training)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"BatchNorm takes (B, C, ...) inputs, got shape {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]  # (C,) -> (1, C, 1, ...)
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _SumOverProcesses.apply(torch.cat((values.sum(dims), count)))  # (C + 1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean.view(shape)
        var = _SumOverProcesses.apply(centered.square().sum(dims)) / count  # of the centred values: no cancellation
        self._follow(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt()
        return (centered * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics towards a batch's."""
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes. Every process's result depends on every process's tensor, so the gradient is
    the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _reduced(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient)


def _reduced(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


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
