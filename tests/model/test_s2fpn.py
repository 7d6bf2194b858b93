"""Checks that every network of the library passes, then the switches and the errors."""

import copy
from urllib.error import URLError

import pytest
import torch
import torchvision

from s2fpn_lib.model import ENCODERS, NORMALIZATIONS, build_model
from s2fpn_lib.model.complexity import measure_complexity

SMALL = ("s2fpn18", "s2fpn34m", "s2fpn_lite")


def image(height=32, width=64, batch=2, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[(name, revision) for name in SMALL for revision in ("v1", "v2")], ids="-".join)
def model(request):
    name, revision = request.param
    torch.manual_seed(0)
    return build_model(name, revision=revision, num_classes=7)


class TestEveryModel:
    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 45)])
    def test_any_size_from_32(self, model, size):
        with torch.inference_mode():
            logits, auxiliary = model.eval()(image(*size, batch=1), aux=True)
        assert logits.shape == (1, 7, *size)
        assert [level.shape for level in auxiliary] == [(1, 7, *size)] * 4
        assert torch.isfinite(logits).all()

    def test_logits_do_not_depend_on_the_auxiliary_heads(self, model):
        model.eval()
        with torch.inference_mode():
            alone, (beside, _) = model(image()), model(image(), aux=True)
        assert torch.equal(alone, beside)

    def test_resolutions_without_resize(self, model):
        stride = 2 if ENCODERS[model.config["name"]].double_resolution else 4
        with torch.inference_mode():
            logits, auxiliary = model.eval()(image(64, 128), aux=True, resize=False)
        assert logits.shape[-2:] == (64 // stride, 128 // stride)
        assert [64 // level.shape[-2] for level in auxiliary] == [8 * stride, 4 * stride, 2 * stride, stride]

    def test_every_parameter_has_a_gradient(self, model):
        model = copy.deepcopy(model)
        for parameter in model.parameters():  # a parameter that is 0 (as gamma is at first) passes no gradient on
            if parameter.ndim == 1:
                torch.nn.init.constant_(parameter, 0.5)
        logits, auxiliary = model.train()(image(), aux=True)
        sum(output.square().mean() for output in (logits, *auxiliary)).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not without
        changing = [p.grad.abs().sum() > 0 for p in model.parameters()]
        assert sum(changing) > 0.97 * len(changing)

    def test_config_rebuilds_it(self, model):
        twin = build_model(**model.config).eval()
        twin.load_state_dict(model.state_dict())
        with torch.inference_mode():
            assert torch.equal(twin(image()), model.eval()(image()))

    def test_images_of_a_batch_are_independent(self, model):
        x = image(batch=3)
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


# docs/network.md, "Size and cost": parameters in millions, GMACs; 19 classes, 512x1024, without auxiliary heads.
@pytest.mark.parametrize(("name", "revision", "millions", "gigamacs"), [
    ("s2fpn18", "v1", 17.10, 27.81), ("s2fpn34", "v1", 27.20, 47.14), ("s2fpn34m", "v1", 27.20, 184.8),
    ("s2fpn18", "v2", 20.94, 34.56), ("s2fpn34", "v2", 31.04, 53.89), ("s2fpn34m", "v2", 31.04, 214.7),
])  # fmt: skip
def test_published_parameters_and_macs(name, revision, millions, gigamacs):
    model = build_model(name, revision=revision, num_classes=19).to("meta")
    with torch.device("meta"):
        complexity = measure_complexity(model, (512, 1024))
    assert round(complexity.megaparameters, 2) == millions
    assert complexity.gigamacs == pytest.approx(gigamacs, abs=0.06)


class TestSwitches:
    @pytest.mark.parametrize("revision", ["v1", "v2"])
    @pytest.mark.parametrize("switch", [
        {"ssam": False}, {"crb": False}, {"apf": False}, {"gfu": False}, {"gfu_pool": True}, {"strip_axis": "width"},
        {"gamma_init": 0.5}, {"dropout": 0.0}, {"apf": False, "gfu": False, "deep_supervision": False},
    ], ids=str)  # fmt: skip
    def test_each_builds_a_working_network(self, switch, revision):
        model = build_model("s2fpn_lite", revision=revision, num_classes=4, **switch)
        logits, auxiliary = model.train()(image(), aux=True)
        assert logits.shape == (2, 4, 32, 64)
        assert len(auxiliary) == (0 if switch.get("deep_supervision") is False else 4)
        (logits.mean() + sum(level.mean() for level in auxiliary)).backward()

    def test_switched_off_parts_leave_no_parameters(self):
        def names(**switches):
            model = build_model("s2fpn18", num_classes=4, **switches)
            return " ".join(name for name, _ in model.named_parameters())

        full = names()
        for part, marker in (
            ("ssam", ".ssam."),
            ("crb", ".crb."),
            ("apf", ".conv_high."),
            ("gfu", "gfu1.conv3"),
        ):
            assert marker in full
            assert marker not in names(**{part: False})
        assert "auxiliary." not in names(deep_supervision=False)

    def test_ssam_off_and_crb_off(self):
        """With gamma at 0, SSAM v1 is relu(x) of a map that is not negative: the same as an identity."""
        torch.manual_seed(0)
        model = build_model("s2fpn18", num_classes=4).eval()
        off = build_model("s2fpn18", num_classes=4, ssam=False).eval()
        off.load_state_dict({k: v for k, v in model.state_dict().items() if ".ssam." not in k})
        with torch.inference_mode():
            assert torch.equal(off(image()), model(image()))
            high, low = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 16, 16)
            plain = build_model("s2fpn18", num_classes=4, ssam=False, crb=False).apf4.eval()
            lateral = plain.lateral_low(low)
            up = torch.nn.functional.interpolate(high, size=(16, 16), mode="bilinear", align_corners=False)
            refined = plain.frb(lateral, high, up)
            expected = refined * plain.conv_high(up) + plain.conv_low(lateral)
            torch.testing.assert_close(plain(high, low)[1], expected)

    def test_apf_off_is_a_feature_pyramid(self):
        level = build_model("s2fpn18", num_classes=4, apf=False).apf4.eval()
        high, low = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 16, 16)
        with torch.inference_mode():
            up = torch.nn.functional.interpolate(high, size=(16, 16), mode="bilinear", align_corners=False)
            torch.testing.assert_close(level(high, low)[0], level.out(level.lateral_low(low) + up))

    def test_gfu_off_is_upsample_and_add(self):
        block = build_model("s2fpn18", num_classes=4, gfu=False).gfu1.eval()
        p, f = torch.randn(1, 32, 16, 16), torch.randn(1, 64, 8, 8)
        with torch.inference_mode():
            up = torch.nn.functional.interpolate(f, size=(16, 16), mode="bilinear", align_corners=True)
            torch.testing.assert_close(block(p, f), p + block.conv2(up), rtol=1e-4, atol=1e-5)

    def test_strip_axis_width_is_the_transposed_network(self):
        """Pooling over the width of an image is pooling over the height of its transpose."""
        for revision in ("v1", "v2"):
            module = build_model("s2fpn_lite", revision=revision, num_classes=4, gamma_init=0.7).apf4.ssam.eval()
            turned = build_model("s2fpn_lite", revision=revision, num_classes=4, strip_axis="width").apf4.ssam.eval()
            turned.load_state_dict({k: v.transpose(2, 3) if v.ndim == 4 else v for k, v in module.state_dict().items()})
            x = torch.randn(2, 32, 10, 14)
            with torch.inference_mode():
                torch.testing.assert_close(turned(x.transpose(2, 3)).transpose(2, 3), module(x), rtol=1e-4, atol=1e-5)


