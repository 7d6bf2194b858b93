"""RoadScenes: images are reproducible, all classes occur, and color alone does not determine the class."""

import hashlib
import math

import numpy as np
import pytest
import torch

from s2fpn_lib.data.protocols import get_protocol
from s2fpn_lib.data.roadscenes.camera import Camera, Light
from s2fpn_lib.data.roadscenes.dataset import COUNTS, GENERATOR_VERSION, RoadScenes, render_scene
from s2fpn_lib.data.roadscenes.draw import Bars, Canvas
from s2fpn_lib.data.roadscenes.families import FAMILIES, HELD_OUT, family_of
from s2fpn_lib.data.roadscenes.objects import BUILDING, CAR, FENCE, PEDESTRIAN, SKY, TREE
from s2fpn_lib.data.roadscenes.people import pedestrian
from s2fpn_lib.data.roadscenes.vehicles import VEHICLES, vehicle

# (generator version, seed, size) -> the start of sha256 over image and label bytes
CHECKSUMS = {
    (1, 0, (240, 320)): "157497555773eb68",
    (1, 5, (240, 320)): "dbfdebd2fea029f7",
    (1, 300003, (121, 77)): "b9a18faed757a125",
    (1, 600001, (96, 128)): "c4e23321013083a0",
}
NOON = Light((0, 0, 1), (0.5,) * 3, (0.5,) * 3, (200,) * 3, 1e6, (90, 140, 210), (200,) * 3, (250,) * 3, 0.0, 0.0)


@pytest.fixture(scope="module")
def scenes():
    """Images (60, 240, 320, 3) and labels (60, 240, 320) of the first training scenes."""
    dataset = RoadScenes("train", count=60)
    images, labels = zip(*(dataset.arrays(i) for i in range(len(dataset))), strict=True)
    return np.stack(images), np.stack(labels)


def checksum(seed, size):
    image, label = render_scene(seed, size)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:16]


def camera():
    return Camera((240, 320), 290.0, 1.5, 0.0, 0.0, 0.0)


def test_a_scene_depends_on_its_seed_alone():
    first = render_scene(7)
    render_scene(8)
    render_scene(7, (96, 128))
    again = render_scene(7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], render_scene(13)[0])  # same family, another seed


@pytest.mark.parametrize(("version", "seed", "size"), list(CHECKSUMS))
def test_images_change_only_with_the_generator_version(version, seed, size):
    assert version == GENERATOR_VERSION, "new version: record its checksums here"
    assert checksum(seed, size) == CHECKSUMS[version, seed, size], (
        "the images changed: raise GENERATOR_VERSION in roadscenes/dataset.py and record the new checksums"
    )


def test_samples_follow_the_dataset_interface():
    dataset = RoadScenes("val", size=(64, 96), count=5)
    image, label = dataset[3]
    assert image.shape == (3, 64, 96)
    assert label.shape == (64, 96)
    assert image.dtype == label.dtype == torch.uint8
    expected, _ = render_scene(dataset.seeds[3], (64, 96))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert dataset.protocol == get_protocol("roadscenes")
    assert dataset.names[3] == f"{dataset.drives[3]}_{dataset.seeds[3]:06d}"


def test_splits_share_no_scene_and_only_test_has_the_held_out_family():
    splits = {split: RoadScenes(split) for split in COUNTS}
    assert {split: len(dataset) for split, dataset in splits.items()} == COUNTS
    names = [name for dataset in splits.values() for name in dataset.names]
    assert len(set(names)) == len(names)
    assert RoadScenes("trainval").names == splits["train"].names + splits["val"].names
    common = set(FAMILIES) - {HELD_OUT}
    assert set(splits["train"].drives) == set(splits["val"].drives) == common
    assert splits["test"].drives.count(HELD_OUT) == COUNTS["test"] // 10
    longer = RoadScenes("train", count=500).names
    assert longer[:400] == splits["train"].names


