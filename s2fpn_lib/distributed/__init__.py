"""Devices and processes: where a computation runs, in which precision, and how several processes train together. The
collective functions also work in a process that is alone."""

import contextlib
import ctypes
import os
import re
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's <malloc.h>


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1"); "auto" is CUDA where available, else the CPU. The process
    with a `local_rank` on its node gets the GPU of that number. Raises ValueError for a device of another kind, that
    torch does not see, or that several processes cannot share."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", name):
        # losses are summed in float64, which mps lacks, and nothing here has been tested on other devices
        raise ValueError(f'device is {name!r}, which is not supported; use "auto", "cpu", "cuda" or "cuda:1"')
    if name == "cpu":
        return torch.device(name)
    device, seen = torch.device(name), torch.cuda.device_count()
    if local_rank and device.index is not None:
        raise ValueError(f'device is {name!r}, one GPU for several processes; use "cuda", which gives each its own')
    if local_rank and local_rank >= seen:
        needed = f"{local_rank + 1} processes on this node need as many GPUs"
        raise ValueError(f'{needed}, but torch sees {seen}: lower devices, or use device="cpu"')
    if (device.index or 0) >= seen:
        raise ValueError(f'device is {name!r}, but torch sees {seen} CUDA devices; use "auto"')
    return torch.device("cuda", local_rank) if local_rank else device


def choose_amp(amp: str, device: torch.device) -> str | None:
    """The autocast precision, "bf16", "fp16", or None (float32), for the `amp` of a configuration. "auto" is bf16 where
    the device multiplies bf16 matrices in hardware (NVIDIA Ampere and later; CPUs with AMX or AVX512-BF16), else fp16
    on CUDA and float32 on a CPU, which would emulate bf16 slowly."""
    if amp != "auto":
        return None if amp == "off" else amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bf16"
    return None


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory for the next training step, as torch's allocator does on CUDA. Otherwise
    it maps and unmaps every block over 32 MB, which takes a fifth of a training step of s2fpn_lite on a CPU."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # musl, macOS, Windows
        mallopt = ctypes.CDLL(None).mallopt
        for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(*setting)


def rank() -> int:
    """Number of this process among all processes."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process among those on its node."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def world_size() -> int:
    """Number of all processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's `value`, bit-equal in all of them; no gradient flows through it."""
    return value if world_size() == 1 else _SumOverProcesses.apply(value.detach())


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of every process's `value`, see `sum_over_processes`."""
    return value if world_size() == 1 else sum_over_processes(value) / world_size()


def from_first(value: Any) -> Any:
    """The first process's `value` (picklable) in all processes, which wait here for each other."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in a process. The processes wait here for each other; a GPU is not waited for."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(flag, dtype=torch.uint8)  # on the CPU, for gloo
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def require_equal(what: str, value: Any, advice: str) -> None:
    """Raises ValueError unless all processes have the same `value`. The processes wait here for each other."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    if any(other != value for other in values):
        raise ValueError(f"the processes of this training differ in {what} ({values}): {advice}")


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of the gradients that the processes' results get. torch's own,
    `torch.distributed.nn.functional.all_reduce`, is deprecated."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    backward = forward


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """`model`, changed in place: the training statistics of every BatchNorm are taken over all processes."""
    if any(parameter.is_cuda for parameter in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = SyncBatchNorm
    return model


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of (B, C, ...) inputs with the mean and variance of the concatenated batches of all processes, in
    float32 under any autocast; torch's accepts CUDA tensors only. It must be affine, with running statistics."""

    _check_input_dim = nn.SyncBatchNorm._check_input_dim  # (B, C, ...)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]  # (C,) -> (1, C, 1, ...)
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _SumOverProcesses.apply(torch.cat((values.sum(dims), count)))  # (C + 1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean.view(shape)
        var = _SumOverProcesses.apply(centered.square().sum(dims)) / count  # of centered values: no cancellation
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(var.detach() * count / (count - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centered * scale.view(shape) + self.bias.view(shape)).to(x.dtype)
