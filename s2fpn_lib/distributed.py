"""What the processes of one training tell one another; `launch` starts them.

In a process that is not one of several, these functions answer for it alone: rank 0 of 1, and a sum is what it was.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
