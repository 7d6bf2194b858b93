"""The widget without a browser: what its events do to the state, the pictures, the files and the messages."""

from __future__ import annotations

import datetime
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.inspector import State, readout, render, render_level
from s2fpn_lib.inspector.sources import NamedModel
from s2fpn_lib.inspector.widget import Inspector
from s2fpn_lib.model import build_model

PROTOCOL = get_protocol("roadscenes")
SIZE = (48, 64)


def named(name="first", gamma=0.3, num_classes=11, **config):
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", num_classes=num_classes, **config).eval()
    for key, value in model.state_dict().items():
        if key.endswith("gamma"):
            value.fill_(gamma)
    return NamedModel(name, model, {"checkpoint": f"{name}.safetensors", "seed": 0})


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("roadscenes", split="val", cache=False)


@pytest.fixture
def model():
    """With a list that grows by one with every forward pass."""
    found = named()
    passes: list[int] = []
    found.model.register_forward_hook(lambda *_: passes.append(1))
    return found, passes


@pytest.fixture
def inspector(model, dataset, tmp_path):
    widget = Inspector(model[0], PROTOCOL, dataset=dataset, size=SIZE, results=tmp_path)
    widget.open_index(0)
    return widget


def drawn(canvas):
    return np.asarray(Image.open(io.BytesIO(canvas.picture))).astype(int)


def close_to(canvas, pixels):
    """JPEG of full colour resolution: nearly what was drawn."""
    return drawn(canvas).shape == pixels.shape and np.abs(drawn(canvas) - pixels).mean() < 4


def upload(name, content):
    now = datetime.datetime.now(tz=datetime.UTC)
    return (
        {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content), "last_modified": now},
    )


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_before_a_picture_it_says_what_to_do(model, dataset, tmp_path):
    inspector = Inspector(model[0], PROTOCOL, dataset=dataset, results=tmp_path)
    assert "No picture yet" in inspector.status.value
    assert inspector.stage.children == ()
    assert inspector.view_controls.save.disabled
    inspector.panels[0].canvas.pixel = (3, 4)
    inspector.view_controls.pin.click()
    assert inspector.error.startswith("Pinning the pixel failed. LookupError: no picture is open")
    assert model[1] == []


def test_a_click_indexes_and_runs_nothing(inspector, model):
    assert len(model[1]) == 1
    panel, inspection = inspector.panels[0], inspector.inspections[0]
    panel.canvas.pixel = (40, 9)
    panel.canvas.pixel = (41, 9)  # what an arrow key sends
    assert inspector.state == State(y=41, x=9)
    assert len(model[1]) == 1
    assert close_to(panel.canvas, render(inspector.state, inspection))
    for index, canvas in enumerate(panel.levels):
        assert close_to(canvas, render_level(inspector.state, inspection, index))
    found = readout(inspector.state, inspection)
    assert panel.canvas.description == found.sentence()
    assert panel.canvas.size == SIZE
    assert f"<h4>{found.prediction}</h4>row 41, column 9" in panel.text.value
    assert f"{found.confidence:.1%}" in panel.text.value
    assert panel.levels[3].label == found.levels[3].sentence()
    assert (inspector.view_controls.y.value, inspector.view_controls.x.value) == (41, 9)


def test_numeric_fields_and_canvas_agree(inspector):
    inspector.view_controls.y.value = 7
    inspector.view_controls.x.value = 1000  # beyond the image: its last column
    assert inspector.state == State(y=7, x=63)
    assert inspector.panels[0].canvas.pixel == (7, 63)


def test_view_and_opacity(inspector):
    inspector.view_controls.view.value = "confidence"
    inspector.view_controls.opacity.value = 1.0
    assert (inspector.state.view, inspector.state.opacity) == ("confidence", 1.0)
    assert close_to(inspector.panels[0].canvas, render(inspector.state, inspector.inspections[0]))


