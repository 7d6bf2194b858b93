"""The pictures against the numbers that they show, indexed directly."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from s2fpn_lib.inspector import State, inspection_figure, readout, render, render_level
from s2fpn_lib.inspector.state import PAIR_VIEWS, VIEWS
from s2fpn_lib.inspector.views import DIFFERENT, FADED, GRAY, LEVEL_OPACITY
from s2fpn_lib.viz.images import ERROR_COLOR
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
    seen, other = inspection(revision="v2"), inspection(revision="v1")
    clear = uncovered(seen.ids, 0, 0)
    views = {view: render(State(view=view, opacity=1), seen, other) for view in VIEWS}
    photo, label, ids = pixels_of(seen.picture.image), seen.picture.label.numpy(), seen.ids.numpy()
    np.testing.assert_array_equal(views["image"][clear], photo[clear])
    known = label < 11
    np.testing.assert_array_equal(views["true classes"][clear & known], PALETTE[label[clear & known]])
    np.testing.assert_array_equal(views["true classes"][clear & ~known], photo[clear & ~known])
    wrong = np.all(views["errors"] == ERROR_COLOR, -1)
    np.testing.assert_array_equal(wrong[clear & known], (ids != label)[clear & known])
    differ = np.where((ids != other.ids.numpy())[..., None], DIFFERENT, GRAY)
    np.testing.assert_array_equal(views["disagreement"][clear], differ[clear])
    p, q = seen.probabilities.double().numpy(), other.probabilities.double().numpy()
    ordered = np.sort(p, 0)
    for view, cmap, position in (
        ("confidence", "cividis", ordered[-1]),
        ("margin", "cividis", ordered[-1] - ordered[-2]),
        ("entropy", "cividis_r", np.minimum(-(p * np.log2(np.maximum(p, 1e-30))).sum(0) / 2, 1)),
        ("class probability", "cividis", p[0]),
        ("total variation", "viridis", abs(p - q).sum(0) / 2),
    ):
        expected = 255 * matplotlib.colormaps[cmap](position)[..., :3]
        np.testing.assert_allclose(views[view][clear], expected[clear], atol=4, err_msg=view)
    for view in ("true classes", "errors", *PAIR_VIEWS):  # without a label and a second model, these show the image
        np.testing.assert_array_equal(render(State(view=view, opacity=1), unlabeled(seen)), views["image"])


def test_threshold_shows_the_probable_pixels_over_the_gray_photograph():
    seen, shown = inspection(revision="v2"), 4
    p, clear = seen.probabilities[shown].numpy(), uncovered(seen.ids, 0, 0)
    threshold = float(np.median(p))
    drawn = render(State(view="class probability", shown_class=shown, threshold=threshold, opacity=1), seen)
    gray = pixels_of(seen.picture.image).mean(-1, keepdims=True).repeat(3, -1)
    below, colors = clear & (p < threshold), 255 * matplotlib.colormaps["cividis"](p)[..., :3]
    np.testing.assert_allclose(drawn[below], gray[below], atol=1)
    np.testing.assert_allclose(drawn[clear & (p >= threshold)], colors[clear & (p >= threshold)], atol=3)


def test_wipe():
    one, two = inspection(revision="v1"), inspection(revision="v2")
    state = State(view="prediction", wipe=0.4)
    plain = {view: render(replace(state, view=view), two, one) for view in ("prediction", "image")}
    for before, left in (("image", plain["image"]), ("other model", render(state, one))):
        drawn = render(replace(state, before=before), two, one)
        end = round(0.4 * 71)
        np.testing.assert_array_equal(drawn[:, :end], left[:, :end])
        np.testing.assert_array_equal(drawn[:, end:], plain["prediction"][:, end:])
    np.testing.assert_array_equal(render(replace(state, before="other model"), two), plain["prediction"])


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


def faded(seen):
    """The photograph of a level, (H, W, 3)."""
    return FADED[0] + FADED[1] * pixels_of(seen.picture.image).mean(-1, keepdims=True).repeat(3, -1)


def tinted(seen, cmap, position):
    """The photograph of a level in the colors of a colormap at `position`, 0 to 1."""
    colors = 255 * matplotlib.colormaps[cmap](position)[..., :3]
    return (1 - LEVEL_OPACITY) * faded(seen) + LEVEL_OPACITY * colors


@pytest.mark.parametrize("strip_axis", ["height", "width"])
@pytest.mark.parametrize("index", range(4))
def test_v2_level_shows_the_attention_of_the_pixel_relative_to_uniform(index, strip_axis):
    """Black at a tenth of uniform attention, white at a hundred times, in equal steps of the logarithm."""
    seen = inspection(revision="v2", strip_axis=strip_axis)
    level = seen.levels[index]
    y, x = 40, 12
    p = distribution(level, y * level.size[0] // 45, x * level.size[1] // 71).numpy()
    position = np.clip((np.log10(np.maximum(p * len(p), 1e-9)) + 1) / 3, 0, 1)
    side = 45 if strip_axis == "width" else 71
    places = position[np.arange(side) * len(p) // side]
    expected = tinted(seen, "magma", places[:, None] if strip_axis == "width" else places[None])
    drawn = render_level(State(y=y, x=x), seen, index)
    clear = uncovered(drawn, y, x) & uncovered(drawn, y - 11, x) & uncovered(drawn, y, x + 11)
    clear[:, :25] &= np.arange(45)[:, None] < 10
    np.testing.assert_allclose(drawn[clear], expected[clear], atol=3)


@pytest.mark.parametrize("index", range(4))
def test_v1_levels_share_the_scale_of_the_gate_difference(index):
    seen = inspection(revision="v1")
    differences = [(level.gates[0, 0] - level.gates[0, 1]).numpy() for level in seen.levels]
    limit, values = max(abs(each).max() for each in differences), differences[index]
    expected = tinted(seen, "PRGn", ((values / limit + 1) / 2)[np.arange(71) * len(values) // 71][None])
    drawn = render_level(State(y=40, x=12), seen, index)
    np.testing.assert_allclose(drawn[:15, 40:], expected[:15, 40:], atol=3)


def test_pixels_of_a_column_share_their_colors_in_v1():
    top, bottom = (render_level(State(y=y, x=10), inspection(revision="v1"), 3)[:, 40:] for y in (2, 42))
    np.testing.assert_array_equal(top, bottom)


@pytest.mark.parametrize("switches", [{"ssam": False, "deep_supervision": False}, {"apf": False}])
def test_level_without_strips_is_gray(switches):
    seen = inspection(**switches)
    drawn = render_level(State(y=44, x=70), seen, 0)
    np.testing.assert_allclose(drawn[:20, :40], faded(seen)[:20, :40], atol=1)


def test_wide_images_are_drawn_with_a_stride():
    seen = inspection((32, 1290), revision="v2")
    state = State(y=30, x=1280, view="image")
    drawn, photo = render(state, seen), pixels_of(seen.picture.image)
    np.testing.assert_array_equal(drawn[:, :400], photo[::3, ::3][:, :400])
    np.testing.assert_array_equal(drawn[10, 426], photo[30, 1278])
    assert render_level(state, seen, 3).shape == (11, 430, 3)


def test_rendering_changes_nothing():
    seen, state = inspection(revision="v2"), State(y=9, x=9, pins=((3, 3),))
    image, query = seen.picture.image.clone(), seen.levels[3].query.clone()
    for draw in (lambda: render(state, seen), lambda: render_level(state, seen, 3)):
        np.testing.assert_array_equal(draw(), draw())
    assert seen.picture.image.equal(image)
    assert seen.levels[3].query.equal(query)


def test_still_figure_with_dollar_signs_and_long_class_names():
    """Dollar signs are no formulas, and a long name does not narrow the pictures."""
    seen = inspection(revision="v1")
    names = tuple(f"$x_{id}$ and {'very ' * 5}long" for id in range(11))
    odd = replace(
        seen,
        model=replace(seen.model, name="$a_$"),
        picture=replace(seen.picture, name="cost$_$.png"),
        protocol=replace(PROTOCOL, classes=names),
    )
    pictures = []
    for each in (seen, odd):
        figure = inspection_figure(State(y=20, x=30, view="entropy", before="margin"), [each])
        figure.canvas.draw()
        pictures.append(next(axis for axis in figure.axes if axis.images))
    assert pictures[1].get_title(loc="left") == "$a_$ on cost$_$.png: entropy"
    assert pictures[1].get_window_extent().width > 0.95 * pictures[0].get_window_extent().width
    ticks = [text.get_text() for axis in figure.axes for text in axis.get_yticklabels()]
    assert len([text for text in ticks if len(text) == 16 and text.endswith("…")]) == 3
    labels = {axis.get_xlabel() for axis in figure.axes}
    assert {"entropy in bits", "margin: first minus second probability"} < labels, "both sides of the wipe have a scale"


def test_still_figure_shows_models_and_levels():
    both = replace(inspection(revision="v1"), warning="untrained"), inspection(revision="v2")
    state = State(y=20, x=30, view="total variation", hidden=frozenset({2, 1}), pins=((9, 8),))
    figure = inspection_figure(state, both)
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(pictures) == 2 * (1 + 4)
    assert (pictures[0] == render(state, both[0], both[1])).all()
    assert (pictures[5] == render(state, both[1], both[0])).all()
    texts = " ".join(text.get_text() for axis in figure.axes for text in axis.texts)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    for each in both:
        assert f"row 20, column 30: {readout(state, each).prediction}" in titles
    assert "untrained" in texts
    assert "Pinned (row, column): 9, 8: " in texts
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels.count("total variation distance of the models") == 2, "each scale has its color bar"
    assert {"attention relative to uniform (1)", "gate of the average strip minus that of the maximum strip"} < {
        *labels
    }
    assert sum("auxiliary head: " in label for label in labels) == 8
