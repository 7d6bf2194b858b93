"""The inspector's pictures against the numbers that they show, indexed directly."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.inspector import PROFILE_HEIGHT, VIEWS, State, inspect, render, render_level
from tests.inspecting import PROTOCOL, network, picture

PALETTE = np.array(PROTOCOL.palette)
BLUE, VERMILION = (0, 114, 178), (213, 94, 0)


@pytest.fixture(scope="module")
def inspections():
    """By revision: an odd size, with a label that holds an ignored row."""
    image = picture(45, 71)
    label = torch.randint(0, 11, (45, 71), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    label[0] = PROTOCOL.ignore_id
    return {
        revision: inspect(network(revision=revision), image, PROTOCOL, label=label, name="odd")
        for revision in ("v1", "v2")
    }


def pixels_of(image):
    return image.permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)


def away(drawn, y, x):
    """Where the picture is not covered by the cross at (y, x)."""
    rows, columns = np.ogrid[: drawn.shape[0], : drawn.shape[1]]
    return (abs(rows - y) > 13) | (abs(columns - x) > 13)


def test_opacity_blends_the_image_with_the_class_colours(inspections):
    inspection = inspections["v1"]
    clear = away(np.zeros((45, 71)), 22, 35)
    photo, colors = pixels_of(inspection.image), PALETTE[inspection.ids.numpy()]
    for opacity in (0, 0.5, 1):
        drawn = render(State(y=22, x=35, opacity=opacity), inspection)
        assert (drawn.shape, drawn.dtype) == ((45, 71, 3), np.uint8)
        np.testing.assert_allclose(drawn[clear], ((1 - opacity) * photo + opacity * colors)[clear], atol=1)


def test_views_draw_what_they_are_named_for(inspections):
    inspection = inspections["v2"]
    clear = away(np.zeros((45, 71)), 0, 0)
    views = {view: render(State(view=view, opacity=1), inspection) for view in VIEWS}
    photo, label, ids = pixels_of(inspection.image), inspection.label.numpy(), inspection.ids.numpy()
    np.testing.assert_array_equal(views["image"][clear], photo[clear])
    known = label < 11
    np.testing.assert_array_equal(views["true classes"][clear & known], PALETTE[label[clear & known]])
    np.testing.assert_array_equal(views["true classes"][clear & ~known], photo[clear & ~known])
    wrong = np.all(views["errors"] == VERMILION, -1)
    np.testing.assert_array_equal(wrong[clear & known], (ids != label)[clear & known])
    viridis = 255 * matplotlib.colormaps["viridis"](inspection.confidence.numpy())[..., :3]
    np.testing.assert_allclose(views["confidence"][clear], viridis[clear], atol=3)


def test_views_that_need_a_label_show_the_image_without_one():
    inspection = inspect(network(), picture(), PROTOCOL)
    plain = render(State(view="image"), inspection)
    for view in ("true classes", "errors"):
        np.testing.assert_array_equal(render(State(view=view, opacity=1), inspection), plain)


def test_hidden_classes_are_not_drawn(inspections):
    inspection = inspections["v1"]
    ids = inspection.ids.numpy()
    commonest = int(np.bincount(ids.ravel()).argmax())
    clear, photo = away(np.zeros((45, 71)), 0, 0), pixels_of(inspection.image)
    state = State(opacity=1)
    for drawn, hidden in (
        (render(state.toggled(commonest), inspection), ids == commonest),
        (render(state.solo(commonest, 11), inspection), ids != commonest),
    ):
        np.testing.assert_array_equal(drawn[clear & hidden], photo[clear & hidden])
        np.testing.assert_array_equal(drawn[clear & ~hidden], PALETTE[ids[clear & ~hidden]])


@pytest.mark.parametrize("pixel", [(0, 0), (0, 70), (44, 0), (44, 70), (22, 35)])
def test_the_cross_leaves_its_pixel_visible_and_fits_at_the_rim(inspections, pixel):
    inspection = inspections["v1"]
    y, x = pixel
    drawn = render(State(y=y, x=x, view="image"), inspection)
    photo = pixels_of(inspection.image)
    np.testing.assert_array_equal(drawn[y, x], photo[y, x])
    changed = np.any(drawn != photo, -1)
    assert changed.any()
    assert not changed[away(drawn, y, x)].any()


def test_pins_are_drawn_besides(inspections):
    state = State(y=22, x=35, view="image").at(8, 8, (45, 71)).pinned().at(22, 35, (45, 71))
    with_pin, without = (render(each, inspections["v1"]) for each in (state, State(y=22, x=35, view="image")))
    changed = np.argwhere(np.any(with_pin != without, -1))
    assert len(changed)
    assert (abs(changed - 8) <= 7).all()


@pytest.mark.parametrize("index", range(4))
def test_v2_lights_the_columns_of_the_pixels_own_distribution(inspections, index):
    inspection = inspections["v2"]
    level = inspection.levels[index]
    y, x = 40, 12
    p = level.columns[0].unflatten(1, level.size)[:, y * level.size[0] // 45, x * level.size[1] // 71].numpy()
    drawn = render_level(State(y=y, x=x), inspection, index)
    assert drawn.shape == (45 + PROFILE_HEIGHT, 71, 3)
    blue = np.all(drawn[45:] == BLUE, -1).sum(0)  # heights of the bars, (71,)
    entries = np.arange(71) * len(p) // 71
    np.testing.assert_allclose(blue, (p / p.max())[entries] * (PROFILE_HEIGHT - 4), atol=1)
    photo = pixels_of(inspection.image)
    brightest = np.flatnonzero(entries == p.argmax())[-1]
    np.testing.assert_allclose(drawn[:20, brightest], photo[:20, brightest], atol=1)


@pytest.mark.parametrize("index", range(4))
def test_v1_tints_a_column_by_its_larger_gate(inspections, index):
    inspection = inspections["v1"]
    gates = inspection.levels[index].gates[0].numpy()
    drawn = render_level(State(y=40, x=12), inspection, index)
    difference = gates[0] - gates[1]
    gray = pixels_of(inspection.image).mean(-1, keepdims=True)
    for entry in (difference.argmax(), difference.argmin()):
        column = np.flatnonzero(np.arange(71) * len(difference) // 71 == entry)[0]
        share = 0.7 * abs(difference[entry]) / abs(difference).max()
        color = np.array(BLUE if difference[entry] > 0 else VERMILION)
        np.testing.assert_allclose(drawn[:20, column], ((1 - share) * gray + share * color)[:20, column], atol=1.01)
    for color in (BLUE, VERMILION):
        assert np.all(drawn[45:] == color, -1).any(), "a line for each gate in the profile"


def test_v1_is_the_same_for_all_pixels_of_a_column(inspections):
    top, bottom = (render_level(State(y=y, x=30), inspections["v1"], 3) for y in (2, 42))
    np.testing.assert_array_equal(top[45:], bottom[45:])
    differs = [np.any(render_level(State(y=y, x=30), inspections["v2"], 3)[45:] != top[45:]) for y in (2, 42)]
    assert all(differs)


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_row_strips_are_drawn_across_the_image(revision):
    inspection = inspect(network(revision=revision, strip_axis="width"), picture(45, 71), PROTOCOL)
    level = inspection.levels[3]
    drawn = render_level(State(y=44, x=70, view="image"), inspection, 3)
    photo, gray = pixels_of(inspection.image), pixels_of(inspection.image).mean(-1, keepdims=True)
    if revision == "v2":
        p = level.columns[0].unflatten(1, level.size)[:, -1, -1].numpy()
        lit = (p / p.max())[np.arange(45) * len(p) // 45][:, None, None]
        expected = 0.35 * gray * (1 - lit) + photo * lit
    else:
        difference = (level.gates[0, 0] - level.gates[0, 1]).numpy()
        tint = (difference / abs(difference).max())[np.arange(45) * len(difference) // 45][:, None, None]
        color = np.where(tint > 0, np.array(BLUE), np.array(VERMILION))
        expected = (1 - 0.7 * abs(tint)) * gray + 0.7 * abs(tint) * color
    np.testing.assert_allclose(drawn[:30, :50], expected[:30, :50], atol=1.01)


@pytest.mark.parametrize("switches", [{"ssam": False}, {"apf": False}])
def test_levels_without_strips_are_grey(switches):
    inspection = inspect(network(**switches), picture(45, 71), PROTOCOL)
    drawn = render_level(State(y=44, x=70), inspection, 0)
    assert drawn.shape == (45 + PROFILE_HEIGHT, 71, 3)
    np.testing.assert_array_equal(drawn[:30, :50, 0], drawn[:30, :50, 2])
    assert (drawn[45:] == 255).all()


def test_large_images_are_drawn_with_every_nth_pixel():
    image = picture(64, 1290)
    inspection = inspect(network(revision="v2"), image, PROTOCOL)
    state = State(y=60, x=1280, view="image")
    drawn = render(state, inspection)
    np.testing.assert_array_equal(drawn[:5, :400], pixels_of(image)[::3, ::3][:5, :400])
    np.testing.assert_array_equal(drawn[20, 426], pixels_of(image)[60, 1278])
    assert render_level(state, inspection, 3).shape == (22 + PROFILE_HEIGHT, 430, 3)


def test_rendering_needs_no_model_and_changes_nothing(inspections, monkeypatch):
    monkeypatch.setattr(AttentionRecorder, "__init__", None)
    inspection = inspections["v2"]
    before = inspection.image.clone(), inspection.levels[3].query.clone()
    first = render(State(y=9, x=9), inspection), render_level(State(y=9, x=9), inspection, 3)
    second = render(State(y=9, x=9), inspection), render_level(State(y=9, x=9), inspection, 3)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.equal(inspection.image, before[0])
    assert torch.equal(inspection.levels[3].query, before[1])
