"""Label pictures pixel by pixel."""

import numpy as np
import pytest
import torch

from s2fpn_lib.data import get_protocol
from s2fpn_lib.viz.images import (
    ERROR_COLOUR,
    class_legend,
    colorize,
    error_picture,
    legend_patches,
    overlay,
    show_predictions,
)

CAMVID, CITYSCAPES = get_protocol("camvid-segnet-360x480"), get_protocol("cityscapes-fine-1024x2048")


@pytest.mark.parametrize("protocol", [CAMVID, CITYSCAPES], ids=lambda p: p.name)
def test_every_id_gets_its_palette_colour(protocol):
    ids = torch.tensor([protocol.label_ids], dtype=torch.uint8)
    picture = colorize(ids, protocol)
    assert picture.dtype == np.uint8
    assert [tuple(c) for c in picture[0].tolist()] == [*protocol.palette, protocol.ignore_color]


def test_overlay_leaves_ignored_pixels_alone():
    image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    mixed = overlay(image, torch.tensor([[11, 3]], dtype=torch.uint8), CAMVID, opacity=0.5)
    assert mixed[0].tolist() == [[100, 100, 100], [114, 82, 114]]


def test_error_picture_marks_wrong_pixels_only():
    image = torch.zeros(3, 1, 3, dtype=torch.uint8)
    label, pred = torch.tensor([[1, 2, 11]], dtype=torch.uint8), torch.tensor([[1, 3, 5]], dtype=torch.uint8)
    assert error_picture(image, label, pred, CAMVID)[0].tolist() == [[110] * 3, list(ERROR_COLOUR), [255] * 3]


def test_legends_name_every_class_with_its_colour():
    patches = legend_patches(CITYSCAPES)
    assert [p.get_label() for p in patches] == [*CITYSCAPES.classes, "ignored"]
    assert patches[0].get_facecolor()[:3] == pytest.approx(np.array(CITYSCAPES.palette[0]) / 255)
    texts = [t.get_text() for t in class_legend(CAMVID).legends[0].get_texts()]
    assert [t.split()[0] for t in texts] == [str(i) for i in CAMVID.label_ids]


def test_prediction_grid_shows_what_it_is_given():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    label = torch.randint(0, 11, (20, 30), dtype=torch.uint8)
    pred = label.roll(3, 1)
    figure = show_predictions([image], [label], [pred], CAMVID, names=["0016E5_1"])
    shown = [axis.images[0].get_array() for axis in figure.axes]
    expected = [image.permute(1, 2, 0), colorize(label, CAMVID), colorize(pred, CAMVID)]
    for got, want in zip(shown, [*expected, error_picture(image, label, pred, CAMVID)], strict=True):
        np.testing.assert_array_equal(got, want)
    assert "0016E5_1" in [text.get_text() for text in figure.texts]
    with pytest.raises(ValueError, match="no pictures"):
        show_predictions([], [], [], CAMVID)
