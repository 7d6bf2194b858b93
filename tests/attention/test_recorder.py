"""Recorded values against the equations of docs/network.md written out on the state dict; no hook stays behind."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.inference import optimize_for_inference
from s2fpn_lib.model import build_model

LEVELS = ("apf1", "apf2", "apf3", "apf4")


def image(height=32, width=64, batch=2, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Moves every vector of the model away from its initial value, among them gamma and the norms' statistics."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.2)
            if "running_mean" in name or name.endswith("bias"):
                tensor.sub_(0.6)
    return model


class Equations:
    """The levels of a model in float64, computed from its state dict; of the model's code only the encoder is used."""

    def __init__(self, model: torch.nn.Module, *, revision: str, training: bool, dim: int) -> None:
        self.state = {name: value.double() for name, value in model.state_dict().items()}
        self.encoder = copy.deepcopy(model.encoder).double().train(training)
        self.projected = not isinstance(model.project[0], torch.nn.Identity)
        self.revision, self.training, self.dim = revision, training, dim

    def norm(self, x, name):
        s = self.state
        mean, variance = (None, None) if self.training else (s[f"{name}.running_mean"], s[f"{name}.running_var"])
        return F.batch_norm(x, mean, variance, s[f"{name}.weight"], s[f"{name}.bias"], self.training, 0.1, 1e-5)

    def plain(self, x, name):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def block(self, x, name, **options):
        """ConvBNAct."""
        weight = self.state[f"{name}.conv.weight"]
        x = self.norm(F.conv2d(x, weight, padding=weight.shape[-1] // 2, **options), f"{name}.bn")
        return x.relu() if self.revision == "v1" else F.prelu(x, self.state[f"{name}.act.weight"])

    def levels(self, images):
        maps = self.encoder(images.double())
        if self.projected:
            maps = [self.block(x, f"project.{i}") for i, x in enumerate(maps)]
        high = self.block(maps[3], "cfgb.0", stride=2, groups=maps[3].shape[1])
        found = {}
        for name, low in zip(LEVELS, (maps[3], maps[2], maps[1], maps[0]), strict=True):
            lateral = self.block(low, f"{name}.lateral_low")
            up = F.interpolate(high, lateral.shape[-2:], mode="bilinear", align_corners=False)
            r = self.block(self.block(torch.cat([lateral, up], 1), f"{name}.frb.0"), f"{name}.frb.1")
            out, values = (self.v1 if self.revision == "v1" else self.v2)(r, f"{name}.ssam")
            hidden = self.plain(r.mean((2, 3), keepdim=True), f"{name}.crb.reduce").relu()
            weights = self.plain(hidden, f"{name}.crb.expand").sigmoid()
            fused = out * self.block(up, f"{name}.conv_high") + r * weights * self.block(lateral, f"{name}.conv_low")
            head = f"auxiliary.{LEVELS.index(name)}"
            aux = self.plain(self.block(fused, f"{head}.0"), f"{head}.2")
            found[name] = values | {"refined": r, "crb": weights[:, :, 0, 0], "auxiliary": aux}
            high = self.block(fused, f"{name}.out")
        return found

    def strips(self, x):
        return x.amax(self.dim, keepdim=True), x.mean(self.dim, keepdim=True)

    def blend(self, s, x, name):
        g = self.state[f"{name}.gamma"]
        fused = self.plain(s, f"{name}.fuse").expand_as(x)
        mean = (g * fused).abs().mean((1, 2, 3)), ((1 - g) * x).abs().mean((1, 2, 3))
        return (g * fused + (1 - g) * x).relu(), mean[0] / (mean[0] + mean[1])

    def v1(self, x, name):
        maximum, average = self.strips(x)
        m = self.norm(self.plain(maximum, f"{name}.shared"), f"{name}.bn_max")
        a = self.norm(self.plain(average, f"{name}.shared"), f"{name}.bn_avg")
        gates = (m * a).exp() / (m * a).exp().sum(1, keepdim=True)
        out, share = self.blend(gates[:, 0:1] * a + gates[:, 1:2] * m, x, name)
        return out, {
            "strip_max": m.flatten(2), "strip_avg": a.flatten(2), "gates": gates[:, :2].flatten(2),
            "attended_share": share,
        }  # fmt: skip

    def v2(self, x, name):
        at = f"{name}.attention"
        maximum, average = self.strips(x)
        m = self.norm(self.plain(maximum, f"{at}.shared"), f"{at}.bn_max")
        q = self.norm(self.plain(x, f"{at}.shared"), f"{at}.bn_query")
        p = (m.flatten(2).transpose(1, 2) @ q.flatten(2)).softmax(1)  # (B, L, HW)
        t = self.plain((self.plain(average, f"{at}.value").flatten(2) @ p).reshape(x.shape), f"{at}.augment")
        blended, share = self.blend(t[:, 0:1] * q + t[:, 1:2] * m, x, at)
        y = x + self.plain(blended, f"{at}.fuse_out")
        branches = [self.dilated(y, f"{name}.mlp.dilated{d}", d) for d in (2, 4)]
        out = y + self.plain(torch.cat(branches, 1), f"{name}.mlp.fuse").sigmoid()
        return out, {
            "strip_max": m.flatten(2), "strip_avg": average.flatten(2), "gates": t[:, :2], "query": q, "columns": p,
            "attended_share": share,
        }  # fmt: skip

    def dilated(self, x, name, dilation):
        x = F.conv2d(x, self.state[f"{name}.conv.weight"], padding=dilation, dilation=dilation)
        return F.prelu(self.norm(x, f"{name}.bn"), self.state[f"{name}.act.weight"])


@pytest.mark.parametrize(
    ("name", "strip_axis", "training"),
    [
        ("s2fpn_lite", "width", True),
        ("s2fpn18", "height", False),
    ],
)
@pytest.mark.parametrize("revision", ["v1", "v2"])
@torch.no_grad()
def test_values_match_the_equations(name, revision, strip_axis, training):
    torch.manual_seed(0)
    model = build_model(name, revision=revision, num_classes=5, strip_axis=strip_axis, dropout=0.0)
    model = randomized(model).double().train(training)
    equations = Equations(model, revision=revision, training=training, dim={"height": 2, "width": 3}[strip_axis])
    equations.projected = name == "s2fpn_lite"
    x = image(96, 64).double()  # no strip shorter than two entries, so that no norm sees a single value
    with AttentionRecorder(model) as recorder:
        model(x, aux=True)
    expected = equations.levels(x)
    for level in recorder.capture.levels:
        for key, value in expected[level.name].items():
            found = columns(level) if key == "columns" else getattr(level, key)
            assert found.dtype == torch.float32
            # The scores of a column, in the hundreds here, are rounded to float32 before their softmax
            close = {"rtol": 1e-3, "atol": 3e-4} if key == "columns" else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(found, value.float(), **close, msg=lambda m, k=key: f"{k}: {m}")
        assert level.strip_axis == strip_axis
        assert level.size == expected[level.name]["refined"].shape[-2:]
        prefix = f"{level.name}.ssam" + (".attention" if revision == "v2" else "")
        assert level.gamma == pytest.approx(model.state_dict()[f"{prefix}.gamma"].item())


def columns(level):
    """(B, L, h * w): the distributions of all pixels."""
    h, w = level.size
    return torch.stack([level.column_attention(y, x) for y in range(h) for x in range(w)], 2)


def test_column_attention_is_a_distribution_per_pixel():
    torch.manual_seed(0)
    model = randomized(build_model("s2fpn_lite", revision="v2", num_classes=5)).eval()
    with AttentionRecorder(model) as recorder:
        model(image())
    for level in recorder.capture.levels[:2]:
        torch.testing.assert_close(columns(level).sum(1), torch.ones(2, level.size[0] * level.size[1]))
        with pytest.raises(IndexError):
            level.column_attention(level.size[0], 0)


def test_v1_has_no_distribution_over_columns():
    model = build_model("s2fpn_lite", num_classes=5).eval()
    with AttentionRecorder(model) as recorder:
        model(image())
    with pytest.raises(LookupError, match="v1 has two gates per column"):
        recorder.capture.levels[0].column_attention(0, 0)


@pytest.mark.parametrize(("revision", "pool"), [("v1", False), ("v2", False), ("v2", True)])
@torch.no_grad()
def test_gfu_values_match_the_equations(revision, pool):
    torch.manual_seed(0)
    model = randomized(build_model("s2fpn_lite", revision=revision, num_classes=5, gfu_pool=pool)).double().eval()
    x = image().double()
    with AttentionRecorder(model) as recorder:
        model(x)
    pyramid = model.pyramid(x)
    equations = Equations(model, revision=revision, training=False, dim=2)
    coarse = model.fab(model.project[3](model.encoder(x)[3]))
    for gfu, p, result in zip(recorder.capture.gfu, pyramid.apf, pyramid.gfu, strict=True):
        size = p.shape[-2:]
        f = coarse.mean((2, 3), keepdim=True) if pool else F.interpolate(
            coarse, size, mode="bilinear", align_corners=True
        )  # fmt: skip
        context, fine = equations.plain(f, f"{gfu.name}.conv2").relu(), equations.block(p, f"{gfu.name}.conv1")
        expected = {"context": context, "fine": fine}
        if revision == "v2":
            h1, h2 = equations.block(context + fine, f"{gfu.name}.conv3").chunk(2, 1)
            gate = equations.norm(equations.plain(h2, f"{gfu.name}.s2.0"), f"{gfu.name}.s2.1").sigmoid()
            expected |= {"s1": equations.block(h1, f"{gfu.name}.s1"), "s2": gate}
        else:
            assert gfu.s1 is None
            assert gfu.s2 is None
        for key, value in expected.items():
            torch.testing.assert_close(getattr(gfu, key), value.float(), rtol=2e-4, atol=2e-5)
        coarse = result


def none_of(level, *names):
    return all(getattr(level, name) is None for name in names)


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_switched_off_parts_are_none(revision):
    def recorded(**switches):
        model = build_model("s2fpn_lite", revision=revision, num_classes=5, **switches).eval()
        with AttentionRecorder(model) as recorder, torch.inference_mode():
            model(image())
        return recorder.capture

    strips = ("strip_axis", "gamma", "strip_max", "strip_avg", "gates", "query", "attended_share")
    without_ssam = recorded(ssam=False).levels[1]
    assert none_of(without_ssam, *strips)
    assert without_ssam.crb.shape == (2, 48)
    with pytest.raises(LookupError, match="SSAM is off"):
        without_ssam.column_attention(0, 0)
    without_crb = recorded(crb=False).levels[1]
    assert without_crb.crb is None
    assert without_crb.gates is not None
    without_apf = recorded(apf=False).levels[1]
    assert none_of(without_apf, *strips, "crb", "refined")
    assert without_apf.auxiliary.shape == (2, 5, *without_apf.size)
    assert recorded(gfu=False).gfu is None
    without_heads = recorded(deep_supervision=False)
    assert all(level.auxiliary is None for level in without_heads.levels)


def test_another_encoder_and_an_odd_size():
    model = build_model("s2fpn50", revision="v2", num_classes=3).eval()
    with AttentionRecorder(model) as recorder, torch.inference_mode():
        logits = model(image(45, 71, batch=1))
    assert torch.equal(recorder.capture.logits, logits)
    assert [level.name for level in recorder.capture.levels] == list(LEVELS)
    assert [gfu.name for gfu in recorder.capture.gfu] == ["gfu4", "gfu3", "gfu2", "gfu1"]
    for level in recorder.capture.levels:
        assert level.gates.shape == (1, 2, *level.size)
        assert level.auxiliary.shape == (1, 3, *level.size)


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def tensors(capture):
    for part in (capture, *capture.levels, *capture.gfu):
        yield from (value for value in vars(part).values() if isinstance(value, torch.Tensor))


def test_no_hook_stays_behind():
    model = build_model("s2fpn_lite", revision="v2", num_classes=5)
    with AttentionRecorder(model) as outer:
        with AttentionRecorder(model) as inner:
            model(image())
        assert hooks(model) > 0
        with pytest.raises(ValueError, match="at least 32x32"):
            model(image(8, 8))
    assert hooks(model) == 0
    assert torch.equal(outer.capture.levels[2].auxiliary, inner.capture.levels[2].auxiliary)
    with pytest.raises(KeyError), AttentionRecorder(model):
        raise KeyError
    assert hooks(model) == 0
    with AttentionRecorder(model) as recorder, pytest.raises(RuntimeError, match="recording already"):
        recorder.__enter__()
    assert hooks(model) == 0


def test_a_failed_pass_is_not_mixed_with_the_next():
    model = build_model("s2fpn_lite", num_classes=5).eval()
    with AttentionRecorder(model) as recorder:
        model(image(batch=1))
        with pytest.raises(ValueError):
            model(image(8, 8))
        assert recorder.capture.logits.shape == (1, 5, 32, 64)
        model(image(batch=3))
    assert {len(tensor) for tensor in tensors(recorder.capture)} == {3}


def test_training_is_the_same_with_a_recorder():
    def step(record):
        torch.manual_seed(0)
        model = randomized(build_model("s2fpn_lite", revision="v2", num_classes=5)).train()
        if record:
            with AttentionRecorder(model) as recorder:
                loss = model(image()).square().mean()
            assert not any(tensor.requires_grad for tensor in tensors(recorder.capture))
        else:
            loss = model(image()).square().mean()
        loss.backward()
        return model

    recorded, plain = step(True), step(False)
    assert all(module.training for module in recorded.modules())
    for (name, a), b in zip(recorded.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    gradients = [(a.grad, b.grad) for a, b in zip(recorded.parameters(), plain.parameters(), strict=True)]
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in gradients)


def test_auxiliary_predictions_are_the_models_own():
    model = randomized(build_model("s2fpn_lite", num_classes=5)).eval()
    with AttentionRecorder(model) as recorder, torch.inference_mode():
        model(image())
        left_out = [level.auxiliary for level in recorder.capture.levels]
        _, auxiliary = model(image(), aux=True, resize=False)
    for alone, own, level in zip(left_out, auxiliary, recorder.capture.levels, strict=True):
        assert torch.equal(alone, own)
        assert torch.equal(level.auxiliary, own)


def test_autocast_and_half_precision_are_recorded_as_float32():
    model = randomized(build_model("s2fpn_lite", revision="v2", num_classes=5)).eval()
    with AttentionRecorder(model) as recorder, torch.inference_mode():
        model(image())
        exact = recorder.capture
        with torch.autocast("cpu", torch.bfloat16):
            model(image())
    assert {tensor.dtype for tensor in tensors(recorder.capture)} == {torch.float32}
    torch.testing.assert_close(recorder.capture.levels[0].crb, exact.levels[0].crb, rtol=0.05, atol=0.05)


def test_models_that_cannot_be_recorded_are_refused():
    model = build_model("s2fpn_lite", num_classes=5).eval()
    with pytest.raises(LookupError, match="call the model itself"), AttentionRecorder(model) as recorder:
        recorder.capture  # noqa: B018
    fast = optimize_for_inference(model, image(), verbose=False)
    with pytest.raises(TypeError, match="pass the one that was given to optimize_for_inference"):
        AttentionRecorder(fast)
    with pytest.raises(TypeError, match=r"before torch\.compile"):
        AttentionRecorder(torch.compile(model))
    compiled = copy.deepcopy(model)
    compiled.compile()
    with pytest.raises(TypeError, match=r"before torch\.compile"):
        AttentionRecorder(compiled)
    with pytest.raises(TypeError, match="not Linear"):
        AttentionRecorder(torch.nn.Linear(1, 1))


def test_distributed_wrapper_is_unwrapped(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = build_model("s2fpn_lite", num_classes=5).eval()
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        with AttentionRecorder(wrapped) as recorder:
            logits = wrapped(image())
        assert torch.equal(recorder.capture.logits, logits)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.cuda
def test_tensors_stay_on_the_models_device(device):
    model = randomized(build_model("s2fpn_lite", revision="v2", num_classes=5)).to(device).eval()
    with AttentionRecorder(model) as recorder, torch.inference_mode():
        model(image().to(device))
    assert {tensor.device.type for tensor in tensors(recorder.capture)} == {device.type}
    assert recorder.capture.levels[3].column_attention(0, 0).device.type == device.type
