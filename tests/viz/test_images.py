"""Images pixel by pixel, and galleries that show what the evaluation scored."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.model import build_model
from s2fpn_lib.viz.images import (
    ERROR_COLOR,
    as_array,
    colorize,
    contact_sheet,
    crop_around,
    error_image,
    image_grid,
    largest_error,
    legend_patches,
    outline,
    overlay,
    predicted,
    prediction_grid,
    worst_images,
)
from s2fpn_lib.viz.style import HIGHLIGHT

CAMVID, CITYSCAPES = get_protocol("camvid-segnet-360x480"), get_protocol("cityscapes-fine-1024x2048")


@pytest.mark.parametrize("protocol", [CAMVID, CITYSCAPES], ids=lambda p: p.name)
def test_every_id_gets_its_palette_color(protocol):
    ids = torch.tensor([protocol.label_ids], dtype=torch.uint8)
    shown = colorize(ids, protocol)
    assert shown.dtype == np.uint8
    assert [tuple(c) for c in shown[0].tolist()] == [*protocol.palette, protocol.ignore_color]


def test_overlay_leaves_ignored_pixels_alone():
    image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    mixed = overlay(image, torch.tensor([[11, 3]], dtype=torch.uint8), CAMVID, opacity=0.5)
    assert mixed[0].tolist() == [[100, 100, 100], [114, 82, 114]]


def test_error_image_marks_wrong_pixels_only():
    image = torch.zeros(3, 1, 3, dtype=torch.uint8)
    label, pred = torch.tensor([[1, 2, 11]], dtype=torch.uint8), torch.tensor([[1, 3, 5]], dtype=torch.uint8)
    assert error_image(image, label, pred, CAMVID)[0].tolist() == [[110] * 3, list(ERROR_COLOR), [255] * 3]


def test_legends_name_every_class_with_its_color():
    patches = legend_patches(CITYSCAPES)
    assert [p.get_label() for p in patches] == [*CITYSCAPES.classes, "ignored"]
    assert patches[0].get_facecolor()[:3] == pytest.approx(np.array(CITYSCAPES.palette[0]) / 255)


@pytest.fixture(scope="module")
def scored():
    dataset = open_dataset("roadscenes", split="val", cache=False)
    model = build_model("s2fpn_lite", num_classes=11)
    return model, dataset, evaluate(model, dataset, limit=2, flip=True, progress=False)


def test_worst_images_show_their_errors_and_scores(scored):
    model, dataset, evaluation = scored
    index = evaluation.worst(None, 1)[0]
    figure = worst_images(model, dataset, evaluation, "", 1, flip=True)
    image, label = dataset[index]
    protocol = dataset.protocol
    pred = predicted(model, image, protocol.size, flip=True)
    alone = ConfusionMatrix(11, 11)
    alone.update(pred, label)
    caption = f"{dataset.names[index]}: mean IoU in this image {100 * alone.miou():.1f} %"
    assert caption in [text.get_text() for text in figure.axes[0].texts]
    expected = [image.permute(1, 2, 0), colorize(label, protocol), colorize(pred, protocol)]
    expected.append(error_image(image, label, pred, protocol))
    for axis, want in zip(figure.axes, expected, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), want)


def test_worst_images_of_a_class_show_it_and_its_largest_error(scored):
    model, dataset, evaluation = scored
    index = evaluation.worst("Road", 1)[0]
    image, label = dataset[index]
    pred = predicted(model, image, dataset.protocol.size, flip=True)
    error, text = largest_error(label, pred, "Road", dataset.protocol)
    figure = worst_images(model, dataset, evaluation, "Road", 1, flip=True)
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    np.testing.assert_array_equal(shown[0], outline(as_array(image), label == 3))
    part = crop_around(error)
    np.testing.assert_array_equal(shown[3], outline(colorize(pred, dataset.protocol), error)[part])
    assert figure.axes[0].texts[0].get_text().endswith(f". {text}")


def test_the_largest_error_of_a_class_by_hand():
    label = torch.zeros(8, 10, dtype=torch.uint8)
    label[1:3, 1:4] = 2  # six pixels of Pole, predicted as Building
    label[6:8, 5:9] = 2  # eight pixels, found
    label[5, 0] = 11  # ignored
    pred = label.clone()
    pred[1:3, 1:4] = 1
    pred[5, 0] = 2
    pred[4, 6] = 2  # one pixel of Sky, predicted as Pole
    region, text = largest_error(label, pred, "Pole", CAMVID)
    assert torch.equal(region, torch.nn.functional.pad(torch.ones(2, 3), (1, 6, 1, 5)) > 0)
    assert text == "Largest error: 6 pixels, mostly Pole predicted as Building"
    assert crop_around(region, least=0.5) == (slice(0, 4), slice(0, 5))  # 2 sqrt(6 / 80) of 8 x 10 pixels
    assert largest_error(label, label, "Pole", CAMVID)[1] == "no error of Pole"
    snake = torch.ones(9, 9, dtype=torch.uint8)
    snake[1::4, :-1] = snake[3::4, 1:] = 0  # one connected line of 45 pixels with 4 connections
    region, _ = largest_error(snake, torch.zeros_like(snake), "Building", CAMVID)
    assert torch.equal(region, snake == 1)


def test_an_outline_surrounds_the_mask():
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[3, 3] = True
    drawn = (outline(np.zeros((7, 7, 3), np.uint8), mask) == HIGHLIGHT).all(-1)
    assert drawn.sum() == 24  # a square of 5 x 5 without its middle
    assert not drawn[3, 3]


def test_a_contact_sheet_holds_thumbnails_and_pictures():
    gray = np.full((30, 40, 3), 100, np.uint8)
    page = contact_sheet([("7 · a", [gray, gray]), ("8 · b", [gray, gray])], columns=3)
    assert page.count("<details>") == 2
    assert "7 · a</summary>" in page
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(data))).size
        for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    ]
    assert sizes == [(40, 30), (80, 30)] * 2


def test_a_grid_with_a_color_bar():
    gray = np.full((30, 40, 3), 100, np.uint8)
    figure = image_grid([[gray]], ["a"], ["b"], CAMVID, 6.0, scale=("cividis", "confidence"))
    assert figure.axes[-1].get_ylabel() == "confidence"
    assert figure.axes[-1].get_ylim() == (0, 1)


def test_an_empty_grid_is_refused(scored):
    model, dataset, _ = scored
    with pytest.raises(ValueError, match="no images"):
        prediction_grid(model, dataset, [])
