"""Images pixel by pixel, and galleries that show what the evaluation scored."""

import numpy as np
import pytest
import torch

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.model import build_model
from s2fpn_lib.viz.images import (
    ERROR_COLOR,
    class_legend,
    colorize,
    error_image,
    legend_patches,
    overlay,
    predicted,
    prediction_grid,
    weakest_classes,
    worst_images,
)

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
    texts = [t.get_text() for t in class_legend(CAMVID).legends[0].get_texts()]
    assert [t.split()[0] for t in texts] == [str(i) for i in CAMVID.label_ids]


@pytest.fixture(scope="module")
def scored():
    dataset = open_dataset("roadscenes", split="val", cache=False)
    model = build_model("s2fpn_lite", num_classes=11)
    return model, dataset, evaluate(model, dataset, limit=2, flip=True, progress=False)


def test_worst_images_show_their_errors_and_scores(scored):
    model, dataset, evaluation = scored
    index = evaluation.worst("Road", 1)[0]
    figure = worst_images(model, dataset, evaluation, class_name="Road", count=1, flip=True)
    image, label = dataset[index]
    protocol = dataset.protocol
    pred = predicted(model, image, protocol.size, flip=True)
    alone = ConfusionMatrix(11, 11)
    alone.update(pred, label)
    caption = f"{dataset.names[index]}: Road IoU in this image {100 * alone.iou()[3]:.1f} %"
    assert caption in [text.get_text() for text in figure.axes[0].texts]
    expected = [image.permute(1, 2, 0), colorize(label, protocol), colorize(pred, protocol)]
    expected.append(error_image(image, label, pred, protocol))
    for axis, want in zip(figure.axes, expected, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), want)


def test_an_empty_grid_is_refused(scored):
    model, dataset, _ = scored
    with pytest.raises(ValueError, match="no images"):
        prediction_grid(model, dataset, [])


def test_weakest_classes_are_labeled_and_ordered(scored):
    _, _, evaluation = scored
    table = evaluation.per_class()
    names = weakest_classes(evaluation, 4)
    assert list(table.loc[names, "iou"]) == sorted(table.loc[names, "iou"])
    assert (table.loc[names, "label_share"] > 0).all()