def test_classes_are_toggled_alone_all_and_none(inspector):
    legend = inspector.legend
    legend.boxes[3].value = False
    assert inspector.state.hidden == {3}
    legend.only[8].click()
    assert inspector.state.hidden == set(range(11)) - {8}
    assert [box.value for box in legend.boxes] == [i == 8 for i in range(11)]
    legend.none.click()
    assert inspector.state.hidden == set(range(11))
    assert close_to(inspector.panels[0].canvas, render(inspector.state, inspector.inspections[0]))
    legend.all.click()
    assert inspector.state.hidden == set()
    assert all(box.value for box in legend.boxes)


def test_pins_bring_back_to_their_pixel(inspector):
    inspector.panels[0].canvas.pixel = (5, 6)
    inspector.view_controls.pin.click()
    assert inspector.view_controls.pin.description == "Unpin"
    inspector.panels[0].canvas.pixel = (30, 31)
    (button,) = inspector.view_controls.pins.children
    assert button.description.startswith("5, 6: ")
    button.click()
    assert (inspector.state.y, inspector.state.x) == (5, 6)
    inspector.view_controls.pin.click()
    assert inspector.state.pins == ()
    assert inspector.view_controls.pins.children == ()


def test_another_image_is_another_pass_and_forgets_the_pins(inspector, model, dataset):
    inspector.view_controls.pin.click()
    inspector.image_controls.index.value = 2
    assert inspector.picture.name == dataset.names[2]
    assert len(model[1]) == 2
    assert inspector.state.pins == ()
    assert dataset.names[2] in inspector.image_controls.what.value


def test_two_models_side_by_side(inspector, model):
    other = named("second", revision="v2")
    inspector.compare(other)
    assert len(model[1]) == 1, "the first model has seen this image already"
    assert inspector.stage.children == tuple(inspector.panels)
    inspector.panels[1].canvas.pixel = (11, 12)
    for panel, inspection in zip(inspector.panels, inspector.inspections, strict=True):
        assert panel.canvas.pixel == (11, 12)
        assert panel.canvas.description == readout(inspector.state, inspection).sentence()
    assert "two gates for each image column" in inspector.panels[0].note.value
    assert "a distribution of its own" in inspector.panels[1].note.value
    inspector.image_controls.stop.click()
    assert [each.name for each in inspector.models] == ["first"]
    assert len(inspector.stage.children) == 1


def test_a_second_model_by_name(inspector):
    inspector.image_controls.second.value = "s2fpn_lite-camvid"
    inspector.image_controls.compare.click()
    assert inspector.error == ""
    assert [each.name for each in inspector.models] == ["first", "s2fpn_lite-camvid"]
    inspector.image_controls.second.value = "s2fpn_lite-camvit"
    inspector.image_controls.compare.click()
    assert "Did you mean 's2fpn_lite-camvid'?" in inspector.error
    assert "Opening the second model failed." in inspector.message.value
    assert len(inspector.models) == 2


def test_a_model_of_other_classes_is_refused(dataset):
    with pytest.raises(ValueError, match="knows 5 classes, roadscenes has 11"):
        Inspector(named(num_classes=5), PROTOCOL, dataset=dataset)


def test_untrained_models_carry_a_visible_warning(dataset, tmp_path):
    inspector = Inspector(named(gamma=0.0), PROTOCOL, dataset=dataset, size=SIZE, results=tmp_path)
    inspector.open_index(0)
    for _ in range(2):
        assert 'role="alert"' in inspector.message.value
        assert "first: This network is untrained" in inspector.message.value
        inspector.panels[0].canvas.pixel = (1, 1)  # it stays


