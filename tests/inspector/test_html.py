"""What is in the exported page; how it behaves in a browser is in tests/browser."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest
import torch

from s2fpn_lib.data import get_protocol
from s2fpn_lib.inspector import State, inspect
from s2fpn_lib.inspector import html as inspector_html
from s2fpn_lib.model import build_model

PROTOCOL = get_protocol("roadscenes")


def inspection(revision, height=48, width=64, name="street </script><b>", **switches):
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision=revision, num_classes=11, **switches).eval()
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 12, (height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return inspect(model, image, PROTOCOL, label=label, name=name, provenance={"checkpoint": "a.safetensors"})


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def unpacked(text, dtype):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


@pytest.fixture(scope="module")
def both():
    return inspection("v1"), inspection("v2")


@pytest.fixture(scope="module")
def page(both):
    return inspector_html.inspection_html(State(y=9, x=8).pinned().at(20, 30, (48, 64)), both, ["one", "<two>"])


def test_nothing_is_asked_of_a_network(page):
    assert re.findall(r'<\w+[^>]*\s(?:src|href)="(?!data:)', page.split("<script")[0]) == []
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\b", page)
    assert "default-src 'none'" in page


def test_names_are_text_and_not_markup(page):
    assert "<b>" not in page.replace("<b>row", "")
    assert "Inspection of street &lt;/script&gt;&lt;b&gt;" in page
    assert data_of(page)["models"][1]["name"] == "<two>"


def test_view_pins_and_provenance_are_in_it(page, both):
    data = data_of(page)
    assert data["state"]["pins"] == [[9, 8]]
    assert (data["state"]["y"], data["state"]["x"]) == (20, 30)
    assert page.count('<img alt="Row ') == 2, "a still picture of the view and one of the pin"
    assert "Row 9, column 8: " in page
    assert "a.safetensors" in page
    assert data["models"][0]["warning"] == both[0].warning != ""


def test_classes_and_shares_are_the_inspections(page, both):
    for model, own in zip(data_of(page)["models"], both, strict=True):
        ranked = unpacked(model["ranked"], np.uint8).reshape(3, 48, 64)
        shares = unpacked(model["shares"], "<u2").reshape(3, 48, 64) / 65535
        np.testing.assert_array_equal(ranked[0], own.ids)
        np.testing.assert_allclose(shares, own.probabilities.topk(3, 0).values, atol=1e-4)
    np.testing.assert_array_equal(unpacked(data_of(page)["label"], np.uint8).reshape(48, 64), both[0].label)


def test_levels_are_the_captures(page, both):
    for model, own in zip(data_of(page)["models"], both, strict=True):
        for level, capture in zip(model["levels"], own.levels, strict=True):
            np.testing.assert_array_equal(unpacked(level["gates"], "<f4"), capture.gates.flatten())
            decides = unpacked(level["decides"], np.uint8).reshape(level["size"])
            np.testing.assert_array_equal(decides, capture.auxiliary[0].argmax(0))
            if capture.query is None:
                continue
            shape = (-1, *level["kept"])
            query = unpacked(level["query"], "<i2").reshape(shape) * level["query_scale"]
            keys = unpacked(level["keys"], "<i2").reshape(len(query), -1) * level["keys_scale"]
            scores = torch.from_numpy(keys.T @ query[:, -1, -1])
            p = capture.column_attention(-1, -1)[0]
            torch.testing.assert_close(scores.softmax(0).float(), p, rtol=1e-3, atol=1e-5)


def test_large_images_stay_small_pages(monkeypatch):
    large = inspection("v2", 64, 1290)
    monkeypatch.setattr(inspector_html, "QUERIES", 5000)
    data = data_of(inspector_html.inspection_html(State(), [large], ["one"]))
    assert (data["size"], data["drawn"], data["stride"]) == ([64, 1290], [22, 430], 3)
    for level, capture in zip(data["models"][0]["levels"], large.levels, strict=True):
        kept = capture.query[0, :, :: level["step"], :: level["step"]]
        assert level["kept"] == list(kept.shape[1:])
        assert kept.numel() <= 5000 < 4 * level["step"] ** 2 * kept.numel() or level["step"] == 1


def test_levels_without_strips_have_no_gates(tmp_path):
    path = inspector_html.export_html(tmp_path / "a" / "page.html", State(), [inspection("v1", ssam=False)], ["one"])
    levels = data_of(path.read_text())["models"][0]["levels"]
    assert [level["gates"] for level in levels] == [None] * 4
    assert levels[0]["weight"] == "SSAM is off"
