"""Statistics of the attention against known cases and loops over pixels; networks with switched-off parts."""

import math

import numpy as np
import pytest
import torch

from s2fpn_lib.attention import statistics as module
from s2fpn_lib.attention.recorder import AttentionRecorder, GFUCapture, LevelCapture
from s2fpn_lib.attention.statistics import (
    attention_statistics,
    coarse_share,
    column_statistics,
    crb_passes,
    level_statistics,
    switched,
    untrained_warning,
)
from s2fpn_lib.data import open_dataset
from s2fpn_lib.model import build_model


def v2_level(query, keys, size, strip_axis="height"):
    gates = torch.zeros(len(query), 2, *size)
    share = torch.zeros(len(query))
    return LevelCapture(
        "apf1", size, strip_axis, 0.5, query, keys, keys, gates, query=query, attended_share=share
    )  # fmt: skip


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_uniform_attention(strip_axis):
    h, w = 6, 9
    length = w if strip_axis == "height" else h
    level = v2_level(torch.zeros(2, 3, h, w), torch.randn(2, 3, length), (h, w), strip_axis)
    entropy, reach = column_statistics(level)
    torch.testing.assert_close(entropy, torch.ones(2))
    torch.testing.assert_close(reach, torch.full((2,), (length**2 - 1) / (3 * length**2)))


def test_attention_to_a_single_column():
    h, w = 4, 8
    keys = torch.zeros(1, 1, w)
    keys[0, 0, 2] = 1000.0
    entropy, reach = column_statistics(v2_level(torch.ones(1, 1, h, w), keys, (h, w)))
    assert entropy.item() == pytest.approx(0, abs=1e-6)
    assert reach.item() == pytest.approx(np.mean([abs(2 - x) / w for x in range(w)]))


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_statistics_match_a_loop_over_pixels(strip_axis, monkeypatch):
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 12)  # two rows of pixels at a time, the last time one
    generator = torch.Generator().manual_seed(0)
    h, w = 5, 6
    length = w if strip_axis == "height" else h
    query = torch.randn(2, 3, h, w, generator=generator)
    keys = torch.randn(2, 3, length, generator=generator)
    entropy, reach = column_statistics(v2_level(query, keys, (h, w), strip_axis))
    for b in range(2):
        entropies, reaches = [], []
        for y in range(h):
            for x in range(w):
                scores = [math.exp(float(query[b, :, y, x] @ keys[b, :, j])) for j in range(length)]
                p = [score / sum(scores) for score in scores]
                own = x if strip_axis == "height" else y
                entropies.append(-sum(q * math.log(q) for q in p) / math.log(length))
                reaches.append(sum(q * abs(j - own) for j, q in enumerate(p)) / length)
        assert entropy[b].item() == pytest.approx(np.mean(entropies), abs=1e-5)
        assert reach[b].item() == pytest.approx(np.mean(reaches), abs=1e-5)


def test_gates_of_v1_and_channel_weights():
    gates = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.0, 0.4, 0.0, 0.0]]])
    crb = torch.tensor([[0.2, 0.8]])
    strips = torch.zeros(1, 2, 4)
    level = LevelCapture(
        "apf1", (3, 4), "height", 0.1, None, strips, strips, gates, attended_share=torch.tensor([0.3]), crb=crb
    )  # fmt: skip
    found = {key: value.item() for key, value in level_statistics(level).items()}
    expected = {
        "attended_share": 0.3, "gate1_mean": 0.1, "gate1_std": 0, "gate1_concentration": 0, "gate2_mean": 0.1,
        "gate2_std": math.sqrt(0.03), "gate2_concentration": 1, "crb_mean": 0.5, "crb_std": 0.3,
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-6)
    assert level_statistics(LevelCapture("apf1", (3, 4))) == {}


