"""Images and labels of a dataset, of files, and of uploads; models by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.data.images import ImageError
from s2fpn_lib.inspector.sources import Upload, dataset_picture, file_picture, label_ids, opened_model
from tests.inspecting import PROTOCOL, random_ids

IDS = random_ids(12, (40, 60))
PIXELS = random_ids(256, (40, 60, 3)).numpy()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def upload(name, content):
    return Upload({"name": name, "content": memoryview(content)})


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    (tmp_path / "label.png").write_bytes(png(IDS))
    return tmp_path


def test_released_model_keeps_its_name():
    found = opened_model("s2fpn_lite-camvid")
    assert (found.name, found.provenance["trained_on"]) == ("s2fpn_lite-camvid", "camvid")
    assert not found.model.training


def test_dataset_image_is_scaled_to_the_protocol():
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


def test_files_and_uploads_give_the_same_picture(files):
    picture = file_picture(files / "a.png", files / "label.png", "own", PROTOCOL)
    assert torch.equal(picture.image, torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(picture.label, IDS)
    uploaded = file_picture(upload("a.png", png(PIXELS)), None, "own", PROTOCOL)
    assert (uploaded.name, uploaded.label) == (picture.name, None)
    assert torch.equal(uploaded.image, picture.image)
    labeled = uploaded.labeled(label_ids(upload("l.png", png(IDS)), PROTOCOL))
    assert torch.equal(labeled.label, picture.label)


def test_label_is_scaled_without_new_ids(files):
    picture = file_picture(files / "a.png", files / "label.png", (80, 120), PROTOCOL)
    assert torch.equal(picture.label[::2, ::2], IDS)
    assert torch.equal(picture.label[1::2, 1::2], IDS)
    with pytest.raises(ValueError, match="the label is 60x40 and the picture 40x60"):
        picture.labeled(IDS.T)


def test_label_in_colors():
    colors = np.array([*PROTOCOL.palette, (1, 2, 3)], np.uint8)
    assert torch.equal(label_ids(upload("c.png", png(colors[IDS])), PROTOCOL), IDS)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), 77, np.uint8), r"^l.png: holds the ids \[77\], but the train ids of roadscenes are 0 to 10"),
        (np.full((4, 4, 3), 7, np.uint8), "^l.png: none of its colors"),
    ],
)
def test_unknown_ids_and_colors_are_errors(pixels, message):
    with pytest.raises(ValueError, match=message):
        label_ids(upload("l.png", png(pixels)), PROTOCOL)
    unlabeled = label_ids(upload("l.png", png(np.full((4, 4), 255, np.uint8))), PROTOCOL)
    assert unlabeled.unique().tolist() == [PROTOCOL.ignore_id]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"^holiday.png: cannot be decoded"):
        file_picture(upload("holiday.png", b"no image"), None, "own", PROTOCOL)
    with pytest.raises(ImageError, match=r"^l.png: cannot be decoded"):
        label_ids(upload("l.png", b"no image"), PROTOCOL)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        file_picture(tmp_path / "nowhere.png", None, "own", PROTOCOL)
