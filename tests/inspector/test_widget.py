"""The widget without a browser: what its events do to the state, the pictures, the files, and the messages."""

from __future__ import annotations

import datetime
import io
from html import escape

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.data import open_dataset
from s2fpn_lib.inspector import State, readout, render, render_level
from s2fpn_lib.inspector.state import NamedModel, Picture
from s2fpn_lib.inspector.widget import Inspector
from s2fpn_lib.model import build_model
from tests.inspecting import PROTOCOL, SIZE, network


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("roadscenes", split="val", cache=False)


@pytest.fixture
def passes():
    """One entry per forward pass of `network()`."""
    counted: list[int] = []
    handle = network().register_forward_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


@pytest.fixture
def inspector(passes, dataset, tmp_path):
    model = NamedModel("first", network(), {"checkpoint": "first.safetensors"})
    picture = Picture.of_dataset(dataset, 0, SIZE, PROTOCOL)
    return Inspector([model], dataset, picture, PROTOCOL, size=SIZE, results=tmp_path)


def shows(canvas, pixels):
    """Whether the canvas shows the pixels, apart from what JPEG changes."""
    drawn = np.asarray(Image.open(io.BytesIO(canvas.picture))).astype(int)
    return drawn.shape == pixels.shape and np.abs(drawn - pixels).mean() < 4


def upload(name, content):
    now = datetime.datetime.now(tz=datetime.UTC)
    return (
        {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content), "last_modified": now},
    )


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_click_runs_no_forward_pass(inspector, passes):
    panel, inspection = inspector.panels[0], inspector.inspections[0]
    panel.canvas.pixel = (40, 9)
    panel.canvas.pixel = (41, 9)  # what an arrow key sends
    assert inspector.state == State(y=41, x=9)
    assert len(passes) == 1
    assert shows(panel.canvas, render(inspector.state, inspection))
    for index, canvas in enumerate(panel.levels):
        assert shows(canvas, render_level(inspector.state, inspection, index))
    found = readout(inspector.state, inspection)
    assert panel.canvas.description == found.sentence()
    assert panel.canvas.size == SIZE
    assert f"<h4>{found.prediction}</h4>row 41, column 9" in panel.text.value
    assert f"{found.confidence:.1%}" in panel.text.value
    assert panel.levels[3].label == found.levels[3].sentence()
    assert (inspector.view_controls.y.value, inspector.view_controls.x.value) == (41, 9)


def test_numeric_fields_view_and_opacity(inspector):
    inspector.view_controls.y.value = 7
    inspector.view_controls.x.value = 1000  # beyond the image: its last column
    assert inspector.state == State(y=7, x=70)
    assert inspector.panels[0].canvas.pixel == (7, 70)
    inspector.view_controls.view.value = "confidence"
    inspector.view_controls.opacity.value = 1.0
    assert inspector.state == State(y=7, x=70, view="confidence", opacity=1.0)
    assert shows(inspector.panels[0].canvas, render(inspector.state, inspector.inspections[0]))


def test_class_legend(inspector):
    legend = inspector.legend
    legend.boxes[3].value = False
    assert inspector.state.hidden == {3}
    legend.only[8].click()
    assert inspector.state.hidden == set(range(11)) - {8}
    assert [box.value for box in legend.boxes] == [i == 8 for i in range(11)]
    legend.none.click()
    assert inspector.state.hidden == set(range(11))
    assert shows(inspector.panels[0].canvas, render(inspector.state, inspector.inspections[0]))
    legend.all.click()
    assert inspector.state.hidden == set()
    assert all(box.value for box in legend.boxes)


def test_pins(inspector):
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


def test_another_image_runs_again_and_removes_the_pins(inspector, passes, dataset):
    status = []
    inspector.view_controls.pin.click()
    hook = network().register_forward_pre_hook(lambda *_: status.append(inspector.status.value))
    inspector.image_controls.index.value = 2
    hook.remove()
    assert inspector.inspections[0].picture.name == dataset.names[2]
    assert len(passes) == 2
    assert inspector.state.pins == ()
    assert dataset.names[2] in inspector.image_controls.what.value
    assert f"Running first on {dataset.names[2]}" in status[0]
    assert inspector.status.value == ""


