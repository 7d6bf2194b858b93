"""The readout against the captures, indexed directly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2fpn_lib.inspector import State, readout
from s2fpn_lib.inspector.numbers import revision_note
from tests.inspecting import PROTOCOL, SIZE, distribution, inspection, unlabeled

PIXELS = [(0, 0), (44, 70), (40, 12)]


@pytest.mark.parametrize(("y", "x"), PIXELS)
def test_classes_and_confidence(y, x):
    seen = inspection()
    found = readout(State(y=y, x=x), seen)
    p = seen.probabilities[:, y, x]
    order = p.argsort(descending=True)
    assert found.prediction == PROTOCOL.classes[order[0]]
    assert found.confidence == pytest.approx(p.max().item())
    assert [name for name, _ in found.others] == [PROTOCOL.classes[k] for k in order[1:3]]
    assert [value for _, value in found.others] == pytest.approx(p[order[1:3]].tolist())
    truth = "not labeled" if y == 0 else PROTOCOL.classes[seen.picture.label[y, x]]
    assert found.truth == truth
    beginning = f"Row {y}, column {x}: {found.prediction}, {found.confidence:.0%} sure"
    assert found.sentence() == f"{beginning}, true class {truth}."
    assert readout(State(y=y, x=x), unlabeled(seen)).sentence() == f"{beginning}."


def test_a_wide_image_is_read_at_the_drawn_pixel():
    """1290 pixels are drawn with a stride of 3: row 31, column 1289 is drawn as row 30, column 1287."""
    seen = inspection((32, 1290), revision="v2")
    found = readout(State(y=31, x=1289), seen)
    assert found == readout(State(y=30, x=1287), seen)
    assert (found.y, found.x) == (30, 1287)
    assert found.confidence == pytest.approx(seen.probabilities[:, 30, 1287].max().item())


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_v2_top_entries_of_the_pixel(strip_axis):
    seen = inspection(revision="v2", strip_axis=strip_axis)
    side, entries = (SIZE[0], "rows") if strip_axis == "width" else (SIZE[1], "columns")
    for y, x in PIXELS:
        for level, found in zip(seen.levels, readout(State(y=y, x=x), seen).levels, strict=True):
            h, w = y * level.size[0] // SIZE[0], x * level.size[1] // SIZE[1]
            assert found.pixel == (h, w)
            assert found.gates == pytest.approx(level.gates[0][:, h, w].tolist())
            p = distribution(level, h, w)
            relative = (p.topk(min(3, len(p))).values * len(p)).tolist()  # 1: uniform
            assert [weight for *_, weight in found.top] == pytest.approx(relative, rel=1e-4)
            for first, last, weight in found.top:
                entry = first * len(p) // side
                assert [i for i in range(side) if i * len(p) // side == entry] == list(range(first, last + 1))
                assert weight == pytest.approx(float(p[entry] * len(p)), rel=1e-4)
            assert found.decides == PROTOCOL.classes[level.auxiliary[0, :, h, w].argmax()]
            assert f"attends most to {entries} {found.top[0][0]}-" in found.sentence()


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_v1_gates_of_the_column(strip_axis):
    seen = inspection(revision="v1", strip_axis=strip_axis)
    for level, found in zip(seen.levels, readout(State(y=40, x=12), seen).levels, strict=True):
        entry = found.pixel[0 if strip_axis == "width" else 1]
        assert found.gates == pytest.approx(level.gates[0, :, entry].tolist())
        difference = (level.gates[0, 0] - level.gates[0, 1]).abs()
        assert found.top[0][2] == pytest.approx(difference.max().item())
        assert (found.gamma, found.share) == (level.gamma, pytest.approx(level.attended_share.item()))
        assert f"gates of this {'row' if strip_axis == 'width' else 'column'}: average" in found.sentence()


def test_entropy_and_margin():
    seen = inspection()
    p = torch.tensor([0.5, 0.25, 0.25, *[0.0] * 8])[:, None, None].expand(-1, *SIZE)
    found = readout(State(), replace(seen, probabilities=p))
    assert (found.entropy, found.margin) == pytest.approx((1.5, 0.25))
    assert "Entropy 1.50 bits, margin 0.25." in found.text()


def test_words_for_attention():
    """Places below uniform attention are left out, unless there is no other."""
    level = readout(State(), inspection(revision="v2")).levels[0]
    facts = replace(level, top=((0, 15, 27.6), (16, 31, 1.04), (32, 47, 0.2)), gates=(2.0, -0.123)).facts()
    assert facts[1] == "attends most to columns 0-15 (28x uniform), 16-31 (1x); gates 2 and -0.12"
    assert "0-15 (0.9x uniform); gates" in replace(level, top=((0, 15, 0.9),)).facts()[1]


def test_level_without_ssam_and_auxiliary_head():
    found = readout(State(), inspection(ssam=False, deep_supervision=False)).levels[1]
    assert (found.gates, found.top, found.gamma, found.decides) == ((), (), None, "")
    assert found.sentence() == f"apf2, {found.size[0]}x{found.size[1]}: SSAM is off."


def test_small_share_of_the_strips_is_stated():
    found = readout(State(), inspection(revision="v1")).levels[0]
    assert "hardly matter" in replace(found, share=0.004).sentence()
    assert "hardly matter" not in replace(found, share=0.04).sentence()


def test_text_has_one_line_per_level():
    lines = readout(State(y=3, x=4), inspection(revision="v2")).text().splitlines()
    assert lines[0].startswith("Row 3, column 4: ")
    assert [line.split(",")[0] for line in lines[2:]] == ["apf1", "apf2", "apf3", "apf4"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"revision": "v1"}, "all pixels of an image column share these two gates"),
        ({"revision": "v1", "strip_axis": "width"}, "all pixels of an image row share these two gates"),
        ({"revision": "v2"}, "attends to each image column, relative to uniform attention"),
        ({"ssam": False, "deep_supervision": False}, "SSAM is off"),
    ],
)
def test_revision_note(config, text):
    assert text in revision_note(inspection(**config))
