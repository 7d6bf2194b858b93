"""Each transformation for inference against the function that it replaces."""

import pytest
import torch
from torch import nn

from s2fpn_lib.inference.optimize import SplitFRB, fold_batch_norms, simplify
from s2fpn_lib.model import build_model
from s2fpn_lib.model.apf import APF


def trained_like(module):
    """Batch norms with statistics and scales of their own, as after training; in double precision."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.8, 1.2)
            nn.init.normal_(part.bias, std=0.1)
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
        if hasattr(part, "gamma"):
            nn.init.constant_(part.gamma, 0.4)
    return module.eval().double()


def test_folding_keeps_the_two_norms_of_each_strip_attention():
    model = build_model("s2fpn18", num_classes=5)
    simple = simplify(model)
    left = [name for name, module in simple.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == 8
    assert all(".ssam.bn_" in name for name in left)


def test_folded_norm_equals_the_formula():
    conv, norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    sequence = nn.Sequential(conv, norm).eval()
    fold_batch_norms(sequence)
    torch.testing.assert_close(sequence[0].weight, weight)
    torch.testing.assert_close(sequence[0].bias, bias)


@pytest.mark.parametrize("options", [{}, {"ssam": False}, {"crb": False}, {"strip_axis": "width"}], ids=str)
@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_split_frb_equals_frb(revision, options):
    apf = trained_like(APF(8, 6, 4, revision=revision, **options)).requires_grad_(False)
    high, low = torch.randn(2, 8, 5, 7).double(), torch.randn(2, 6, 10, 13).double()
    expected = apf(high, low)
    fold_batch_norms(apf)
    apf.frb = SplitFRB(apf.frb).double()
    for result, wanted in zip(apf(high, low), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)  # gates are float32 inside


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_simplified_network_in_double_precision(revision):
    model = trained_like(build_model("s2fpn_lite", revision=revision, num_classes=5))
    x = torch.randn(1, 3, 45, 71).double()
    with torch.inference_mode():
        # the softmax of attention is always in float32
        torch.testing.assert_close(simplify(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_simplified_network_is_split_and_has_no_auxiliary_heads():
    simple = simplify(build_model("s2fpn_lite", num_classes=5))
    assert [type(level.frb) for level in simple.apf_levels] == [SplitFRB] * 4
    assert len(simple.auxiliary) == 0