def test_two_models(inspector, passes):
    inspector.compare(NamedModel("second", network(revision="v2")))
    assert len(passes) == 1, "the first model is not run again"
    assert inspector.stage.children == tuple(inspector.panels)
    inspector.panels[1].canvas.pixel = (11, 12)
    for panel, inspection in zip(inspector.panels, inspector.inspections, strict=True):
        assert panel.canvas.pixel == (11, 12)
        assert panel.canvas.description == readout(inspector.state, inspection).sentence()
    assert "two gates per image column" in inspector.panels[0].note.value
    assert "its own distribution" in inspector.panels[1].note.value
    inspector.image_controls.stop.click()
    assert [each.model.name for each in inspector.inspections] == ["first"]
    assert len(inspector.stage.children) == 1


def test_second_model_by_name(inspector):
    inspector.image_controls.second.value = "s2fpn_lite-camvid"
    inspector.image_controls.compare.click()
    assert inspector.message.value == ""
    assert [each.model.name for each in inspector.inspections] == ["first", "s2fpn_lite-camvid"]
    inspector.image_controls.second.value = "s2fpn_lite-camvit"
    inspector.image_controls.compare.click()
    assert escape("Did you mean 's2fpn_lite-camvid'?") in inspector.message.value
    assert "Opening the second model failed." in inspector.message.value
    with pytest.raises(ValueError, match="third predicts 5 classes, but roadscenes has 11"):
        inspector.compare(NamedModel("third", build_model("s2fpn_lite", num_classes=5)))
    assert len(inspector.inspections) == 2


def test_untrained_model_keeps_its_warning(dataset):
    untrained = NamedModel("first", build_model("s2fpn_lite", num_classes=11).eval())
    inspector = Inspector([untrained], dataset, Picture.of_dataset(dataset, 0, SIZE, PROTOCOL), PROTOCOL)
    for _ in range(2):
        assert 'role="alert"' in inspector.message.value
        assert "first: This network is untrained" in inspector.message.value
        inspector.panels[0].canvas.pixel = (1, 1)


def test_image_by_path_and_label_by_upload(inspector, tmp_path):
    (tmp_path / "own.png").write_bytes(png(np.zeros((50, 70, 3), np.uint8)))
    inspector.view_controls.view.value = "errors"
    inspector.image_controls.path.value = str(tmp_path / "own.png")
    inspector.image_controls.open_path.click()
    assert (inspector.message.value, inspector.inspections[0].picture.name) == ("", "own.png")
    assert inspector.state.view == "prediction", "there are no errors without a label"
    assert "errors" not in inspector.view_controls.view.options
    inspector.image_controls.upload_label.value = upload("label.png", png(np.full((50, 70), 3, np.uint8)))
    assert inspector.message.value == ""
    assert "errors" in inspector.view_controls.view.options
    assert readout(inspector.state, inspector.inspections[0]).truth == PROTOCOL.classes[3]


def test_uploads(inspector, passes):
    inspector.image_controls.upload.value = upload("up.png", png(np.zeros((40, 40, 3), np.uint8)))
    assert (inspector.message.value, inspector.inspections[0].picture.name) == ("", "up.png")
    assert len(passes) == 2
    inspector.image_controls.upload.value = upload("broken.png", b"no image")
    assert inspector.inspections[0].picture.name == "up.png"
    message = inspector.message.value
    for part in ('role="alert"', "Opening the upload failed.", "broken.png: cannot", "What to do:", "Traceback"):
        assert part in message
    inspector.panels[0].canvas.pixel = (2, 2)
    assert inspector.message.value == "", "the next successful action removes the message"


def test_errors_are_shown_and_escaped(inspector, monkeypatch):
    inspector.image_controls.open_path.click()
    assert "Opening the image failed.</b> no path is given<br>" in inspector.message.value

    def fail(*_, **__):
        raise RuntimeError("<b>out of memory</b>")

    monkeypatch.setattr("s2fpn_lib.inspector.controls.render", fail)
    inspector.panels[0].canvas.pixel = (3, 3)
    assert "&lt;b&gt;out of memory" in inspector.message.value
    assert "<b>out of memory" not in inspector.message.value
    monkeypatch.setattr("s2fpn_lib.inspector.widget.inspect", fail)
    inspector.image_controls.index.value = 1
    assert "Opening the image failed." in inspector.message.value
    assert inspector.image_controls.index.value == 0, "the field shows the open image"
    assert inspector.status.value == ""


def test_save_and_export(inspector, tmp_path):
    inspector.view_controls.save.click()
    inspector.view_controls.export.click()
    assert inspector.message.value == ""
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json", ".png"]
    assert next(tmp_path.glob("*.html")).name in inspector.status.value
    inspector.results = tmp_path / "file"
    inspector.results.write_text("")
    inspector.view_controls.save.click()
    assert "Saving failed." in inspector.message.value
    inspector.view_controls.export.click()
    assert "Exporting failed." in inspector.message.value
