"""The widget without a browser: what its requests do to the state, the files, and the messages that it sends back.

Scores of single images, and the models that the inspector offers.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from IPython.display import HTML
from PIL import Image

from s2fpn_lib.checkpoint import save_weights
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inspector import State, readout, widget
from s2fpn_lib.inspector.state import NamedModel, Picture
from s2fpn_lib.inspector.widget import Inspector, image_score, model_choices
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import write_json
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
    return Inspector([model], dataset, picture, PROTOCOL, size=SIZE, results=tmp_path / "31_inspector")


@pytest.fixture
def ask(inspector, monkeypatch):
    """Sends a request as the browser does, and returns the answers, (content, buffers)."""

    def send(do, *, files=(), **request):
        answers = []
        monkeypatch.setattr(inspector, "send", lambda content, buffers=(): answers.append((content, buffers)))
        inspector._handle_custom_msg({"do": do, **request}, [memoryview(file) for file in files])
        return answers

    return send


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def header(buffer):
    """The part of the viewer's data that is JSON."""
    content = zlib.decompress(buffer)
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_a_state_of_the_browser_runs_no_forward_pass(inspector, passes):
    inspector.shown = {**inspector.shown, "y": 40, "x": 9, "view": "margin", "hidden": [3], "pins": [[1, 2]]}
    assert inspector.state == State(40, 9, "margin", hidden=frozenset({3}), pins=((1, 2),))
    assert len(passes) == 1
    inspector.apply(State(y=7, x=1000))
    assert (inspector.state, inspector.shown["x"]) == (State(y=7, x=70), 70), "the last column of the image"


def test_viewer_gets_the_data_once_per_image(inspector, ask, dataset):
    inspector.apply(State(y=11, x=12))
    [(content, [data])] = ask("show")
    assert (content["kind"], content["index"], content["last"]) == ("data", 0, len(dataset) - 1)
    assert (content["chosen"], content["name"]) == (["first", ""], dataset.names[0])
    assert "mIoU of first on images of RoadScenes val, worst first." in content["about"]
    assert (header(data)["state"]["y"], header(data)["state"]["x"]) == (11, 12)
    assert len(header(data)["models"]) == 1
    assert "data" not in inspector.get_state(), "a saved notebook would hold megabytes"


def test_another_image_runs_again_and_removes_the_pins(inspector, ask, passes, dataset):
    inspector.apply(replace(inspector.state, pins=((5, 6),)))
    [(content, _)] = ask("index", index=2)
    assert inspector.inspections[0].picture.name == dataset.names[2] == content["name"]
    assert (len(passes), inspector.state.pins) == (2, ())
    [(content, _)] = ask("index", index=len(dataset))
    assert (content["kind"], content["request"]) == ("error", "index")
    assert f"images 0 to {len(dataset) - 1}" in content["error"]
    assert inspector.inspections[0].picture.name == dataset.names[2]


def test_thumbnails_and_their_scores(inspector, ask, dataset):
    [(content, pictures)] = ask("thumbs")
    found = [image["index"] for image in content["images"]]
    assert found == sorted(set(found)), "spread over the split"
    assert set(found) >= set(inspector.strip)
    assert len(inspector.strip) == min(24, len(dataset))
    picture, (height, width) = Image.open(io.BytesIO(pictures[0])), dataset[0][0].shape[-2:]
    assert picture.format == "JPEG"
    assert picture.size == (round(84 * width / height), 84), "thumbnails are small"
    [(content, _)] = ask("score", index=found[0])
    assert content["score"] == pytest.approx(image_score(network(), dataset, found[0]))
    [(shown, _)] = ask("show")
    assert shown["scores"] == {found[0]: content["score"]}
    assert shown["of"] == content["of"] == "first", "a model without a file is identified by its name"


def test_models_of_one_name_have_their_own_scores(inspector, ask):
    named = NamedModel("run", network(), {"checkpoint_sha": "aaa"})
    other = NamedModel("run", network(revision="v2"), {"checkpoint_sha": "bbb"})
    scores = []
    for model in (named, other):
        inspector.choose(0, model)
        [(content, _)] = ask("score", index=0)
        scores.append((content["of"], content["score"]))
    expected = [image_score(each.network, inspector.dataset, 0) for each in (named, other)]
    assert scores == [("aaa", pytest.approx(expected[0])), ("bbb", pytest.approx(expected[1]))]
    assert expected[0] != expected[1]


def test_models(inspector, ask, passes):
    inspector.choose(1, NamedModel("second", network(revision="v2")))
    assert len(passes) == 1, "the first model is not run again"
    assert [each.model.name for each in inspector.inspections] == ["first", "second"]
    inspector.apply(State(view="disagreement", before="other model"))
    [(content, _)] = ask("model", which=1, path="s2fpn_lite-camvid")
    assert content["chosen"] == ["first", "s2fpn_lite-camvid"]
    [(content, _)] = ask("model", which=1, path="s2fpn_lite-camvit")
    assert "Did you mean 's2fpn_lite-camvid" in content["error"]
    assert len(inspector.inspections) == 2
    [(content, [data])] = ask("model", which=1, path="")
    assert (content["chosen"], len(header(data)["models"])) == (["first", ""], 1)
    assert inspector.state.view == "prediction", "one model has no disagreement"
    ask("model", which=0, path="s2fpn_lite-camvid")
    assert [each.model.name for each in inspector.inspections] == ["s2fpn_lite-camvid"]
    with pytest.raises(ValueError, match="third predicts 5 classes, but roadscenes has 11"):
        inspector.choose(1, NamedModel("third", build_model("s2fpn_lite", num_classes=5)))
    assert len(inspector.inspections) == 1