def test_crb_weights_by_class():
    refined = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]], [[0.0, 5.0], [1.0, 2.0]]]])  # (1, 2 channels, 2, 2)
    crb = torch.tensor([[0.25, 0.75]])
    level = LevelCapture("apf1", (2, 2), refined=refined, crb=crb)
    label = torch.tensor([[0, 1], [0, 255]], dtype=torch.uint8)
    large = label.repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    passed, total = crb_passes(level, large, num_classes=3)
    assert total.tolist() == [5, 5, 0]
    assert passed.tolist() == [0.25 * 4 + 0.75 * 1, 0.75 * 5, 0]


def test_share_of_the_coarser_level():
    context, fine = torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 4, 5), -1.0)
    assert torch.equal(coarse_share(GFUCapture("gfu4", context, fine)), torch.full((1, 4, 5), 0.75))
    s1, s2 = torch.full_like(fine, -1 / 3), torch.ones_like(fine)
    torch.testing.assert_close(coarse_share(GFUCapture("gfu4", context, fine, s1, s2)), torch.full((1, 4, 5), 0.5))


def test_statistics_of_a_split():
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision="v2", num_classes=11, gamma_init=0.3)
    data = open_dataset("roadscenes", split="val", cache=False)
    statistics = attention_statistics(model, data, limit=2)
    assert list(statistics.images["image"].unique()) == [data.names[i] for i in (30, 53)]  # of 100
    assert list(statistics.images["level"]) == ["apf1", "apf2", "apf3", "apf4"] * 2
    assert model.training
    image, _ = data[30]
    with AttentionRecorder(model.eval()) as recorder, torch.inference_mode():
        model(model.preprocess(image[None]))
    first = statistics.images[:4].set_index("level")
    for level in recorder.capture.levels:
        for key, value in level_statistics(level).items():
            assert first.loc[level.name, key] == pytest.approx(value.item(), rel=1e-3, abs=1e-5)
    summary = statistics.summary()
    assert summary.loc["apf2", ("entropy", "mean")] == pytest.approx(
        statistics.images.query("level == 'apf2'")["entropy"].mean()
    )
    crb = statistics.crb_by_class
    assert crb.shape == (4, 11)
    assert ((crb > 0) & (crb < 1) | crb.isna()).all(axis=None)


@pytest.mark.parametrize("switches", [{"ssam": False}, {"crb": False}])
def test_switched_off_parts_are_left_out(switches):
    model = build_model("s2fpn_lite", num_classes=11, **switches)
    statistics = attention_statistics(model, open_dataset("roadscenes", split="val", cache=False), limit=1)
    summary = statistics.summary()
    columns = set(summary.columns.get_level_values(0))
    assert ("attended_share" in columns) == (switches == {"crb": False})
    assert ("crb_mean" in columns) == (switches == {"ssam": False})
    assert len(statistics.crb_by_class) == (4 if switches == {"ssam": False} else 0)


def test_untrained_networks_get_a_warning():
    model = build_model("s2fpn_lite", num_classes=11)
    assert "untrained" in untrained_warning(model)
    assert "0.3" in untrained_warning(build_model("s2fpn_lite", num_classes=11, gamma_init=0.3))
    assert untrained_warning(build_model("s2fpn_lite", num_classes=11, ssam=False)) == ""
    model.apf3.ssam.gamma.data.fill_(0.01)
    assert untrained_warning(model) == ""


def logits(model):
    with torch.inference_mode():
        return model.eval()(torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module", params=["v1", "v2"])
def model(request):
    torch.manual_seed(0)
    return build_model("s2fpn_lite", revision=request.param, num_classes=5, gamma_init=0.5)


@pytest.mark.parametrize("switches", [{"ssam": False}, {"crb": False}, {"gfu": False}, {"strip_axis": "width"}])
def test_a_switched_network_keeps_the_shared_weights(model, switches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = switched(model, **switches)
    assert other.config == model.config | switches
    assert not other.training
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(logits(other), logits(model))


def test_parts_with_weights_of_their_own_need_training(model):
    with pytest.raises(ValueError, match=r"apf=False needs weights .* train a network with this switch"):
        switched(model, apf=False)
