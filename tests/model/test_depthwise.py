"""Depthwise convolution under autocast: torch's values, and the gradient of float32 arithmetic."""

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.model.efficientnet_lite import depthwise_conv2d


def sample(channels=6, size=(9, 11), kernel=5):
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).to(memory_format=torch.channels_last).requires_grad_()
    return x, torch.randn(channels, 1, kernel, kernel).requires_grad_()


@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 2), (2, 0)])
class TestDepthwise:
    def test_is_torchs_convolution_without_autocast(self, stride, padding):
        x, weight = sample()
        expected = F.conv2d(x, weight, None, stride, padding, groups=6)
        assert torch.equal(depthwise_conv2d(x, weight, stride, padding), expected)

    def test_bfloat16_values_and_gradients(self, stride, padding):
        x, weight = sample()
        with torch.autocast("cpu", torch.bfloat16):
            result = depthwise_conv2d(x, weight, stride, padding)
            expected = F.conv2d(x, weight, None, stride, padding, groups=6)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, expected)
        gradient = torch.randn_like(result)
        result.backward(gradient)
        rounded = [tensor.detach().bfloat16().float().requires_grad_() for tensor in (x, weight)]
        F.conv2d(rounded[0], rounded[1], None, stride, padding, groups=6).backward(gradient.float())
        for tensor, reference in zip((x, weight), rounded, strict=True):
            torch.testing.assert_close(tensor.grad, reference.grad, rtol=1e-2, atol=1e-2)

    def test_only_the_gradients_asked_for(self, stride, padding):
        x, weight = sample()
        with torch.autocast("cpu", torch.bfloat16):
            depthwise_conv2d(x.detach(), weight, stride, padding).float().sum().backward()
        assert weight.grad is not None
