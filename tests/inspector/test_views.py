"""The pictures against the numbers that they show, indexed directly."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from s2fpn_lib.inspector import State, inspection_figure, readout, render, render_level
from s2fpn_lib.inspector.state import VIEWS
from s2fpn_lib.inspector.views import BLUE, PROFILE_HEIGHT, VERMILION
from tests.inspecting import PROTOCOL, distribution, inspection, unlabeled

PALETTE = np.array(PROTOCOL.palette)


def pixels_of(image):
    return image.permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)


def uncovered(drawn, y, x):
    """Mask of the pixels that the cross at (y, x) does not cover."""
    rows, columns = np.ogrid[: drawn.shape[0], : drawn.shape[1]]
    return (abs(rows - y) > 13) | (abs(columns - x) > 13)


def test_opacity_blends_image_and_class_colors():
    seen = inspection(revision="v1")
    clear = uncovered(seen.ids, 22, 35)
    photo, colors = pixels_of(seen.picture.image), PALETTE[seen.ids.numpy()]
    for opacity in (0, 0.5, 1):
        drawn = render(State(y=22, x=35, opacity=opacity), seen)
        assert (drawn.shape, drawn.dtype) == ((45, 71, 3), np.uint8)
        np.testing.assert_allclose(drawn[clear], ((1 - opacity) * photo + opacity * colors)[clear], atol=1)


def test_views():
    seen = inspection(revision="v2")
    clear = uncovered(seen.ids, 0, 0)
    views = {view: render(State(view=view, opacity=1), seen) for view in VIEWS}
    photo, label, ids = pixels_of(seen.picture.image), seen.picture.label.numpy(), seen.ids.numpy()
    np.testing.assert_array_equal(views["image"][clear], photo[clear])
    known = label < 11
    np.testing.assert_array_equal(views["true classes"][clear & known], PALETTE[label[clear & known]])
    np.testing.assert_array_equal(views["true classes"][clear & ~known], photo[clear & ~known])
    wrong = np.all(views["errors"] == VERMILION, -1)
    np.testing.assert_array_equal(wrong[clear & known], (ids != label)[clear & known])
    viridis = 255 * matplotlib.colormaps["viridis"](seen.probabilities.amax(0).numpy())[..., :3]
    np.testing.assert_allclose(views["confidence"][clear], viridis[clear], atol=3)
    for view in ("true classes", "errors"):  # without a label, these show the image
        np.testing.assert_array_equal(render(State(view=view, opacity=1), unlabeled(seen)), views["image"])


def test_hidden_classes_are_not_drawn():
    seen = inspection(revision="v1")
    ids, photo, clear = seen.ids.numpy(), pixels_of(seen.picture.image), uncovered(seen.ids, 0, 0)
    commonest = int(np.bincount(ids.ravel()).argmax())
    for hidden in ({commonest}, set(range(11)) - {commonest}):
        drawn, is_hidden = render(State(opacity=1, hidden=frozenset(hidden)), seen), np.isin(ids, list(hidden))
        np.testing.assert_array_equal(drawn[clear & is_hidden], photo[clear & is_hidden])
        np.testing.assert_array_equal(drawn[clear & ~is_hidden], PALETTE[ids[clear & ~is_hidden]])


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 70), (44, 0), (44, 70), (22, 35)])
def test_cross_leaves_its_pixel_visible_and_is_clipped(y, x):
    seen = inspection(revision="v1")
    drawn, photo = render(State(y=y, x=x, view="image"), seen), pixels_of(seen.picture.image)
    np.testing.assert_array_equal(drawn[y, x], photo[y, x])
    changed = np.any(drawn != photo, -1)
    assert changed.any()
    assert not changed[uncovered(drawn, y, x)].any()


def test_pins_are_drawn():
    with_pin, without = (
        render(State(y=22, x=35, view="image", pins=pins), inspection(revision="v1")) for pins in (((8, 8),), ())
    )
    changed = np.argwhere(np.any(with_pin != without, -1))
    assert len(changed)
    assert (abs(changed - 8) <= 7).all()


@pytest.mark.parametrize("index", range(4))
def test_v2_level_shows_the_distribution_of_the_pixel(index):
    seen = inspection(revision="v2")
    level = seen.levels[index]
    y, x = 40, 12
    p = distribution(level, y * level.size[0] // 45, x * level.size[1] // 71).numpy()
    drawn = render_level(State(y=y, x=x), seen, index)
    assert drawn.shape == (45 + PROFILE_HEIGHT, 71, 3)
    blue = np.all(drawn[45:] == BLUE, -1).sum(0)  # heights of the bars, (71,)
    entries = np.arange(71) * len(p) // 71
    np.testing.assert_allclose(blue, (p / p.max())[entries] * (PROFILE_HEIGHT - 4), atol=1)
    brightest = np.flatnonzero(entries == p.argmax())[-1]
    np.testing.assert_allclose(drawn[:20, brightest], pixels_of(seen.picture.image)[:20, brightest], atol=1)


@pytest.mark.parametrize("index", range(4))
def test_v1_level_is_tinted_by_the_larger_gate(index):
    seen = inspection(revision="v1")
    gates = seen.levels[index].gates[0].numpy()
    drawn = render_level(State(y=40, x=12), seen, index)
    difference = gates[0] - gates[1]
    gray = pixels_of(seen.picture.image).mean(-1, keepdims=True)
    for entry in (difference.argmax(), difference.argmin()):
        column = np.flatnonzero(np.arange(71) * len(difference) // 71 == entry)[0]
        share = 0.7 * abs(difference[entry]) / abs(difference).max()
        color = np.array(BLUE if difference[entry] > 0 else VERMILION)
        np.testing.assert_allclose(drawn[:20, column], ((1 - share) * gray + share * color)[:20, column], atol=1.01)
    for color in (BLUE, VERMILION):
        assert np.all(drawn[45:] == color, -1).any(), "one line per gate in the plot"


def test_pixels_of_a_column_share_their_gates_in_v1():
    top, bottom = (render_level(State(y=y, x=30), inspection(revision="v1"), 3)[45:] for y in (2, 42))
    np.testing.assert_array_equal(top, bottom)


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_strips_of_rows(revision):
    seen = inspection(revision=revision, strip_axis="width")
    level = seen.levels[3]
    drawn = render_level(State(y=44, x=70, view="image"), seen, 3)
    photo, gray = pixels_of(seen.picture.image), pixels_of(seen.picture.image).mean(-1, keepdims=True)
    if revision == "v2":
        p = distribution(level, -1, -1).numpy()
        bright = (p / p.max())[np.arange(45) * len(p) // 45][:, None, None]
        expected = 0.35 * gray * (1 - bright) + photo * bright
    else:
        difference = (level.gates[0, 0] - level.gates[0, 1]).numpy()
        tint = (difference / abs(difference).max())[np.arange(45) * len(difference) // 45][:, None, None]
        color = np.where(tint > 0, np.array(BLUE), np.array(VERMILION))
        expected = (1 - 0.7 * abs(tint)) * gray + 0.7 * abs(tint) * color
    np.testing.assert_allclose(drawn[:30, :50], expected[:30, :50], atol=1.01)


@pytest.mark.parametrize("switches", [{"ssam": False, "deep_supervision": False}, {"apf": False}])
def test_level_without_strips_is_gray(switches):
    drawn = render_level(State(y=44, x=70), inspection(**switches), 0)
    assert drawn.shape == (45 + PROFILE_HEIGHT, 71, 3)
    np.testing.assert_array_equal(drawn[:30, :50, 0], drawn[:30, :50, 2])
    assert (drawn[45:] == 255).all()


def test_wide_images_are_drawn_with_a_stride():
    seen = inspection((32, 1290), revision="v2")
    state = State(y=30, x=1280, view="image")
    drawn, photo = render(state, seen), pixels_of(seen.picture.image)
    np.testing.assert_array_equal(drawn[:, :400], photo[::3, ::3][:, :400])
    np.testing.assert_array_equal(drawn[10, 426], photo[30, 1278])
    assert render_level(state, seen, 3).shape == (11 + PROFILE_HEIGHT, 430, 3)


def test_rendering_changes_nothing():
    seen, state = inspection(revision="v2"), State(y=9, x=9, pins=((3, 3),))
    image, query = seen.picture.image.clone(), seen.levels[3].query.clone()
    for draw in (lambda: render(state, seen), lambda: render_level(state, seen, 3)):
        np.testing.assert_array_equal(draw(), draw())
    assert seen.picture.image.equal(image)
    assert seen.levels[3].query.equal(query)


def test_still_figure_shows_models_and_levels():
    both = replace(inspection(revision="v1"), warning="untrained"), inspection(revision="v2")
    state = State(y=20, x=30, hidden=frozenset({2, 1}), pins=((9, 8),))
    figure = inspection_figure(state, both)
    pictures = [axis for axis in figure.axes if axis.images]
    assert len(pictures) == 2 * (1 + 4)
    assert (pictures[0].images[0].get_array() == render(state, both[0])).all()
    texts = [text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts]
    assert {readout(state, each).prediction for each in both} | {"untrained"} <= set(texts)
    assert any(text.startswith("Pinned (row, column): 9, 8: ") for text in texts)
