"""The attention figures draw the recorded values, and name what is missing."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from s2fpn_lib.attention.figures import attention_figure, crb_figure, statistics_figure
from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.attention.statistics import attention_statistics, untrained_warning
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.model import build_model

PROTOCOL = get_protocol("roadscenes")


@functools.cache
def recorded(revision="v2", **switches):
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision=revision, num_classes=11, gamma_init=0.25, **switches).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with AttentionRecorder(model) as recorder, torch.inference_mode():
        model(model.preprocess(images))
    return images[1], recorder.capture


def texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.texts]
    for axis in figure.axes:
        found += [axis.get_title(loc=loc) for loc in ("left", "center", "right")]
        found += [text.get_text() for text in axis.texts]
    return "\n".join(found)


def shown(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]


def test_gates_of_v2_are_drawn_with_their_range_around_zero():
    image, capture = recorded()
    figure = attention_figure(image, capture, PROTOCOL, index=1)
    for level in capture.levels:
        for k in (0, 1):
            gate = level.gates[1, k].numpy()
            (drawn,) = [i for a in figure.axes for i in a.images if np.array_equal(np.asarray(i.get_array()), gate)]
            low, high = drawn.get_clim()
            assert low == -high
            assert high == pytest.approx(np.abs(gate).max())
            expected = f"{gate.min():.2g} to {gate.max():.2g}".replace("-", "−")
            assert drawn.axes.get_title(loc="left") == expected
    assert f"16x24, γ 0.250, strips {capture.levels[3].attended_share[1]:.1%}" in texts(figure)


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_lines_are_strips_and_column_attention(strip_axis):
    image, capture = recorded(strip_axis=strip_axis)
    figure = attention_figure(image, capture, PROTOCOL, index=1, pixels=[[0.0, 1.0], [0.99, 0.5]])
    lines = [line.get_ydata() for axis in figure.axes for line in axis.lines]
    for level in capture.levels:
        h, w = level.size
        wanted = [level.strip_max[1].square().mean(0).sqrt(), level.strip_avg[1].square().mean(0).sqrt()]
        wanted += [level.column_attention(0, w - 1)[1], level.column_attention(int(0.99 * h), w // 2)[1]]
        for values in wanted:
            assert any(len(line) == len(values) and np.allclose(line, values.numpy()) for line in lines)
    along = {"height": ("columns", "left", "right"), "width": ("rows", "top", "bottom")}[strip_axis]
    ticks = {label.get_text() for axis in figure.axes for label in axis.get_xticklabels()}
    assert f"over {along[0]}" in texts(figure)
    assert set(along[1:]) <= ticks


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_gates_of_v1_lie_along_their_strip(strip_axis):
    image, capture = recorded("v1", strip_axis=strip_axis)
    figure = attention_figure(image, capture, PROTOCOL, index=1)
    for level in capture.levels:
        gate = level.gates[1, 0].numpy()
        gate = gate[None] if strip_axis == "height" else gate[:, None]
        assert any(drawn.shape == gate.shape and np.allclose(drawn, gate) for drawn in shown(figure))
        assert f"uniform {1 / level.strip_max.shape[1]:.3f}" in texts(figure)
    assert "attention\nover" not in texts(figure)  # v1 has no distribution over columns


def test_a_warning_is_visible():
    image, capture = recorded()
    figure = attention_figure(image, capture, PROTOCOL, warning="This network is untrained")
    (text,) = [text for text in figure.texts if text.get_text() == "This network is untrained"]
    assert text.get_color() == "#D55E00"


@pytest.mark.parametrize(
    ("switches", "lacking"),
    [
        ({"ssam": False}, "gate 1"),
        ({"gfu": False}, "share of the\ncoarser level"),
        ({"deep_supervision": False}, "auxiliary"),
    ],
)
def test_switched_off_parts_have_no_row(switches, lacking):
    image, capture = recorded(**switches)
    figure = attention_figure(image, capture, PROTOCOL)
    assert lacking not in texts(figure)
    assert "apf1" in texts(figure)
    assert "2x3" in texts(figure)


def test_a_network_without_any_part_has_a_prediction():
    image, capture = recorded(apf=False, gfu=False, deep_supervision=False)
    figure = attention_figure(image, capture, PROTOCOL)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["image", "prediction", "", ""]


def test_texts_stay_inside_the_figure():
    image, capture = recorded()
    label = torch.zeros(64, 96, dtype=torch.uint8)
    warning = untrained_warning(build_model("s2fpn_lite", num_classes=11))
    figure = attention_figure(image, capture, PROTOCOL, label=label, warning=warning)
    figure.canvas.draw()
    frame = figure.bbox
    everything = [
        text for axis in figure.axes for text in (*axis.texts, axis.title, axis._left_title, axis._right_title)
    ]
    for text in (*everything, *figure.texts):
        if text.get_text():
            box = text.get_window_extent()
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1 + 1, text.get_text()
            assert frame.y0 <= box.y0
            assert box.y1 <= frame.y1


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_statistics_and_crb_of_a_split(revision, tmp_path):
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision=revision, num_classes=11, gamma_init=0.25)
    statistics = attention_statistics(model, open_dataset("roadscenes", split="val", cache=False), limit=2)
    figure = statistics_figure(statistics)
    points = np.concatenate([c.get_offsets()[:, 1] for c in figure.axes[0].collections if len(c.get_offsets()) == 2])
    np.testing.assert_allclose(np.sort(points), np.sort(statistics.images["attended_share"]))
    assert ("entropy" in texts(figure)) == (revision == "v2")
    assert ("concentration" in texts(figure)) == (revision == "v1")
    _, capture = recorded(revision)
    crb = crb_figure(statistics, capture, index=1)
    for line, level in zip(crb.axes[0].lines, capture.levels, strict=False):
        np.testing.assert_allclose(line.get_ydata(), np.sort(level.crb[1].numpy())[::-1])
    cells = [text.get_text() for text in crb.axes[1].texts]
    assert f"{statistics.crb_by_class.loc['apf1', 'Road']:.2f}" in cells
