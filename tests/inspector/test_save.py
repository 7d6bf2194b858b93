"""Saved views: their files, their names, and the still picture."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from s2fpn_lib.data import get_protocol
from s2fpn_lib.inspector import State, inspect, readout, render
from s2fpn_lib.inspector.figure import inspection_figure
from s2fpn_lib.inspector.save import file_stem, save_inspection
from s2fpn_lib.model import build_model

PROTOCOL = get_protocol("roadscenes")


@pytest.fixture(scope="module")
def inspections():
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for revision in ("v1", "v2"):
        torch.manual_seed(0)
        model = build_model("s2fpn_lite", revision=revision, num_classes=11).eval()
        found.append(inspect(model, image, PROTOCOL, name="my street/1.png", provenance={"seed": 1}))
    return found


STATE = State(y=7, x=9, hidden=frozenset({2, 1})).pinned()


def test_record_holds_the_readouts(inspections, tmp_path):
    picture, record = save_inspection(tmp_path / "new", STATE, inspections, ["one", "two"])
    found = json.loads(record.read_text())
    assert found["state"] | {"hidden": [1, 2], "pins": [[7, 9]], "y": 7, "x": 9} == found["state"]
    assert [model["name"] for model in found["models"]] == ["one", "two"]
    for model, inspection in zip(found["models"], inspections, strict=True):
        expected = readout(STATE, inspection)
        assert model["pixel"]["prediction"] == expected.prediction
        assert model["pixel"]["levels"][3]["top"] == [list(each) for each in expected.levels[3].top]
        assert model["revision"] == inspection.revision
    assert found["protocol"] == "roadscenes"
    assert Image.open(picture).format == "PNG"


def test_names_are_those_of_what_is_shown(inspections):
    stem = file_stem(STATE, inspections, ["one", "two"])
    assert stem.startswith("my_street_1.png-y7-x9-")
    assert stem == file_stem(STATE, inspections, ["one", "two"])
    others = {
        file_stem(STATE.toggled(5), inspections, ["one", "two"]),
        file_stem(STATE, inspections[:1], ["one"]),
        file_stem(STATE, inspections, ["one", "three"]),
    }
    assert len(others | {stem}) == 4


def test_still_picture_shows_every_model_with_its_levels(inspections):
    figure = inspection_figure(STATE, inspections, ["one", "two"])
    pictures = [axis for axis in figure.axes if axis.images]
    assert len(pictures) == 2 * (1 + 4)
    assert (pictures[0].images[0].get_array() == render(STATE, inspections[0])).all()
    texts = [text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts]
    for inspection in inspections:
        assert readout(STATE, inspection).prediction in texts
        assert any(inspection.warning in text for text in texts)
    assert any(text.startswith("Pinned (row, column): 7, 9: ") for text in texts)
