"""Pictures and labels from a dataset, files and uploads; models by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.inspector.sources import (
    dataset_picture,
    file_picture,
    opened_model,
    read_label,
    scaled_picture,
    uploaded_label,
    uploaded_picture,
)
from s2fpn_lib.workbench.media import MediaError

PROTOCOL = get_protocol("roadscenes")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 12, (40, 60), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    (tmp_path / "label.png").write_bytes(png(IDS))
    return tmp_path


def test_released_model_keeps_its_name():
    found = opened_model("s2fpn_lite-camvid")
    assert found.name == "s2fpn_lite-camvid"
    assert found.provenance["trained_on"] == "camvid"
    assert not found.model.training


def test_dataset_images_come_at_the_size_of_the_protocol_that_the_model_knows():
    dataset = open_dataset("roadscenes", split="val", cache=False)
    picture = dataset_picture(dataset, 0, "protocol", get_protocol("camvid-segnet-360x480"))
    image, label = dataset[0]
    assert (picture.name, picture.own_size) == (dataset.names[0], tuple(label.shape))
    assert picture.image.shape == (3, 360, 480)
    assert set(picture.label.unique().tolist()) <= set(label.unique().tolist())
    assert torch.equal(dataset_picture(dataset, 0, "own", PROTOCOL).image, image)
    assert dataset_picture(dataset, 0, "own", get_protocol("cityscapes-fine-1024x2048")).label is None
    with pytest.raises(IndexError, match=r"images 0 to \d+, not -1"):
        dataset_picture(dataset, -1, "own", PROTOCOL)


def test_files_and_uploads_are_the_same_picture(files):
    picture = file_picture(files / "a.png", files / "label.png", "own", PROTOCOL)
    assert torch.equal(picture.image, torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(picture.label, torch.from_numpy(IDS))
    upload = uploaded_picture({"name": "a.png", "content": memoryview(png(PIXELS))}, "own", PROTOCOL)
    assert torch.equal(upload.image, picture.image)
    label = uploaded_label({"name": "l.png", "content": memoryview(png(IDS))}, PROTOCOL)
    assert torch.equal(upload.labeled(label).label, picture.label)


def test_labels_are_scaled_without_new_ids(files):
    picture = file_picture(files / "a.png", files / "label.png", (80, 120), PROTOCOL)
    assert torch.equal(picture.label[::2, ::2], torch.from_numpy(IDS))
    assert torch.equal(picture.label[1::2, 1::2], torch.from_numpy(IDS))


def test_label_of_another_size_is_refused():
    picture = scaled_picture("a", torch.zeros(3, 40, 60, dtype=torch.uint8), None, "protocol", PROTOCOL)
    with pytest.raises(ValueError, match="the label is 60x40 and the picture 40x60"):
        picture.labeled(torch.zeros(60, 40, dtype=torch.uint8))
    assert picture.labeled(None).label is None


def test_colours_of_the_protocol_are_its_ids(tmp_path):
    colors = np.array([*PROTOCOL.palette, (1, 2, 3)], np.uint8)
    (tmp_path / "c.png").write_bytes(png(colors[IDS]))
    assert torch.equal(read_label(tmp_path / "c.png", PROTOCOL), torch.from_numpy(IDS))


def test_255_is_not_labelled(tmp_path):
    (tmp_path / "l.png").write_bytes(png(np.full((4, 4), 255, np.uint8)))
    assert read_label(tmp_path / "l.png", PROTOCOL).unique().tolist() == [PROTOCOL.ignore_id]


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((4, 4), 77, np.uint8), r"holds \[77\], but the train ids of roadscenes are 0 to 10"),
        (np.full((4, 4, 3), 7, np.uint8), "none of its colours"),
    ],
)
def test_labels_of_other_ids_and_colours_are_refused(tmp_path, pixels, said):
    (tmp_path / "l.png").write_bytes(png(pixels))
    with pytest.raises(ValueError, match=said):
        read_label(tmp_path / "l.png", PROTOCOL)


def test_broken_files_are_named_as_their_owner_names_them(tmp_path):
    with pytest.raises(MediaError, match=r"^holiday.png: no readable picture"):
        uploaded_picture({"name": "holiday.png", "content": b"no picture"}, "own", PROTOCOL)
    with pytest.raises(MediaError, match=r"^l.png: no readable label"):
        uploaded_label({"name": "l.png", "content": b"no picture"}, PROTOCOL)
    with pytest.raises(MediaError, match=r"nowhere\.png"):
        file_picture(tmp_path / "nowhere.png", None, "own", PROTOCOL)
