"""Evaluation of a split against the same thing computed image by image."""

import math
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2fpn_lib.data import evenly_spaced, get_protocol
from s2fpn_lib.data.dataset import SegmentationDataset
from s2fpn_lib.evaluate import Evaluation, evaluate
from s2fpn_lib.metrics import BoundaryScore, ConfusionMatrix
from s2fpn_lib.workbench.baselines import majority_baselines


class Scenes(SegmentationDataset):
    """In-memory images of chosen sizes; the label follows the first colour channel, with some noise."""

    def __init__(self, sizes, split="val"):
        g = torch.Generator().manual_seed(len(sizes))
        self.name, self.protocol, self.split = "roadscenes", get_protocol("roadscenes"), split
        self.items = []
        for height, width in sizes:
            coarse = torch.randint(0, 12, (1, 1, height // 20, width // 20), generator=g).float()
            label = F.interpolate(coarse, size=(height, width))[0, 0].to(torch.uint8)
            noisy = torch.where(torch.rand(height, width, generator=g) < 0.1, 0, label)
            self.items.append(((noisy * 20).expand(3, -1, -1).contiguous(), label))
        self.names = [f"scene_{i}" for i in range(len(sizes))]
        self.drives = ["town"] * len(sizes)

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


class ByBrightness(nn.Module):
    """Reads the class off the brightness; never says class 10."""

    num_classes = 11

    def __init__(self):
        super().__init__()
        self.center = nn.Parameter(torch.arange(11.0) * 20)

    def preprocess(self, images):
        return images.float()

    def forward(self, x):
        scores = -((x[:, :1] - self.center[None, :, None, None]) ** 2) / 50
        return scores - 1e6 * (torch.arange(11) == 10)[None, :, None, None]


@pytest.fixture
def dataset():
    return Scenes([(240, 320)] * 5)


def test_equals_scoring_image_by_image(dataset):
    model = ByBrightness()
    got = evaluate(model, dataset, batch_size=2, progress=False)
    confusion, boundary = ConfusionMatrix(11, 11), BoundaryScore(11, 11)
    for i, (image, label) in enumerate(dataset.items):
        pred = model(image[None].float()).argmax(1)
        confusion.update(pred, label[None])
        boundary.update(pred, label[None])
        alone = ConfusionMatrix(11, 11)
        alone.update(pred, label[None])
        torch.testing.assert_close(got.image_iou()[i], alone.iou(), equal_nan=True)
    torch.testing.assert_close(got.confusion.matrix, confusion.matrix)
    torch.testing.assert_close(got.boundary_f, boundary.per_class(), equal_nan=True)
    assert got.boundary_mean == pytest.approx(boundary.mean())
    assert 0.5 < got.confusion.miou() < 1


def test_images_of_another_size_are_scored_at_their_labels_size():
    dataset = Scenes([(240, 320), (480, 640), (120, 160)])
    model = ByBrightness()
    got = evaluate(model, dataset, batch_size=3, progress=False)
    pixels = sum(int((label != 11).sum()) for _, label in dataset.items)
    assert got.confusion.matrix.sum() == pixels
    image, label = dataset.items[1]
    small = F.interpolate(image[None].float(), size=(240, 320), mode="bilinear", antialias=True).round()
    pred = F.interpolate(model(small), size=label.shape, mode="bilinear").argmax(1)
    alone = ConfusionMatrix(11, 11)
    alone.update(pred, label[None])
    torch.testing.assert_close(got.image_iou()[1], alone.iou(), equal_nan=True)


def test_row_says_how_it_came_about(dataset):
    row = evaluate(ByBrightness(), dataset, progress=False, limit=3, flip=True).row(checkpoint="none", seed=4)
    assert (row["checkpoint"], row["seed"]) == ("none", 4)
    assert (row["protocol"], row["split"], row["images"], row["images_in_split"]) == ("roadscenes", "val", 3, 5)
    assert (row["device"], row["amp"], row["scales"], row["flip"]) == ("cpu", "float32", "1", True)
    assert row["iou_Bicyclist"] == 0  # labelled, never predicted: counts as 0 ...
    ious = [value for key, value in row.items() if key.startswith("iou_")]
    assert row["miou"] == pytest.approx(np.nanmean(ious))
    assert row["published_miou"] == pytest.approx(np.mean([v for v in ious if v > 0]))  # ... and is left out here
    assert row["published_miou"] > row["miou"]


def test_per_class_table(dataset):
    result = evaluate(ByBrightness(), dataset, progress=False)
    table = result.per_class()
    assert list(table.index) == list(dataset.protocol.classes)
    assert table["label_share"].sum() == pytest.approx(1)
    assert table["iou"].mean() == pytest.approx(result.confusion.miou())


def test_json_round_trip_is_exact(dataset, tmp_path):
    result = evaluate(ByBrightness(), dataset, progress=False)
    result.save(tmp_path / "evaluation.json")
    again = Evaluation.load(tmp_path / "evaluation.json")
    pd.testing.assert_series_equal(pd.Series(again.row()), pd.Series(result.row()))
    pd.testing.assert_frame_equal(again.per_class(), result.per_class())
    assert again.per_image.equal(result.per_image)
    assert (again.names, again.seconds) == (result.names, result.seconds)


def test_worst_images_are_the_worst_and_have_the_class(dataset):
    result = evaluate(ByBrightness(), dataset, progress=False)
    iou = result.image_iou()[:, 3]
    worst = result.worst("Road", 3)
    assert worst == [i for i in torch.argsort(iou).tolist() if (dataset.items[i][1] == 3).any()][:3]
    assert result.worst(count=5)[0] == int(result.image_iou().nanmean(1).argmin())
    with pytest.raises(ValueError, match="Sky, Building"):
        result.worst("Aeroplane")


def test_memory_grows_by_three_numbers_a_class(dataset):
    result = evaluate(ByBrightness(), dataset, progress=False)
    assert result.per_image.shape == (5, 11, 3)
    assert result.per_image.dtype == torch.int64


def test_images_are_let_go_after_their_batch():
    """However long the split, never more than two batches are alive: the one at work and the next."""
    dataset = Scenes([(240, 320)] * 12)
    alive, most = weakref.WeakSet(), 0

    class Item:  # a tensor's own identity is lost in a WeakSet, whose == compares values
        pass

    def one(self, index):
        nonlocal most
        image, label = (value.clone() for value in self.items[index])
        item = Item()
        weakref.finalize(label, lambda kept: None, item)  # keeps `item` as long as the label lives
        alive.add(item)
        most = max(most, len(alive))
        return image, label

    dataset.__class__ = type("Lazy", (Scenes,), {"__getitem__": one})
    evaluate(ByBrightness(), dataset, batch_size=2, progress=False)
    assert most <= 4


def test_limits_spread_over_the_split():
    assert evenly_spaced(100, 4) == [12, 37, 62, 87]
    assert evenly_spaced(3, None) == evenly_spaced(3, 10) == [0, 1, 2]
    with pytest.raises(ValueError, match="empty"):
        evenly_spaced(0, None)
    with pytest.raises(ValueError, match="limit=0"):
        evenly_spaced(5, 0)


def test_a_length_items_and_a_protocol_are_enough(dataset):
    class Bare:
        protocol = dataset.protocol

        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            return dataset[index]

    result = evaluate(ByBrightness(), Bare(), progress=False)
    assert result.confusion.matrix.equal(evaluate(ByBrightness(), dataset, progress=False).confusion.matrix)
    assert (result.settings["split"], result.names[:2]) == ("unnamed", ["0", "1"])
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate(ByBrightness(), Bare(), batch_size=0)


def test_a_model_with_other_classes_is_refused(dataset):
    model = ByBrightness()
    model.num_classes = 19
    with pytest.raises(ValueError, match="19 classes, roadscenes has 11"):
        evaluate(model, dataset)


def test_majority_baselines_in_closed_form(dataset):
    rows = majority_baselines(dataset)
    labels = torch.stack([label for _, label in dataset.items])
    scored = labels != 11
    counts = torch.bincount(labels[scored].long(), minlength=11)
    assert rows[0]["class"] == dataset.protocol.classes[counts.argmax()]
    assert rows[0]["pixel_accuracy"] == pytest.approx((counts.max() / counts.sum()).item())
    present = int((counts > 0).sum())
    assert rows[0]["miou"] == pytest.approx((counts.max() / counts.sum()).item() / present)
    per_position = torch.stack([(labels == k).sum(0) for k in range(11)])  # (K, H, W)
    assert rows[1]["pixel_accuracy"] == pytest.approx((per_position.amax(0).sum() / scored.sum()).item())
    assert rows[1]["pixel_accuracy"] > rows[0]["pixel_accuracy"]
    assert all(not math.isnan(row["miou"]) for row in rows)


def test_majority_can_be_fitted_elsewhere(dataset):
    rows = majority_baselines(dataset, fit=Scenes([(480, 640), (240, 320)], split="train"))
    assert rows[0]["fitted_on"] == "train"
    assert rows[1]["pixel_accuracy"] < majority_baselines(dataset)[1]["pixel_accuracy"]