def test_own_picture_by_path_and_label_by_upload(inspector, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ids = np.random.default_rng(1).integers(0, 11, (50, 70), dtype=np.uint8)
    (tmp_path / "own.png").write_bytes(png(pixels))
    inspector.view_controls.view.value = "errors"
    inspector.image_controls.path.value = str(tmp_path / "own.png")
    inspector.image_controls.open_path.click()
    assert (inspector.error, inspector.picture.name) == ("", "own.png")
    assert inspector.state.view == "prediction", "without a label there are no errors to see"
    assert "errors" not in inspector.view_controls.view.options
    inspector.image_controls.upload_label.value = upload("label.png", png(ids))
    assert inspector.error == ""
    assert "errors" in inspector.view_controls.view.options
    assert readout(inspector.state, inspector.inspections[0]).truth in PROTOCOL.classes


def test_uploads_are_opened(inspector, model):
    inspector.image_controls.upload.value = upload("up.png", png(np.zeros((40, 40, 3), np.uint8)))
    assert (inspector.error, inspector.picture.name) == ("", "up.png")
    assert len(model[1]) == 2


def test_a_broken_upload_is_shown_and_the_picture_stays(inspector):
    before = inspector.picture
    inspector.image_controls.upload.value = upload("broken.png", b"not a picture")
    assert inspector.picture is before
    message = inspector.message.value
    assert 'role="alert"' in message
    assert "Opening the upload failed." in message
    assert "broken.png: no readable picture" in message
    assert "What to do:" in message
    assert "Traceback" in message
    inspector.panels[0].canvas.pixel = (2, 2)
    assert inspector.message.value == "", "the next thing that works takes the message away"


def test_every_failure_is_shown(inspector, monkeypatch):
    inspector.image_controls.open_path.click()
    assert "Opening the picture failed. ValueError: no path is given" in inspector.error

    def fail(*_, **__):
        raise RuntimeError("<b>out of memory</b>")

    monkeypatch.setattr("s2fpn_lib.inspector.panel.render", fail)
    inspector.panels[0].canvas.pixel = (3, 3)
    assert "&lt;b&gt;out of memory" in inspector.message.value
    monkeypatch.setattr("s2fpn_lib.inspector.widget.inspect", fail)
    inspector.image_controls.index.value = 1
    assert inspector.error.startswith("Opening the image failed. RuntimeError")
    assert inspector.image_controls.index.value == 0, "the field shows what is open"
    assert inspector.status.value == "", "nothing loads any more"


def test_while_it_runs_it_says_so(inspector, dataset):
    said = []
    inspector.models[0].model.register_forward_pre_hook(lambda *_: said.append(inspector.status.value))
    inspector.open_index(1)
    assert f"Looking at {dataset.names[1]} with first" in said[0]
    assert 'role="status"' in said[0]
    assert inspector.status.value == ""


def test_save_writes_picture_and_record(inspector, tmp_path):
    inspector.panels[0].canvas.pixel = (5, 6)
    inspector.view_controls.pin.click()
    inspector.view_controls.save.click()
    assert inspector.error == ""
    (picture,), (record,) = tmp_path.glob("*.png"), tmp_path.glob("*.json")
    assert picture.name in inspector.status.value
    assert Image.open(picture).size[0] > 1000
    found = json.loads(record.read_text())
    assert found["image"] == inspector.picture.name
    assert found["state"]["pins"] == [[5, 6]]
    assert found["models"][0]["provenance"] == {"checkpoint": "first.safetensors", "seed": 0}
    assert found["models"][0]["pixel"]["prediction"] == readout(inspector.state, inspector.inspections[0]).prediction
    assert found["models"][0]["pins"][0] == found["models"][0]["pixel"]
    assert {"torch", "git_sha"} <= found["environment"].keys()


def test_what_cannot_be_written_is_shown(inspector, tmp_path):
    inspector.results = tmp_path / "file"
    inspector.results.write_text("")
    inspector.view_controls.save.click()
    assert inspector.error.startswith("Saving failed.")
    inspector.view_controls.export.click()
    assert inspector.error.startswith("Exporting failed.")


def test_export_writes_a_page(inspector, tmp_path):
    inspector.view_controls.export.click()
    (page,) = tmp_path.glob("*.html")
    assert page.name in inspector.status.value
    assert re.search(r"<title>Inspection of \w+</title>", page.read_text())
