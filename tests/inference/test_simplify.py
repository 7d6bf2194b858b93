"""Each rewriting for inference against the function that it replaces."""

import pytest
import torch
from torch import nn

from s2fpn_lib.inference.simplify import SplitAPF, fold_batch_norms, simplify
from s2fpn_lib.model import build_model
from s2fpn_lib.model.apf import APF


def lived_in(module):
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


def test_folding_leaves_only_the_two_norms_of_each_strip_attention():
    model = build_model("s2fpn18", num_classes=5)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    simple = simplify(model)
    left = [name for name, module in simple.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == 8
    assert all(".ssam.bn_" in name for name in left)
    assert norms - 8 - 4 > 0, "four belong to auxiliary heads"
    assert fold_batch_norms(simple) == 0


def test_a_folded_norm_is_the_closed_form():
    conv, norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    sequence = nn.Sequential(conv, norm).eval()
    assert fold_batch_norms(sequence) == 1
    torch.testing.assert_close(sequence[0].weight, weight)
    torch.testing.assert_close(sequence[0].bias, bias)


@pytest.mark.parametrize("options", [{}, {"ssam": False}, {"crb": False}, {"strip_axis": "width"}], ids=str)
@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_a_split_apf_is_the_apf(revision, options):
    apf = lived_in(APF(8, 6, 4, revision=revision, **options)).requires_grad_(False)
    high, low = torch.randn(2, 8, 5, 7).double(), torch.randn(2, 6, 10, 13).double()
    expected = apf(high, low)
    fold_batch_norms(apf)
    for result, wanted in zip(SplitAPF(apf).double()(high, low), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)  # gates are float32 inside


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_a_simplified_network_is_the_network_in_double_precision(revision):
    model = lived_in(build_model("s2fpn_lite", revision=revision, num_classes=5))
    x = torch.randn(1, 3, 45, 71).double()
    with torch.inference_mode():
        # attention takes its softmax in float32 whatever comes in
        torch.testing.assert_close(simplify(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_no_concatenation_is_left_in_the_pyramid_of_v1():
    simple = simplify(build_model("s2fpn_lite", num_classes=5))
    assert [type(level) for level in simple.apf_levels] == [SplitAPF] * 4
    assert len(simple.auxiliary) == 0
