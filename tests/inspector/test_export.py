"""Saved views and the content of the exported page; its behavior in a browser is tested in tests/browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.inspector import State, export, readout
from tests.inspecting import SIZE, distribution, inspection

STATE = State(y=20, x=30, hidden=frozenset({2, 1}), pins=((9, 8),))


@pytest.fixture(scope="module")
def both():
    """v1 with the warning of an untrained model, and v2."""
    return replace(inspection(revision="v1"), warning="untrained"), inspection(revision="v2")


@pytest.fixture(scope="module")
def page(both, tmp_path_factory):
    return export.export_html(tmp_path_factory.mktemp("new") / "folder" / "page.html", STATE, both).read_text()


def opened(stream):
    """What `packed` wrote, with arrays in place of their descriptions, as openScene of data.js reads it."""
    content = zlib.decompress(stream)
    start = 8 + int.from_bytes(content[:8], "little")

    def array(found):
        if "array" not in found:
            return found
        dtype = np.dtype(f"<{found['array']}")
        assert found["at"] % 8 == 0
        return np.frombuffer(content, dtype, found["length"], start + found["at"])

    return json.loads(content[8:start], object_hook=array)


def data_of(page):
    (text,) = re.findall(r'<script type="application/octet-stream" id="data">(.*?)</script>', page, re.DOTALL)
    return opened(base64.b64decode(text))


def test_save_writes_picture_and_record(both, tmp_path):
    picture, record = export.save_inspection(tmp_path / "new", STATE, both)
    found = json.loads(record.read_text())
    assert (found["image"], found["protocol"], found["size"]) == (both[0].picture.name, "roadscenes", list(SIZE))
    assert State.of_plain(found["state"]) == STATE
    for model, own in zip(found["models"], both, strict=True):
        expected = readout(STATE, own)
        assert model["pixel"]["prediction"] == expected.prediction
        assert model["pixel"]["levels"][3]["top"] == [list(each) for each in expected.levels[3].top]
        assert (model["pins"][0]["y"], model["pins"][0]["x"]) == (9, 8)
        assert (model["name"], model["revision"]) == (own.model.name, own.revision)
        assert (model["provenance"], model["warning"]) == (own.model.provenance, own.warning)
    assert {"torch", "git_sha"} <= found["environment"].keys()
    assert Image.open(picture).size[0] > 1000


def test_file_name_depends_on_everything_shown(both):
    stem = export.file_stem(STATE, both)
    assert stem.startswith("street_script_b-y20-x30-")
    assert stem == export.file_stem(STATE, both)
    others = {
        export.file_stem(replace(STATE, hidden=frozenset()), both),
        export.file_stem(STATE, both[:1]),
        export.file_stem(STATE, (both[0], replace(both[1], model=replace(both[1].model, name="three")))),
    }
    assert len(others | {stem}) == 4


def test_page_loads_nothing_from_a_network(page):
    assert re.findall(r'<\w+[^>]*\s(?:src|href)="(?!data:)', page.split("<script")[0]) == []
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\b", page)
    assert "default-src 'none'" in page


def test_names_are_escaped(page):
    assert "<b>" not in page
    assert "Inspection of street &lt;/script&gt;&lt;b&gt;" in page
    assert data_of(page)["models"][1]["name"] == "<v2>"


def test_page_holds_view_pins_and_provenance(page):
    state = data_of(page)["state"]
    assert (state["pins"], state["y"], state["x"]) == ([[9, 8]], 20, 30)
    assert page.count('<img alt="Row ') == 2, "one still picture of the view and one of the pin"
    assert "Row 9, column 8: " in page
    assert "a.safetensors" in page
    assert data_of(page)["models"][0]["warning"] == "untrained"


def test_page_holds_classes_and_probabilities(page, both):
    for model, own in zip(data_of(page)["models"], both, strict=True):
        shares = model["shares"].reshape(3, *SIZE) / 65535
        np.testing.assert_array_equal(model["ranked"].reshape(3, *SIZE)[0], own.ids)
        np.testing.assert_allclose(shares, own.probabilities.topk(3, 0).values, atol=1e-5)
        probabilities = (model["probabilities"].reshape(-1, *SIZE) / 255) ** 2
        np.testing.assert_allclose(probabilities, own.probabilities, atol=4e-3)
    np.testing.assert_array_equal(data_of(page)["label"].reshape(SIZE), both[0].picture.label)


def test_page_holds_the_captures(page, both):
    for model, own in zip(data_of(page)["models"], both, strict=True):
        for level, capture in zip(model["levels"], own.levels, strict=True):
            np.testing.assert_array_equal(level["gates"], capture.gates.flatten())
            decides = level["decides"].reshape(level["size"])
            np.testing.assert_array_equal(decides, capture.auxiliary[0].argmax(0))
            if capture.query is None:
                continue
            query = level["query"].reshape(-1, *level["kept"]) * level["query_scale"]
            keys = level["keys"].reshape(len(query), -1) * level["keys_scale"]
            p = torch.from_numpy(keys.T @ query[:, -1, -1]).softmax(0).float()
            torch.testing.assert_close(p, distribution(capture, -1, -1), rtol=1e-3, atol=1e-5)


def test_page_of_a_wide_image_is_strided(monkeypatch, tmp_path):
    wide = inspection((32, 1290), revision="v2")
    monkeypatch.setattr(export, "MAX_QUERY_VALUES", 5000)
    data = data_of(export.export_html(tmp_path / "page.html", State(), [wide]).read_text())
    assert (data["size"], data["drawn"], data["stride"]) == ([32, 1290], [11, 430], 3)
    for level, capture in zip(data["models"][0]["levels"], wide.levels, strict=True):
        step = level["step"]
        kept = capture.query[0, :, ::step, ::step]
        assert level["kept"] == list(kept.shape[1:])
        assert kept.numel() <= 5000 < 4 * step**2 * kept.numel() or step == 1
        np.testing.assert_array_equal(level["gates"], capture.gates[0, :, ::step, ::step].flatten())


def test_page_of_one_v2_network_at_360x480_keeps_every_query(tmp_path, both, monkeypatch):
    """apf4 has 32 channels at 1/2 of the size; a v1 network has no queries and takes nothing of the limit."""
    assert 32 * 180 * 240 <= export.MAX_QUERY_VALUES < 2 * 32 * 180 * 240
    monkeypatch.setattr(export, "MAX_QUERY_VALUES", both[1].levels[3].query.numel())
    data = data_of(export.export_html(tmp_path / "page.html", STATE, both).read_text())
    assert {level["step"] for level in data["models"][1]["levels"]} == {1}
    data = data_of(export.export_html(tmp_path / "page.html", STATE, (both[1], both[1])).read_text())
    assert {model["levels"][3]["step"] for model in data["models"]} == {2}


def test_the_widget_gets_every_query_and_the_views_with_their_scales(both):
    data = opened(export.packed(STATE, both))
    assert {level["step"] for level in data["models"][1]["levels"]} == {1}
    assert {"disagreement", "total variation"} < set(data["views"])
    entropy = data["scales"]["entropy"]
    assert (entropy["low"], entropy["high"], entropy["log"], len(entropy["colors"])) == (0, 2, False, 256)
    assert entropy["ticks"][-1] == [1, "≥ 2"]
    attention = data["models"][1]["scale"]
    assert [place for place, _ in attention["ticks"]] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert attention["log"]


def test_page_without_ssam(tmp_path):
    page = export.export_html(tmp_path / "page.html", State(), [inspection(ssam=False, deep_supervision=False)])
    levels = data_of(page.read_text())["models"][0]["levels"]
    assert [level["gates"] for level in levels] == [None] * 4
    assert levels[0]["weight"] == "SSAM is off"