def test_the_cache_key_tells_contents_apart():
    variants = [("train", (64, 96), 5), ("val", (64, 96), 5), ("train", (96, 64), 5), ("train", (64, 96), 6)]
    keys = {RoadScenes(split, size=size, count=count).cache_key() for split, size, count in variants}
    assert len(keys) == len(variants)
    assert all(f"v{GENERATOR_VERSION}" in key for key in keys)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RoadScenes("dev"), "dev"),
        (lambda: RoadScenes("train", count=0), "count=0"),
        (lambda: render_scene(-1), "seed=-1"),
        (lambda: render_scene(0, (16, 320)), "16"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("size", [(96, 128), (121, 77), (360, 480)])
def test_a_scene_can_have_any_size(size):
    image, label = render_scene(3, size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    # the same scene seen by the same camera: class shares hardly move
    shares = np.bincount(label.ravel(), minlength=12) / label.size
    if size[0] / size[1] == 0.75:
        reference = np.bincount(render_scene(3)[1].ravel(), minlength=12) / (240 * 320)
        assert np.abs(shares - reference).max() < 0.02


def test_class_shares_are_plausible(scenes):
    _, labels = scenes
    assert set(np.unique(labels)) == set(get_protocol("roadscenes").label_ids)
    counts = np.stack([np.bincount(label.ravel(), minlength=12) for label in labels]) / labels[0].size
    share, present = counts.mean(axis=0), (counts > 0.0005).mean(axis=0)
    lowest = [0.10, 0.10, 0.012, 0.22, 0.035, 0.05, 0.01, 0.015, 0.05, 0.007, 0.01, 0.01]
    highest = [0.26, 0.26, 0.040, 0.42, 0.110, 0.18, 0.03, 0.060, 0.14, 0.020, 0.03, 0.04]
    assert ((share > lowest) & (share < highest)).all(), share.round(4)
    assert (present[:11] >= 0.75).all(), present


def test_sky_is_above_road_and_lighting_varies_between_scenes(scenes):
    images, labels = scenes
    rows = np.arange(240)[None, :, None]
    for class_id, low, high in ((SKY, 0, 110), (3, 130, 240)):
        mask = labels == class_id
        mean_row = (rows * mask).sum() / mask.sum()
        assert low < mean_row < high
        brightness = [images[i][mask[i]].mean() for i in range(len(images)) if mask[i].any()]
        assert np.std(brightness) > 12


@pytest.mark.parametrize("kind", list(VEHICLES))
def test_vehicles_shrink_with_distance_as_in_a_pinhole_camera(kind):
    heights, areas = [], []
    for y in (14.0, 28.0):
        canvas = Canvas(camera(), NOON)
        vehicle(canvas, np.random.default_rng(0), y, 0.0, y, 0.0, 1.0, kind, False)
        mask = canvas.render()[1] == CAR
        rows = np.flatnonzero(mask.any(axis=1))
        heights.append(rows[-1] - rows[0] + 1)
        areas.append(mask.sum())
    near, far = 14.0 - VEHICLES[kind].length / 2, 28.0 - VEHICLES[kind].length / 2
    assert heights[0] / heights[1] == pytest.approx(far / near, rel=0.2)
    assert areas[0] / areas[1] == pytest.approx((far / near) ** 2, rel=0.35)


def test_a_pedestrian_stands_on_the_ground_at_human_height():
    canvas = Canvas(camera(), NOON)
    pedestrian(canvas, np.random.default_rng(0), 8.0, 0.0, 8.0)
    rows = np.flatnonzero((canvas.render()[1] == PEDESTRIAN).any(axis=1))
    feet = (rows[-1] + 1 - 120) / 290 * 8  # meters below the camera
    assert feet == pytest.approx(1.5, abs=0.06)
    assert 1.1 < (rows[-1] - rows[0]) / 290 * 8 < 2.0


def test_near_objects_hide_far_ones_in_any_order_of_adding():
    def board(canvas, y, class_id, half):
        canvas.shape(y, [(-half, y, 0), (half, y, 0), (half, y, 3), (-half, y, 3)], class_id, (90, 90, 90))

    labels = []
    for order in ((0, 1), (1, 0)):
        canvas = Canvas(camera(), NOON)
        for i in order:
            board(canvas, *((20.0, BUILDING, 4.0), (10.0, TREE, 1.0))[i])
        labels.append(canvas.render()[1])
    assert np.array_equal(*labels)
    assert labels[0][120, 160] == TREE
    assert labels[0][120, 120] == BUILDING


def test_a_fence_is_labeled_as_a_whole_and_shows_what_is_behind_its_bars():
    images = []
    for with_fence in (False, True):
        canvas = Canvas(camera(), NOON)
        canvas.shape(9, [(-9, 9, 0), (9, 9, 0), (9, 9, 9), (-9, 9, 9)], BUILDING, (200, 60, 60))
        if with_fence:
            outline = [(-2, 6, 0), (2, 6, 0), (2, 6, 2), (-2, 6, 2)]
            canvas.overlay(6, outline, FENCE, (10, 10, 10), (0, -1), Bars(spacing=0.5, width=0.1))
        image, label = canvas.render()
        images.append(image)
    fence = label == FENCE
    changed = np.abs(images[1] - images[0]).sum(axis=0) > 1
    assert not changed[~fence].any()
    assert 0.15 < changed[fence].mean() < 0.5  # a fifth is bar, plus the half-covered pixels beside it


def test_windows_and_textures_follow_perspective():
    """A wall's plane recovered by the renderer agrees with the projection of a point on it."""
    view = Camera((240, 320), 290.0, 1.5, 0.05, -0.04, 0.02)
    canvas = Canvas(view, NOON)
    point = np.array([[3.0, 12.0, 2.2]])
    (u, v) = view.to_pixels(view.to_camera(point))[0]
    ray = view.rays()[:, math.floor(v), math.floor(u)].astype(np.float64)
    nx, ny = 0.6, -0.8
    table = np.zeros((13, 1), np.float32)
    table[5], table[6], table[7] = nx, ny, nx * 3 + ny * 12
    t, along, up = canvas._on_wall(table, np.array([0]), *(ray[i : i + 1] for i in range(3)))
    assert t[0] == pytest.approx(view.to_camera(point)[0, 2], abs=0.2)
    assert up[0] == pytest.approx(2.2, abs=0.1)
    assert along[0] == pytest.approx(nx * 12 - ny * 3, abs=0.3)


def test_color_alone_does_not_determine_the_class(scenes):
    """The best class for each of 4096 colors, learned from 40 scenes, fails on 20 others.

    Measured at version 1: pixel accuracy 0.61 (sky and road are easy), mIoU 0.24, thin classes 0.00 to 0.05.
    """
    images, labels = scenes
    bins = (images >> 4).astype(np.int64) @ np.array([256, 16, 1])  # (60, 240, 320) color cell 0..4095
    valid = labels < 11
    train, held_out = valid.copy(), valid.copy()
    train[40:], held_out[:40] = False, False
    votes = np.bincount(bins[train] * 11 + labels[train], minlength=4096 * 11).reshape(4096, 11)
    predicted, truth = votes.argmax(axis=1)[bins[held_out]], labels[held_out]
    matrix = np.bincount(truth.astype(np.int64) * 11 + predicted, minlength=121).reshape(11, 11)
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    accuracy = np.diag(matrix).sum() / matrix.sum()
    assert accuracy < 0.63, accuracy
    assert iou.mean() < 0.26, iou.round(3)


def test_families_differ(scenes):
    _, labels = scenes
    families = np.array(RoadScenes("train", count=60).drives)
    buildings = {family: (labels[families == family] == BUILDING).mean() for family in set(families)}
    assert buildings["alley"] > 1.5 * buildings["highway"]
    assert all(family_of(seed) == FAMILIES[seed % len(FAMILIES)] for seed in range(12))
