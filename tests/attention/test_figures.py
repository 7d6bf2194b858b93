"""The attention figures draw the recorded values, and name what is missing."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from s2fpn_lib.attention.figures import _show_strip, attention_figure, attribution_figure
from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.attention.statistics import untrained_warning
from s2fpn_lib.data import get_protocol
from s2fpn_lib.model import build_model
from s2fpn_lib.viz.style import ATTENTION_CMAP, ATTENTION_RANGE, GATE_CMAP, MARKERS, with_warning

PROTOCOL = get_protocol("roadscenes")


@functools.cache
def recorded(revision="v2", **switches):
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision=revision, num_classes=11, gamma_init=0.25, **switches).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with AttentionRecorder(model) as recorder, torch.inference_mode():
        model(model.preprocess(images))
    return images[1], recorder.capture


PIXELS = ((0.60, 0.20), (0.45, 0.50), (0.75, 0.80))
LABEL = torch.zeros(64, 96, dtype=torch.uint8)


def texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.texts]
    for axis in figure.axes:
        found += [axis.get_title(loc=loc) for loc in ("left", "center", "right")]
        found += [text.get_text() for text in axis.texts]
    return "\n".join(found)


def shown(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_attention_of_v2_is_drawn_relative_to_uniform_on_one_scale(strip_axis):
    image, capture = recorded(strip_axis=strip_axis)
    figure = attention_figure(image, capture, PROTOCOL, 1, LABEL, [[0.0, 1.0], [0.99, 0.5]])
    drawn = [each for axis in figure.axes for each in axis.images if each.get_cmap().name == ATTENTION_CMAP]
    assert len(drawn) == 2 * 2 * 4  # pixels x levels, each over the photograph and in the band
    assert {each.get_clim() for each in drawn} == {ATTENTION_RANGE}
    for level in capture.levels:
        h, w = level.size
        for y, x in ((0, w - 1), (int(0.99 * h), w // 2)):
            weights = level.column_attention(y, x)[1].numpy()
            expected = len(weights) * (weights[None] if strip_axis == "height" else weights[:, None])
            found = [each for each in drawn if np.shape(each.get_array()) == expected.shape]
            assert any(np.allclose(each.get_array(), expected) for each in found)
    bars = [axis.get_ylabel() for axis in figure.axes]
    assert bars.count("attention relative to uniform (1)") == 1
    assert f"APF 4, 16x24\nγ 0.250, strips {capture.levels[3].attended_share[1]:.1%}" in texts(figure)


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_gates_of_v1_are_drawn_as_a_difference_on_one_scale(strip_axis):
    image, capture = recorded("v1", strip_axis=strip_axis)
    figure = attention_figure(image, capture, PROTOCOL, 1, LABEL, PIXELS)
    drawn = [each for axis in figure.axes for each in axis.images if each.get_cmap().name == GATE_CMAP]
    gates = [(level.gates[1, 0] - level.gates[1, 1]).numpy() for level in capture.levels]
    largest = max(np.abs(each).max() for each in gates)
    assert len(drawn) == 2 * 4
    for each, gate in zip(drawn[::2], gates, strict=True):
        np.testing.assert_allclose(each.get_array(), gate[None] if strip_axis == "height" else gate[:, None])
        assert each.get_clim() == pytest.approx((-largest, largest))
    assert not any(each.get_cmap().name == ATTENTION_CMAP for axis in figure.axes for each in axis.images)


def test_attribution_is_aligned_with_the_image_on_one_scale():
    image, _ = recorded()
    methods = {
        "gradient": {"apf1": torch.tensor([0.1, -0.3, 0.0]), "apf4": torch.zeros(24)},
        "occlusion": {"apf1": torch.tensor([0.5]), "apf4": torch.tensor([-0.75, 0.25])},
    }
    figure = attribution_figure(image, (31, 47), methods, "Road: logit 2", number=1)
    rows = [axis.images[0] for axis in figure.axes if axis.images]
    photos, strips = [rows[i] for i in (0, 1)], rows[2:]
    assert all(photo.get_extent() == strip.get_extent() for photo in photos for strip in strips)  # (0, 1, 1, 0)
    assert {strip.get_clim() for strip in strips} == {(-0.75, 0.75)}
    assert [strip.get_array().shape[1] for strip in strips] == [3, 1, 24, 2]
    (x,), (y,) = figure.axes[0].lines[0].get_data()
    assert (x, y) == (47.5 / 96, 31.5 / 64)
    assert figure.axes[0].lines[0].get_marker() == MARKERS[1]  # as the second pixel of `attention_figure`
    found = texts(figure)
    assert all(text in found for text in ("−0.20 %", "+0.50 %", "−0.50 %", "APF 4", "Road: logit 2", "occlusion"))


def test_an_entry_above_uniform_is_widened_and_the_others_are_not():
    _, capture = recorded()
    level = dataclasses.replace(capture.levels[3], strip_axis="height")
    values = np.full(220, 0.5)
    values[[0, 100]], values[150] = 50, 0.9
    axis = Figure().subplots()
    drawn = _show_strip(axis, np.zeros((64, 96)), values, level, ATTENTION_CMAP, LogNorm(*ATTENTION_RANGE))
    found = np.asarray(drawn.get_array())[0]
    assert (found == 50).nonzero()[0].tolist() == [0, 1, 2, 98, 99, 100, 101, 102]  # three pixels at the border
    assert (found == 0.9).nonzero()[0].tolist() == [150]
    assert (found == 0.5).sum() == 220 - 8 - 1


def test_a_warning_is_visible():
    image, capture = recorded()
    figure = with_warning(attention_figure(image, capture, PROTOCOL, 0, LABEL, PIXELS), "This network is untrained")
    (text,) = [text for text in figure.texts if text.get_text() == "This network is untrained"]
    assert text.get_color() == "#D55E00"


@pytest.mark.parametrize(
    ("switches", "lacking"),
    [
        ({"ssam": False}, "pixel\n"),
        ({"gfu": False}, "share of the\ncoarser level"),
        ({"deep_supervision": False}, "auxiliary"),
    ],
)
def test_switched_off_parts_have_no_row(switches, lacking):
    image, capture = recorded(**switches)
    figure = attention_figure(image, capture, PROTOCOL, 0, LABEL, PIXELS)
    assert lacking not in texts(figure)
    assert "APF 1, 2x3" in texts(figure)


def test_a_network_without_any_part_has_a_prediction():
    image, capture = recorded(apf=False, gfu=False, deep_supervision=False)
    figure = attention_figure(image, capture, PROTOCOL, 0, None, PIXELS)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["image", "prediction", "", ""]


def test_texts_stay_inside_the_figure():
    image, capture = recorded()
    warning = untrained_warning(build_model("s2fpn_lite", num_classes=11))
    figure = with_warning(attention_figure(image, capture, PROTOCOL, 0, LABEL, PIXELS), warning)
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
