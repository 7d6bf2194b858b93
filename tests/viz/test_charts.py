"""Charts: the data they show, and labels that do not overlap."""

import itertools
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colors

from s2fpn_lib.data import get_protocol
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.report.comparison import load_published
from s2fpn_lib.viz.charts import (
    accuracy_speed,
    class_shares_bars,
    confusion_heatmap,
    per_class_bars,
    training_curves,
)
from s2fpn_lib.viz.style import COLORS, MUTED

PROTOCOL = get_protocol("camvid-segnet-360x480")


def rows(count=4, shift=0.0):
    return [
        {"epoch": e + 1, "loss": 2.0 - e / 4, "val_miou": None if e % 2 else 0.1 * e + shift, "lr": 1e-3, "step_s": 0.1}
        for e in range(count)
    ]


def test_training_curves_draw_one_panel_per_quantity():
    figure = training_curves(rows())
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "mIoU in %", "learning rate"]
    x, y = figure.axes[0].lines[0].get_data()
    assert (list(x), list(y)) == ([1, 2, 3, 4], [2.0, 1.75, 1.5, 1.25])
    x, y = figure.axes[1].lines[0].get_data()
    assert (list(x), list(y)) == ([1, 3], [0, 20])  # epochs that were validated
    timed = [row | {"data_s": 0.25} for row in rows()]
    axis = training_curves(timed).axes[3]
    assert axis.get_title(loc="left") == "wait for data in ms per step"
    assert list(axis.lines[0].get_ydata()) == [250] * 4
    assert len(training_curves({"seed 0": timed, "seed 1": timed}).axes) == 3
    unvalidated = [row | {"val_miou": None} for row in rows()]
    assert [axis.get_title(loc="left") for axis in training_curves(unvalidated).axes] == ["loss", "learning rate"]
    runs = training_curves({"seed 0": rows(), "seed 1": rows(shift=0.1), "empty": []})
    assert [text.get_text() for text in runs.axes[1].get_legend().get_texts()] == ["seed 0", "seed 1"]
    with pytest.raises(ValueError, match="not finished an epoch"):
        training_curves([])


def test_per_class_bars_mark_absent_classes():
    table = pd.DataFrame({"iou": [0.5, np.nan, 0.25]}, index=["Sky", "Car", "Tree"])
    axis = per_class_bars(table, replace(PROTOCOL, classes=tuple(table.index), palette=PROTOCOL.palette[:3])).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [50, 0, 25]
    assert [text.get_text() for text in axis.texts] == ["50.0", "does not occur", "25.0"]


def test_confusion_heatmap_is_normalized_by_row():
    matrix = ConfusionMatrix.from_matrix(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 5, 5]]))
    axis = confusion_heatmap(matrix, ["a", "b", "c"]).axes[0]
    shown = np.ma.filled(axis.collections[0].get_array().reshape(3, 3), np.nan)
    np.testing.assert_allclose(shown, [[75, 25, 0], [np.nan] * 3, [0, 50, 50]])


def test_class_bars_have_the_colors_of_their_classes_and_each_value_beside_its_bar():
    shares = np.array([0.3, 0.2, 0.01, 0.2, 0.1, 0.1, 0.02, 0.03, 0.02, 0.01, 0.01])
    axis = class_shares_bars({"train": shares, "val": shares[::-1]}, PROTOCOL).axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    np.testing.assert_allclose(ends, 100 * np.concatenate([shares, shares[::-1]]))
    for bar, color in zip(axis.patches, 2 * PROTOCOL.palette, strict=True):
        np.testing.assert_allclose(bar.get_facecolor()[:3], np.array(color) / 255)
    for bar, text in zip(axis.patches, axis.texts, strict=True):
        assert text.get_text() == f"{bar.get_x() + bar.get_width():.2g} %"
        assert text.xy[1] == pytest.approx(bar.get_y() + bar.get_height() / 2)
    table = pd.DataFrame({"iou": shares}, index=PROTOCOL.classes)
    bars = per_class_bars(table, PROTOCOL).axes[0].patches
    np.testing.assert_allclose([bar.get_facecolor()[:3] for bar in bars], np.array(PROTOCOL.palette) / 255)


@pytest.mark.parametrize("dataset", ["cityscapes", "camvid"])
def test_accuracy_speed_draws_every_point_and_no_label_overlaps(dataset):
    published = load_published()
    ours = {
        "model": "s2fpn_lite",
        "revision": "v1",
        "split": "val",
        "input": "360x480",
        "method": "eager float32, network, trained on all 101 images, study sizes",
    }
    points = [{"fps": 60.0, "miou_percent": 72.0, "device": "CPU A"}, {"fps": 9.0, "miou_percent": 72.0, "device": "B"}]
    ours = pd.DataFrame([{**ours, **point} for point in points])
    figure = accuracy_speed(published, ours, dataset=dataset)
    axis = figure.axes[0]
    points = np.concatenate([c.get_offsets() for c in axis.collections])
    wanted = published[(published["dataset"] == dataset) & published["fps"].notna()]
    assert len(points) == len(wanted) + 2
    figure.canvas.draw()
    boxes = [plt.Text.get_window_extent(text) for text in axis.texts]
    assert len(boxes) >= len(wanted)
    seen = [text.get_text() for text in axis.texts if "trained on" in text.get_text()]
    assert seen == ["s2fpn_lite v1, val, 360x480, trained on all 101 images"] * 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted([*wanted["device"].unique(), "B (measured here)", "CPU A (measured here)"])
    family, others = (colors.to_rgba(color) for color in (COLORS[0], MUTED))
    drawn = [tuple(color) for c in axis.collections for color in c.get_facecolors()]
    assert drawn.count(family) == wanted["model"].str.startswith("S2-FPN").sum() + 2
    assert drawn.count(others) == len(wanted) + 2 - drawn.count(family)


def test_figures_are_not_left_open():
    before = plt.get_fignums()
    training_curves(rows())
    assert plt.get_fignums() == before
