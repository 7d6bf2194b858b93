"""BatchNorm over the batches of all processes: torch's own on CUDA, this file's on the CPU, where torch has none."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from s2fpn_lib.distributed import world_size


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm taking its training statistics over all processes; parameters, buffers and their
    names stay. A BatchNorm in eval mode computes what it always does."""
    if any(parameter.is_cuda for parameter in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        plain = isinstance(child, nn.modules.batchnorm._BatchNorm)
        setattr(model, name, SyncBatchNorm.like(child) if plain else synchronised(child))
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
        centred = values - mean.view(shape)
        var = _SumOverProcesses.apply(centred.square().sum(dims)) / count  # of the centred values: no cancellation
        self._follow(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

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
