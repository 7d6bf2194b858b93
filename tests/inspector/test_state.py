"""Models, pictures, and labels that are opened, what an inspection keeps of a forward pass, and the immutable state."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.checkpoint import save_weights
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.data.images import ImageError
from s2fpn_lib.inspector import State, inspect
from s2fpn_lib.inspector.state import VIEWS, NamedModel, Picture, Upload, available_views, label_ids
from s2fpn_lib.model import build_model
from tests.inspecting import PROTOCOL, SIZE, inspection, network, random_ids, random_image, unlabeled

IDS = random_ids(12, (40, 60))
PIXELS = random_ids(256, (40, 60, 3)).numpy()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def upload(name, content):
    return Upload(name, content)


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_inspection_keeps_model_outputs(revision):
    model, found = network(revision=revision), inspection(revision=revision)
    with torch.inference_mode(), AttentionRecorder(model) as recorder:
        logits = model(model.preprocess(random_image()[None]))
    torch.testing.assert_close(found.probabilities, logits[0].softmax(0))
    assert torch.equal(found.ids.long(), logits[0].argmax(0))
    for kept, recorded in zip(found.levels, recorder.capture.levels, strict=True):
        assert torch.equal(kept.gates, recorded.gates)
        assert kept.gamma == recorded.gamma
    assert (found.size, found.revision, found.warning) == (SIZE, revision, "")


def test_one_forward_pass_restores_training_mode_and_warns_if_untrained():
    model = build_model("s2fpn_lite", num_classes=PROTOCOL.num_classes).train()
    passes = []
    model.register_forward_hook(lambda module, *_: passes.append(module.training))
    assert "untrained" in inspect(NamedModel("new", model), inspection().picture, PROTOCOL).warning
    assert passes == [False]
    assert all(module.training for module in model.modules())


def test_an_untrained_network_without_gamma_has_a_warning():
    seen = inspection(ssam=False, deep_supervision=False)
    assert seen.warning == "", "nothing in the network itself tells"
    new = dataclasses.replace(seen.model, provenance={"checkpoint": "untrained", "seed": 0})
    assert inspect(new, seen.picture, PROTOCOL).warning.startswith("This network is untrained")


def test_a_model_of_another_number_of_classes_is_refused():
    model = NamedModel("mine", network())
    with pytest.raises(ValueError, match="mine predicts 11 classes, but cityscapes-fine-1024x2048 has 19"):
        inspect(model, inspection().picture, get_protocol("cityscapes-fine-1024x2048"))


@pytest.mark.parametrize(("width", "stride"), [(640, 1), (641, 2), (1281, 3)])
def test_stride_of_wide_images(width, stride):
    wide = dataclasses.replace(inspection().picture, image=random_image((2, width)))
    assert dataclasses.replace(inspection(), picture=wide).stride == stride


def test_pixel_on_level():
    found = inspection()
    for level in found.levels:
        assert found.on_level(level, 0, 0) == (0, 0)
        assert found.on_level(level, 44, 70) == (level.size[0] - 1, level.size[1] - 1)


def test_pixel_is_clamped_to_the_image():
    state = State(y=5, x=5)
    assert state.at(-3, 200, (64, 96)) == State(y=0, x=95)
    assert state.at(63, 200, (64, 96), 2) == State(y=62, x=94), "only every second pixel is drawn"
    assert state == State(y=5, x=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.y = 3


def test_state_survives_json():
    state = State(3, 4, "entropy", hidden=frozenset({2, 1}), pins=((5, 6),), before="other model", wipe=0.25)
    plain = json.loads(json.dumps(state.plain()))
    assert (plain["hidden"], plain["pins"]) == ([1, 2], [[5, 6]])
    assert State.of_plain(plain) == state


def test_views_depend_on_the_label_and_on_a_second_model():
    one, two = inspection(revision="v1"), inspection(revision="v2")
    assert available_views([one, two]) == list(VIEWS)
    assert set(VIEWS) - set(available_views([one])) == {"disagreement", "total variation"}
    assert set(VIEWS) - set(available_views([unlabeled(one), two])) == {"true classes", "errors"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"view": "depth"}, "choose one of"),
        ({"before": "after"}, "choose one of"),
        ({"opacity": 1.5}, "between 0"),
        ({"threshold": -0.1}, "between 0"),
    ],
)
def test_invalid_state_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        State(**wrong)


def test_released_model_keeps_its_name():
    found = NamedModel.load("s2fpn_lite-camvid")
    assert (found.name, found.path, found.provenance["trained_on"]) == (*["s2fpn_lite-camvid"] * 2, "camvid")
    assert not found.network.training


def test_runs_are_named_by_their_last_folders(tmp_path):
    runs = [tmp_path / "10_train" / name / "run" for name in ("one", "two.5")]
    for run in runs:
        save_weights(network(), run / "best.safetensors", {"protocol": "roadscenes"})
    assert [NamedModel.load(run).name for run in runs] == ["10_train/one/run", "10_train/two.5/run"]
    assert NamedModel.load(runs[1] / "best.safetensors").name == "10_train/two.5/run/best"


def test_dataset_image_is_scaled_to_the_protocol():
    dataset = open_dataset("roadscenes", split="val", cache=False)
    picture = Picture.of_dataset(dataset, 0, "protocol", get_protocol("camvid-segnet-360x480"))
    image, label = dataset[0]
    assert (picture.name, picture.own_size) == (dataset.names[0], tuple(label.shape))
    assert picture.image.shape == (3, 360, 480)
    assert set(picture.label.unique().tolist()) <= set(label.unique().tolist())
    assert torch.equal(Picture.of_dataset(dataset, 0, "own", PROTOCOL).image, image)
    assert Picture.of_dataset(dataset, 0, "own", get_protocol("cityscapes-fine-1024x2048")).label is None
    with pytest.raises(IndexError, match=r"^RoadScenes val has the images 0 to \d+, not -1"):
        Picture.of_dataset(dataset, -1, "own", PROTOCOL)


def test_files_and_uploads_give_the_same_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    (tmp_path / "label.png").write_bytes(png(IDS))
    for image, label in (
        (tmp_path / "a.png", str(tmp_path / "label.png")),
        (upload("a.png", png(PIXELS)), upload("l.png", png(IDS))),
    ):
        picture = Picture.of_file(image, "own", PROTOCOL)
        assert (picture.name, picture.label) == ("a.png", None)
        assert torch.equal(picture.image, torch.from_numpy(PIXELS).permute(2, 0, 1))
        assert torch.equal(picture.labeled(label_ids(label, PROTOCOL)).label, IDS)


def test_label_is_scaled_without_new_ids():
    picture = Picture.of_file(upload("a.png", png(PIXELS)), (80, 120), PROTOCOL).labeled(IDS)
    assert torch.equal(picture.label[::2, ::2], IDS)
    assert torch.equal(picture.label[1::2, 1::2], IDS)
    with pytest.raises(ValueError, match=r"the label is \(60, 40\) and the picture \(40, 60\)"):
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
        Picture.of_file(upload("holiday.png", b"no image"), "own", PROTOCOL)
    with pytest.raises(ImageError, match=r"^l.png: cannot be decoded"):
        label_ids(upload("l.png", b"no image"), PROTOCOL)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        Picture.of_file(tmp_path / "nowhere.png", "own", PROTOCOL)