def test_untrained_model_keeps_its_warning(dataset):
    untrained = NamedModel("first", build_model("s2fpn_lite", num_classes=11).eval())
    inspector = Inspector([untrained], dataset, Picture.of_dataset(dataset, 0, SIZE, PROTOCOL), PROTOCOL)
    assert inspector.inspections[0].warning.startswith("This network is untrained")


def test_image_by_path_and_label_by_upload(inspector, ask, tmp_path):
    (tmp_path / "own.png").write_bytes(png(np.zeros((50, 70, 3), np.uint8)))
    inspector.apply(State(view="errors"))
    [(content, [data])] = ask("path", path=f" {tmp_path / 'own.png'} ", label="")
    assert (content["name"], content["index"]) == ("own.png", None)
    assert inspector.state.view == "prediction", "there are no errors without a label"
    assert "errors" not in header(data)["views"]
    [(content, [data])] = ask("upload_label", name="label.png", files=[png(np.full((50, 70), 3, np.uint8))])
    assert "errors" in header(data)["views"]
    assert readout(inspector.state, inspector.inspections[0]).truth == PROTOCOL.classes[3]
    [(content, _)] = ask("upload_label", name="label.png", files=[png(np.full((50, 60), 3, np.uint8))])
    assert "the label is (50, 60) and the picture (50, 70)" in content["error"]


def test_uploads(inspector, ask, passes):
    ask("upload", name="up.png", files=[png(np.zeros((40, 40, 3), np.uint8))])
    assert (inspector.inspections[0].picture.name, len(passes)) == ("up.png", 2)
    [(content, _)] = ask("upload", name="broken.png", files=[b"no image"])
    assert inspector.inspections[0].picture.name == "up.png"
    assert content["error"].startswith("broken.png: cannot")
    assert (content["request"], "Traceback" in content["details"]) == ("upload", True)


def test_errors_become_messages(inspector, ask, monkeypatch):
    [(content, _)] = ask("path", path=" ", label="")
    assert (content["request"], content["error"]) == ("path", "no path is given")

    def fail(*_, **__):
        raise RuntimeError("<b>out of memory</b>")

    monkeypatch.setattr(widget, "inspect", fail)
    [(content, _)] = ask("index", index=1)
    assert content["error"] == "<b>out of memory</b>", "the browser shows it as text"


def test_save_and_export(inspector, ask):
    folder = inspector.results
    [(content, _)] = ask("save")
    assert content["text"].startswith(f"Saved {folder}")
    [(content, [page])] = ask("export")
    assert page == (folder / content["name"]).read_bytes()
    assert page.startswith(b"<!doctype html>")
    assert sorted(path.suffix for path in folder.iterdir()) == [".html", ".json", ".png"]
    inspector.results = folder / "file"
    inspector.results.write_text("")
    for request in ("save", "export"):
        [(content, _)] = ask(request)
        assert (content["kind"], content["request"]) == ("error", request)


def test_readers_without_a_kernel_get_the_still_figure(inspector, monkeypatch):
    shown = []
    monkeypatch.setattr(widget, "display", lambda value, **_: shown.append(value))
    inspector._ipython_display_()
    bundle, still = shown
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size[0] > 800
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert readout(inspector.state, inspector.inspections[0]).sentence() in bundle["text/plain"]
    assert isinstance(still, HTML)
    assert f'<img alt="first: {readout(inspector.state, inspector.inspections[0]).sentence()}' in still.data
    saved = json.dumps({key: str(value) for key, value in inspector.get_state().items()})
    assert len(saved) < 120_000


@pytest.fixture(scope="module")
def evaluation(dataset):
    return evaluate(network(), dataset, limit=2, progress=False)


def test_score_is_that_of_an_evaluation(dataset, evaluation):
    expected = evaluation.image_iou().nanmean(1).tolist()
    for index, miou in zip(evaluation.indices, expected, strict=True):
        assert image_score(network(), dataset, index) == pytest.approx(miou)


def test_released_weights_and_own_runs_of_the_same_classes_are_offered(tmp_path):
    for name, protocol in (("mine", "roadscenes"), ("other", "cityscapes-fine-1024x2048")):
        run = tmp_path / "train" / name
        run.mkdir(parents=True)
        save_weights(network(), run / "last.safetensors", {"protocol": protocol})
        write_json(run / "result.json", {})
    save_weights(network(), tmp_path / "unfinished" / "last.safetensors", {"protocol": "roadscenes"})
    (tmp_path / "train" / "mine" / "damaged.safetensors").write_text("")
    own = (str(tmp_path / "train" / "mine"), "train/mine")
    assert own in model_choices(tmp_path, PROTOCOL)
    assert not any("other" in path or "unfinished" in path for path, _ in model_choices(tmp_path, PROTOCOL))
    released = model_choices(tmp_path, get_protocol("camvid-segnet-360x480"))
    assert ("s2fpn_lite-camvid", "s2fpn_lite-camvid") in released
