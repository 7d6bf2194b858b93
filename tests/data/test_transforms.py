import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data.transforms import PUBLISHED_SCALES, Augment, Cut, apply, draw

FILL, IGNORE = torch.tensor([1, 2, 3], dtype=torch.uint8), 11


def picture(size, seed=0):
    """A smooth random image and a blocky label, so that resizing has something to get wrong."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8))
    image = np.array(small.resize(size[::-1], Image.BICUBIC))
    label = rng.integers(0, 11, (size[0] // 8, size[1] // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return image, label


def applied(cut, image, label, crop):
    out_image, out_label = apply(cut, image, label, crop, fill=FILL, ignore_id=IGNORE)
    return out_image.numpy().transpose(1, 2, 0), out_label.numpy()


def bilinear(image, scale):
    """Half-pixel bilinear resize without antialiasing (cv2.INTER_LINEAR), written out in float64."""
    for axis in (0, 1):
        side = image.shape[axis]
        at = np.clip((np.arange(round(side * scale)) + 0.5) / scale - 0.5, 0, side - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, side - 1), (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0])
def test_crop_first_equals_resizing_the_whole_image_then_cropping(scale):
    image, label = picture((64, 96))
    crop = (24, 36)
    window = tuple(round(side / scale) for side in crop)
    top, left = 8, 20  # their scaled positions are whole pixels at every scale above
    got, ids = applied(Cut(top, left, *window, flip=False), image, label, crop)
    whole = bilinear(image.astype(np.float64), scale)
    y, x = round(top * scale), round(left * scale)
    expected = whole[y : y + crop[0], x : x + crop[1]]
    inner = (slice(2, -2), slice(2, -2))  # at its edge the window lacks the neighboring pixels
    assert np.abs(got[inner] - expected[inner]).max() <= 1.01
    rows = ((np.arange(round(64 * scale)) + 0.5) / scale).astype(int)
    columns = ((np.arange(round(96 * scale)) + 0.5) / scale).astype(int)
    assert np.array_equal(ids, label[rows][:, columns][y : y + crop[0], x : x + crop[1]])


def test_flip_mirrors_image_and_label_together():
    image, label = picture((40, 56))
    plain = applied(Cut(3, 5, 16, 24, flip=False), image, label, (32, 48))
    mirrored = applied(Cut(3, 5, 16, 24, flip=True), image, label, (32, 48))
    for before, after in zip(plain, mirrored, strict=True):
        assert np.array_equal(before[:, ::-1], after)


@pytest.mark.parametrize("flip", [False, True])
def test_beyond_the_image_is_fill_and_ignored(flip):
    image, label = picture((16, 24))
    got, ids = applied(Cut(-4, -8, 32, 40, flip=flip), image, label, (32, 40))
    if flip:
        got, ids = got[:, ::-1], ids[:, ::-1]
    inside = np.zeros((32, 40), dtype=bool)
    inside[4:20, 8:32] = True
    assert np.array_equal(got[4:20, 8:32], image)
    assert np.array_equal(ids[4:20, 8:32], label)
    assert (got[~inside] == FILL.numpy()).all()
    assert (ids[~inside] == IGNORE).all()


def test_labels_are_never_mixed():
    image, label = picture((40, 56))
    for scale in (0.6, 0.75, 1.3, 1.9):
        window = (round(32 / scale), round(48 / scale))
        ids = applied(Cut(0, 0, *window, flip=False), image, label, (32, 48))[1]
        assert set(np.unique(ids)) <= set(np.unique(label)) | {IGNORE}


def test_the_source_is_left_alone():
    image, label = picture((32, 48))
    before = image.copy(), label.copy()
    applied(Cut(0, 0, 32, 48, True, 1.3, 0.8, 1.2), image, label, (32, 48))
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])


def test_photometric_against_pixel_by_pixel_arithmetic():
    image, label = picture((16, 24))
    cut = Cut(0, 0, 16, 24, False, brightness=1.1, contrast=0.8, saturation=0.5, cast=(1.1, 1.0, 0.8))
    got, ids = applied(cut, image, label, (16, 24))
    lit = image.astype(np.float64) * [1.1, 1.0, 0.8]
    gray = (lit @ [0.299, 0.587, 0.114])[..., None]
    saturated = 0.5 * lit + 0.5 * gray
    contrasted = 0.8 * saturated + 0.2 * gray.mean()
    expected = np.clip(1.1 * contrasted, 0, 255)
    assert np.abs(got - expected).max() <= 0.51
    assert np.array_equal(ids, label)


def drawn(augment, size=(360, 480), crop=(360, 480), count=2000, rare=None):
    return [draw(augment, np.random.default_rng([9, k]), size, crop, rare) for k in range(count)]


def test_published_scales_are_equally_likely_and_the_window_is_crop_over_scale():
    cuts = drawn(Augment())
    heights = [cut.height for cut in cuts]
    assert {round(360 / scale) for scale in PUBLISHED_SCALES} == set(heights)
    for scale in PUBLISHED_SCALES:
        assert abs(heights.count(round(360 / scale)) / 2000 - 1 / 6) < 0.04
    assert abs(sum(cut.flip for cut in cuts) / 2000 - 0.5) < 0.05
    assert all((cut.brightness, cut.contrast, cut.saturation) == (1, 1, 1) for cut in cuts)


def test_windows_cover_the_whole_image_and_stay_in_it():
    cuts = drawn(Augment(scales=(2.0,)))
    assert {min(cut.top for cut in cuts), max(cut.top for cut in cuts)} == {0, 180}
    assert {min(cut.left for cut in cuts), max(cut.left for cut in cuts)} == {0, 240}
    wide = drawn(Augment(scales=(0.75,)))
    assert {min(cut.top for cut in wide), max(cut.top for cut in wide)} == {-120, 0}


def test_a_continuous_range_is_uniform_in_its_logarithm():
    heights = np.array([cut.height for cut in drawn(Augment(scale_range=(0.5, 2.0)))])
    assert heights.min() >= 180
    assert heights.max() <= 720
    assert abs((heights > 360).mean() - 0.5) < 0.05


def test_rare_class_windows_hold_the_pixel():
    rare = {2: np.array([[10, 470]]), 10: np.array([[355, 5], [200, 200]])}
    cuts = drawn(Augment(scales=(2.0,), rare_class_crops=1.0), rare=rare)
    pixels = [(10, 470), (355, 5), (200, 200)]
    held = [
        sum(cut.top <= y < cut.top + cut.height and cut.left <= x < cut.left + cut.width for cut in cuts)
        for y, x in pixels
    ]
    assert all(each > 400 for each in held)
    assert all(0 <= cut.top <= 180 and 0 <= cut.left <= 240 for cut in cuts)
    half = drawn(Augment(scales=(2.0,), rare_class_crops=0.5), rare={2: np.array([[180, 240]])})
    assert 0.45 < sum((cut.top, cut.left) == (90, 120) for cut in half) / 2000 < 0.55


def test_an_option_does_not_shift_what_others_draw():
    plain, colored = drawn(Augment(), count=50), drawn(Augment(photometric=0.3, color_cast=0.1), count=50)
    assert [(c.top, c.left, c.height, c.flip) for c in plain] == [(c.top, c.left, c.height, c.flip) for c in colored]
    factors = [factor for c in colored for factor in (c.brightness, c.contrast, c.saturation)]
    assert min(factors) >= 0.7
    assert max(factors) <= 1.3
    assert len(set(factors)) == 150
    casts = np.array([c.cast for c in colored])
    assert 0.9 <= casts.min() < 0.92 < 1.08 < casts.max() <= 1.1
    assert all(c.cast == (1, 1, 1) for c in plain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": ()},
        {"scales": (0, 1)},
        {"scale_range": (2, 1)},
        {"photometric": 1},
        {"color_cast": -0.1},
        {"rare_class_crops": -0.1},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)