class TestPreprocess:
    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_closed_form(self, normalization):
        model = build_model("s2fpn_lite", num_classes=2, normalization=normalization)
        images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[normalization])
        torch.testing.assert_close(model.preprocess(images), (images.float() - mean) / std)

    def test_default_is_the_encoders(self):
        assert build_model("s2fpn_lite", num_classes=2).config["normalization"] == "lite"
        assert build_model("s2fpn18", num_classes=2).config["normalization"] == "imagenet"

    def test_float_images_are_rejected(self):
        with pytest.raises(ValueError, match="uint8 RGB"):
            build_model("s2fpn_lite", num_classes=2).preprocess(torch.rand(1, 3, 8, 8))


class TestErrors:
    def test_unknown_names_suggest_the_nearest(self):
        with pytest.raises(ValueError, match="Did you mean 's2fpn_lite'"):
            build_model("s2fpn_light", num_classes=2)
        with pytest.raises(TypeError, match="Did you mean 'ssam'"):
            build_model("s2fpn18", num_classes=2, sam=False)
        with pytest.raises(ValueError, match="unknown revision 'v3'"):
            build_model("s2fpn18", num_classes=2, revision="v3")
        with pytest.raises(ValueError, match="unknown strip_axis"):
            build_model("s2fpn18", num_classes=2, strip_axis="rows")
        with pytest.raises(ValueError, match="unknown normalization"):
            build_model("s2fpn18", num_classes=2, normalization="zero")

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            ({"ssam": "off"}, TypeError, "switch ssam is 'off' .* expected bool"),  # truthy text
            ({"crb": 0}, TypeError, "switch crb is 0 .* expected bool"),
            ({"dropout": True}, TypeError, "switch dropout is True .* expected float"),
            ({"num_classes": "11"}, ValueError, "whole number of at least 1, got '11'"),
            ({"num_classes": 0}, ValueError, "whole number of at least 1, got 0"),
            ({"encoder_weights": "imagnet"}, FileNotFoundError, 'neither "imagenet" nor a state'),
        ],
        ids=str,
    )
    def test_invalid_values(self, wrong, error, message):
        with pytest.raises(error, match=message):
            build_model("s2fpn18", **{"num_classes": 2, **wrong})

    def test_invalid_inputs(self):
        model = build_model("s2fpn_lite", num_classes=2).eval()
        with pytest.raises(ValueError, match="at least 32x32 pixels, got 31x64"):
            model(torch.zeros(1, 3, 31, 64))
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
            model(torch.zeros(1, 1, 64, 64))
        with pytest.raises(TypeError, match=r"model\.preprocess"):
            model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))

    def test_imagenet_weights_offline_name_the_file_to_fetch(self, monkeypatch, tmp_path):
        def offline(*args, **kwargs):
            raise URLError("no route to host")

        monkeypatch.setattr(torch.hub, "_dir", str(tmp_path), raising=False)
        monkeypatch.setattr("torch.hub.download_url_to_file", offline)
        with pytest.raises(RuntimeError, match=r"(?s)no route to host.*put it at .*resnet18.*encoder_weights"):
            build_model("s2fpn18", num_classes=2, encoder_weights="imagenet")

    def test_imagenet_weights_from_a_file(self, tmp_path):
        torch.manual_seed(3)
        donor = torchvision.models.resnet18(weights=None)
        torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
        model = build_model("s2fpn18", num_classes=2, encoder_weights=tmp_path / "resnet18.pth")
        assert torch.equal(model.encoder.layer3[1].conv2.weight, donor.layer3[1].conv2.weight)

    @pytest.mark.parametrize("name", ["s2fpn18", "s2fpn_lite"])
    def test_encoder_weights_run_no_code(self, name, tmp_path):
        torch.save({"weights": torch.nn.ReLU()}, tmp_path / "pickled.pth")
        with pytest.raises(RuntimeError, match=r"pickled\.pth is damaged, or holds pickled objects"):
            build_model(name, num_classes=2, encoder_weights=tmp_path / "pickled.pth")
