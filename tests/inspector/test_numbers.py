"""The readout's numbers against the captures, indexed directly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2fpn_lib.inspector import State, inspect, readout
from s2fpn_lib.inspector.numbers import revision_note
from tests.inspecting import PROTOCOL, network

SIZE = (45, 71)


def looked_at(label=None, **config):
    model = network(**config)
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return inspect(model, image, PROTOCOL, label=label)


PIXELS = [(0, 0), (44, 70), (40, 12)]


@pytest.mark.parametrize(("y", "x"), PIXELS)
def test_classes_and_confidence(y, x):
    inspection = looked_at()
    found = readout(State(y=y, x=x), inspection)
    p = inspection.probabilities[:, y, x]
    order = p.argsort(descending=True)
    assert found.prediction == PROTOCOL.classes[order[0]]
    assert found.confidence == pytest.approx(p.max().item())
    assert [name for name, _ in found.others] == [PROTOCOL.classes[k] for k in order[1:3]]
    assert [value for _, value in found.others] == pytest.approx(p[order[1:3]].tolist())
    assert found.truth == ""
    assert found.sentence() == f"Row {y}, column {x}: {found.prediction}, {found.confidence:.0%} sure."


def test_true_class_and_what_is_not_labelled():
    label = torch.full(SIZE, 4, dtype=torch.uint8)
    label[0] = PROTOCOL.ignore_id
    inspection = looked_at(label)
    assert readout(State(y=3), inspection).truth == PROTOCOL.classes[4]
    assert readout(State(y=3), inspection).sentence().endswith(f"true class {PROTOCOL.classes[4]}.")
    assert readout(State(y=0), inspection).truth == "not labelled"


@pytest.mark.parametrize("strip_axis", ["height", "width"])
@pytest.mark.parametrize(("y", "x"), PIXELS)
def test_v2_attends_to_the_entries_of_its_own_distribution(y, x, strip_axis):
    inspection = looked_at(revision="v2", strip_axis=strip_axis)
    side = SIZE[0] if strip_axis == "width" else SIZE[1]
    for level, found in zip(inspection.levels, readout(State(y=y, x=x), inspection).levels, strict=True):
        h, w = level.size
        on_level = (y * h // SIZE[0], x * w // SIZE[1])
        assert found.pixel == on_level
        assert found.gates == pytest.approx(level.gates[0][:, on_level[0], on_level[1]].tolist())
        p = level.columns[0].unflatten(1, level.size)[:, on_level[0], on_level[1]]
        weights, entries = p.topk(min(3, len(p)))
        assert [weight for *_, weight in found.top] == pytest.approx(weights.tolist(), rel=1e-4)
        for (first, last, _), entry in zip(found.top, entries.tolist(), strict=True):
            assert [i for i in range(side) if i * len(p) // side == entry] == list(range(first, last + 1))
        assert found.decides == PROTOCOL.classes[level.auxiliary[0, :, on_level[0], on_level[1]].argmax()]
        assert (
            f"attends most to {'rows' if strip_axis == 'width' else 'columns'} {found.top[0][0]}-" in found.sentence()
        )


@pytest.mark.parametrize("strip_axis", ["height", "width"])
def test_v1_has_the_gates_of_its_column(strip_axis):
    inspection = looked_at(revision="v1", strip_axis=strip_axis)
    for level, found in zip(inspection.levels, readout(State(y=40, x=12), inspection).levels, strict=True):
        entry = found.pixel[0 if strip_axis == "width" else 1]
        assert found.gates == pytest.approx(level.gates[0, :, entry].tolist())
        difference = (level.gates[0, 0] - level.gates[0, 1]).abs()
        assert found.top[0][2] == pytest.approx(difference.max().item())
        assert (found.gamma, found.share) == (level.gamma, pytest.approx(level.attended_share.item()))
        assert f"gates of this {'row' if strip_axis == 'width' else 'column'}: average" in found.sentence()


def test_what_is_switched_off_is_said():
    found = readout(State(), looked_at(ssam=False, deep_supervision=False)).levels[1]
    assert (found.gates, found.top, found.gamma, found.decides) == ((), (), None, "")
    assert found.sentence() == f"apf2, {found.size[0]}x{found.size[1]}: SSAM is off."


def test_levels_whose_strips_hardly_matter_say_so():
    found = readout(State(), looked_at()).levels[0]
    assert "hardly matter" in replace(found, share=0.004).sentence()
    assert "hardly matter" not in replace(found, share=0.04).sentence()


def test_text_has_a_line_for_every_level():
    lines = readout(State(y=3, x=4), looked_at(revision="v2")).text().splitlines()
    assert lines[0].startswith("Row 3, column 4: ")
    assert [line.split(",")[0] for line in lines[2:]] == ["apf1", "apf2", "apf3", "apf4"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"revision": "v1"}, "two gates for each image column"),
        ({"revision": "v1", "strip_axis": "width"}, "two gates for each image row"),
        ({"revision": "v2"}, "a distribution of its own over the image columns"),
        ({"ssam": False}, "SSAM is off"),
    ],
)
def test_the_note_says_what_a_revision_shows(config, said):
    assert said in revision_note(looked_at(**config))
