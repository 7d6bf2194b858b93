"""Attribution against the equations of the strip attention, written out with the entries replaced by hand."""

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.attention.statistics import gradient, occlusion, switched
from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import open_dataset
from s2fpn_lib.model.ssam import SSAMv1
from s2fpn_lib.model.tta import at_size

IMAGE = at_size(open_dataset("roadscenes", split="val", cache=False)[0][0], (32, 64))
PIXEL, CLASS = (20, 47), 2
WEIGHTS = {"v1": "s2fpn_lite-camvid-v1", "v2": "s2fpn_lite-camvid-train"}


def network(revision, **switches):
    """A trained network, because the maps of an untrained one vanish, in float64."""
    model = load_model(WEIGHTS[revision])
    assert model.config["revision"] == revision
    return switched(model, **switches).double()


def logit_with(model, level, columns, step, dim):
    """The logit where the entries of some columns of a level moved by `step` toward their mean over the columns."""
    ssam = getattr(model, level).ssam
    gate = ssam if model.config["revision"] == "v1" else ssam.attention

    def moved(strip):
        out = strip.clone()
        for column in columns:
            place = (slice(None), slice(None), slice(None), column) if dim == 3 else (slice(None), slice(None), column)
            out[place] += step * (strip.mean(dim) - strip[place])
        return out

    def forward_v1(x):
        strips = [x.amax(5 - dim, keepdim=True), x.mean(5 - dim, keepdim=True)]
        m, a = (
            moved(norm(F.conv2d(each, gate.shared.weight)))
            for norm, each in zip((gate.bn_max, gate.bn_avg), strips, strict=True)
        )
        share = torch.exp(m * a) / torch.exp(m * a).sum(1, keepdim=True)
        s = F.conv2d(share[:, :1] * a + share[:, 1:2] * m, gate.fuse.weight)
        return torch.relu(gate.gamma * s + (1 - gate.gamma) * x)

    def forward_v2(x):
        m = moved(gate.bn_max(F.conv2d(x.amax(5 - dim, keepdim=True), gate.shared.weight)))
        q = gate.bn_query(F.conv2d(x, gate.shared.weight))
        v = moved(F.conv2d(x.mean(5 - dim, keepdim=True), gate.value.weight, gate.value.bias))
        p = torch.einsum("bcl,bchw->blhw", m.flatten(2), q).softmax(1)
        t = F.conv2d(torch.einsum("bcl,blhw->bchw", v.flatten(2), p), gate.augment.weight, gate.augment.bias)
        s = F.conv2d(t[:, :1] * q + t[:, 1:2] * m, gate.fuse.weight)
        return F.conv2d(torch.relu(gate.gamma * s + (1 - gate.gamma) * x), gate.fuse_out.weight)

    gate.forward = forward_v1 if gate is ssam else forward_v2
    try:
        with torch.no_grad():
            return model(model.preprocess(IMAGE[None]).double())[0, CLASS, *PIXEL].item()
    finally:
        del gate.forward


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    """Nothing is rounded to float32 on the way, as it would be in inputs and gates."""
    monkeypatch.setattr("s2fpn_lib.model.S2FPN.preprocess", lambda self, x: (x.double() - self.mean) / self.std)
    monkeypatch.setattr(SSAMv1, "gates", staticmethod(lambda m, a: torch.softmax(m * a, dim=1)))


CASES = [("v1", "height"), ("v2", "height"), ("v1", "width"), ("v2", "width")]


@pytest.mark.parametrize(("revision", "axis"), CASES)
def test_occlusion_against_replaced_entries(revision, axis):
    model, dim = network(revision, strip_axis=axis), {"height": 3, "width": 2}[axis]
    logit, single, together = occlusion(model, IMAGE, PIXEL, CLASS, groups=3, batch=3)
    assert list(single) == ["apf1", "apf2", "apf3", "apf4"]
    assert logit == pytest.approx(logit_with(model, "apf1", [], 1, dim), abs=1e-12)
    for level, length in zip(single, {3: (4, 8, 16, 32), 2: (2, 4, 8, 16)}[dim], strict=True):
        groups = min(3, length)
        assert len(single[level]) == groups
        chosen = groups - 2
        columns = [column for column in range(length) if column * groups // length == chosen]
        expected = logit - logit_with(model, level, columns, 1, dim)
        assert single[level][chosen].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)
        expected = logit - logit_with(model, level, range(length), 1, dim)
        assert together[level] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert any(abs(value) > 1e-4 for value in together.values())


@pytest.mark.parametrize(("revision", "axis"), CASES[:3])
def test_gradient_against_a_difference_quotient(revision, axis):
    model, dim = network(revision, strip_axis=axis), {"height": 3, "width": 2}[axis]
    found = gradient(model, IMAGE, PIXEL, CLASS)
    for level, values in found.items():
        column, step = len(values) - 1, 1e-5
        ahead, behind = (logit_with(model, level, [column], sign * step, dim) for sign in (1, -1))
        assert values[column].item() == pytest.approx((behind - ahead) / (2 * step), rel=1e-3, abs=1e-8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was():
    model = network("v2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    occlusion(model, IMAGE, PIXEL, CLASS, groups=2)
    gradient(model, IMAGE, PIXEL, CLASS)
    assert model.training
    assert "forward" not in vars(model.encoder)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_strips_there_is_nothing_to_attribute():
    model = network("v1", ssam=False)
    logit, single, together = occlusion(model, IMAGE, PIXEL, CLASS)
    assert (single, together, gradient(model, IMAGE, PIXEL, CLASS)) == ({}, {}, {})
    assert logit == pytest.approx(model(model.preprocess(IMAGE[None]))[0, CLASS, *PIXEL].item())
