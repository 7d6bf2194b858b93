"""Depthwise convolution whose gradient is computed in float32 where bfloat16 would be slow.

oneDNN has no fast bfloat16 kernels for the gradient of a depthwise convolution: under autocast on a CPU the backward
pass of one strided layer takes ten to twenty times as long as in float32, and half of a training step goes into it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv2d` of (B, C, H, W) with (C, 1, k, k), one filter a channel; the same values and the same gradient."""
    if x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        return _Float32Gradient.apply(x.to(dtype), weight.to(dtype), stride, padding)
    return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])


class _Float32Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            gradient.float(),
            x.float(),
            weight.float(),
            None,
            [ctx.stride] * 2,
            [ctx.padding] * 2,
            [1, 1],
            False,
            [0, 0],
            weight.shape[0],
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )
        grads = (grad_x, grad_weight)
        return *(None if grad is None else grad.to(x.dtype) for grad in grads), None, None
