"""Evaluation of a split against scoring image by image; prediction from several views against explicit averages."""

import itertools
import math
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2fpn_lib.data import SegmentationDataset, Subset, evenly_spaced, get_protocol, open_dataset, register
from s2fpn_lib.data.protocols import _own
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.evaluate import Evaluation, evaluate, majority_baselines
from s2fpn_lib.metrics import BoundaryScore, ConfusionMatrix
from s2fpn_lib.model import build_model
from s2fpn_lib.model.tta import predict_logits, window_starts, window_weights


class Scenes(SegmentationDataset):
    """In-memory images of chosen sizes; the brightness follows the label, with some noise."""

    def __init__(self, sizes, split="val"):
        g = torch.Generator().manual_seed(len(sizes))
        self.protocol, self.split = get_protocol("roadscenes"), split
        self.items = []
        for height, width in sizes:
            coarse = torch.randint(0, 12, (1, 1, height // 20, width // 20), generator=g).float()
            label = F.interpolate(coarse, size=(height, width))[0, 0].to(torch.uint8)
            noisy = torch.where(torch.rand(height, width, generator=g) < 0.1, 0, label)
            self.items.append(((noisy * 20).expand(3, -1, -1).contiguous(), label))
        self.names = [f"scene_{i}" for i in range(len(sizes))]
        self.drives = ["town"] * len(sizes)

    def arrays(self, index):
        image, label = self.items[index]
        return image.permute(1, 2, 0).numpy(), label.numpy()


class ByBrightness(nn.Module):
    """Predicts the class from the brightness, and never class 10."""

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


def test_evaluation_equals_scoring_image_by_image(dataset):
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


def test_images_are_scored_at_their_labels_size():
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


def test_row_holds_settings_and_scores(dataset):
    evaluation = evaluate(ByBrightness(), dataset, progress=False, limit=3, flip=True)
    evaluation.provenance = {"checkpoint": "none", "seed": 4}
    row = evaluation.row()
    assert (row["checkpoint"], row["seed"]) == ("none", 4)
    assert (row["protocol"], row["split"], row["images"], row["images_in_split"]) == ("roadscenes", "val", 3, 5)
    assert (row["device"], row["amp"], row["scales"], row["flip"]) == ("cpu", "float32", "1", True)
    assert row["iou_Bicyclist"] == 0  # labeled, never predicted: counts as 0 ...
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


def test_worst_images_have_the_class(dataset):
    result = evaluate(ByBrightness(), dataset, progress=False)
    iou = result.image_iou()[:, 3]
    worst = result.worst("Road", 3)
    assert worst == [i for i in torch.argsort(iou).tolist() if (dataset.items[i][1] == 3).any()][:3]
    assert result.worst(count=5)[0] == int(result.image_iou().nanmean(1).argmin())
    with pytest.raises(ValueError, match="Sky, Building"):
        result.worst("Aeroplane")


def test_images_are_released_after_their_batch():
    """At most two batches are alive, the current and the next, however long the split is."""
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


@pytest.mark.parametrize(("length", "limit"), [(100, 20), (101, 40), (367, 24), (7, 5), (1, 1)])
def test_an_image_of_each_equal_part(length, limit):
    found = evenly_spaced(length, limit)
    assert found == sorted(set(found))
    assert [i * length // limit <= each < (i + 1) * length // limit for i, each in enumerate(found)] == [True] * limit


@pytest.mark.parametrize("limit", [2, 3, 4, 5, 8, 10, 20, 40])
def test_few_images_show_many_scene_families(limit):
    """RoadScenes cycles through five: equal steps of five or ten met a single one."""
    families = [i % 5 for i in evenly_spaced(100, limit)]
    assert len(set(families)) == min(limit, 5)


def test_evenly_spaced_images():
    assert evenly_spaced(100, 4) == [15, 26, 63, 99]  # one of each quarter
    assert evenly_spaced(3, None) == evenly_spaced(3, 10) == [0, 1, 2]
    with pytest.raises(ValueError, match="empty"):
        evenly_spaced(0, None)
    with pytest.raises(ValueError, match="limit=0"):
        evenly_spaced(5, 0)


def test_evaluation_of_a_minimal_dataset(dataset):
    class Bare:
        protocol = dataset.protocol

        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            return dataset[index]

    result = evaluate(ByBrightness(), Bare(), progress=False)
    assert result.confusion.matrix.equal(evaluate(ByBrightness(), dataset, progress=False).confusion.matrix)
    assert (result.settings["split"], result.names[:2]) == ("unnamed", ["0", "1"])
    assert "data" not in result.settings
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate(ByBrightness(), Bare(), batch_size=0)


def test_evaluation_of_a_model_with_other_classes(dataset):
    model = ByBrightness()
    model.num_classes = 19
    with pytest.raises(ValueError, match="19 classes, roadscenes has 11"):
        evaluate(model, dataset)


class Pointwise(nn.Module):
    """Classifies each pixel by its color alone, so that no view or window changes it."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))

    def preprocess(self, images):
        return images.float() / 255

    def forward(self, x):
        return self.net(x)


class Local(Pointwise):
    """Has a receptive field and no symmetry, so that views change its logits."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 4, 5, padding=2))


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_one_view_gives_the_networks_logits(images):
    model = build_model("s2fpn_lite", num_classes=5).eval()
    expected = model(model.preprocess(images))
    torch.testing.assert_close(predict_logits(model, images), expected, atol=1e-6, rtol=0)


def test_flip_averages_probabilities(images):
    model = Local().eval()
    x = model.preprocess(images)
    expected = (model(x).softmax(1) + model(x.flip(-1)).flip(-1).softmax(1)) / 2
    got = predict_logits(model, images, flip=True)
    torch.testing.assert_close(got.softmax(1), expected)
    torch.testing.assert_close(predict_logits(model, images.flip(-1), flip=True).flip(-1), got, atol=1e-5, rtol=0)


def test_scales_average_resized_probabilities(images):
    model = Local().eval()
    x = model.preprocess(images)
    parts = []
    for size in ((20, 28), (40, 56), (60, 84)):
        logits = model(F.interpolate(x, size, mode="bilinear", antialias=size[0] < 40))
        parts.append(F.interpolate(logits, (40, 56), mode="bilinear", antialias=size[0] > 40).softmax(1))
    got = predict_logits(model, images, scales=(0.5, 1.0, 1.5))
    torch.testing.assert_close(got.softmax(1), torch.stack(parts).mean(0))


@pytest.mark.parametrize("window", [(40, 56), (400, 500)])
def test_a_window_that_covers_the_image_changes_nothing(images, window):
    model = Local()
    torch.testing.assert_close(predict_logits(model, images, window=window), predict_logits(model, images))


@pytest.mark.parametrize(("window", "overlap"), [((16, 16), 0.0), ((40, 20), 0.25), ((7, 56), 0.5)])
def test_windows_leave_a_pointwise_model_unchanged(images, window, overlap):
    model = Pointwise()
    got = predict_logits(model, images, window=window, overlap=overlap)
    torch.testing.assert_close(got.softmax(1), predict_logits(model, images).softmax(1))


@pytest.mark.parametrize(("length", "window", "overlap"), [(100, 30, 0.5), (97, 32, 0.25), (64, 64, 0), (65, 64, 0)])
def test_window_starts(length, window, overlap):
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] + window == length
    assert all(b - a <= window * (1 - overlap) for a, b in itertools.pairwise(starts))


def test_window_weights():
    weights = window_weights(5, 8)
    assert weights.min() == weights[0].max() == weights[:, -1].max() == 1
    assert weights.max() == weights[2, 3] == 3


def test_prediction_restores_modes_and_ignores_autocast(images):
    model = Local().train()
    model.net[1].eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict_logits(model, images)
    assert inside.dtype == torch.float32
    assert model.training
    assert not model.net[1].training
    torch.testing.assert_close(inside, predict_logits(model, images), atol=0, rtol=0)
    low = predict_logits(model, images, amp="bf16")
    assert low.dtype == torch.float32
    assert 0 < (low - inside).abs().max() < 0.1
    assert not inside.requires_grad


def test_prediction_without_dropout(images):
    model = Pointwise().train()
    torch.testing.assert_close(predict_logits(model, images), predict_logits(model, images), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scales": ()}, ValueError, "at least one scale"),
        ({"scales": (0.0,)}, ValueError, "above 0"),
        ({"window": (16, 0)}, ValueError, "height, width"),
        ({"overlap": 1.0}, ValueError, "below 1"),
        ({"amp": "half"}, ValueError, "bf16, fp16"),
        ({"images": torch.zeros(1, 3, 8, 8)}, TypeError, "uint8"),
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, ValueError, r"\(B, 3, H, W\)"),
    ],
)
def test_invalid_arguments(images, change, error, words):
    arguments = {"images": images, **change}
    with pytest.raises(error, match=words):
        predict_logits(Pointwise(), **arguments)


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


def trained(model: nn.Module, **metadata) -> nn.Module:
    model.metadata = {"dataset": "roadscenes", "protocol": "roadscenes", **metadata}
    return model


def test_an_observer_gets_logits_at_the_labels_size(dataset):
    model, seen = build_model("s2fpn_lite", num_classes=11), []
    evaluation = evaluate(model, dataset, limit=3, progress=False, observer=lambda *pair: seen.append(pair))
    confusion = ConfusionMatrix(11, 11)
    for logits, label in seen:
        assert logits.shape == (1, 11, *label.shape[-2:])
        confusion.update(logits.argmax(1), label)
    assert len(seen) == 3
    assert torch.equal(confusion.matrix, evaluation.confusion.matrix)


@pytest.mark.parametrize(("split", "seen"), [("train", 0), ("trainval", 6), ("trainval:drive=town", 2)])
def test_images_that_were_trained_on_are_counted_beside_the_score(split, seen, capsys, monkeypatch):
    monkeypatch.setattr("s2fpn_lib.evaluate.is_interactive", lambda: False)
    scenes = Subset([(open_dataset("roadscenes", split="val"), i) for i in range(0, 12, 2)], "val", RoadScenes("val"))
    assert [scenes.drives.count("town"), len(scenes)] == [2, 6]
    result = evaluate(trained(ByBrightness(), train_split=split), scenes)
    assert result.row()["images_seen"] == seen
    sentence = {0: "", 2: "trained on 2 of these 6 images", 6: "trained on all 6 of these images"}[seen]
    assert sentence in result.caveat
    assert bool(result.caveat) == bool(seen)
    assert result.caveat in capsys.readouterr().out


def test_the_weights_of_a_fine_tuned_network_have_seen_the_earlier_images():
    metadata = {"train_split": "train", "pretraining": "imagenet, then roadscenes trainval"}
    scenes = open_dataset("roadscenes", split="val")
    assert evaluate(trained(ByBrightness(), **metadata), scenes, limit=2, progress=False).row()["images_seen"] == 2


def test_classes_with_other_names_are_refused(dataset):
    names = ("a", *dataset.protocol.classes[1:])
    register(replace(dataset.protocol, name="mine-240x320-0000", dataset="mine", classes=names))
    with pytest.raises(ValueError, match="evaluate it on data with its own classes"):
        evaluate(trained(ByBrightness(), protocol="mine-240x320-0000"), dataset)


def test_an_own_protocol_is_stored_with_the_evaluation(dataset, tmp_path):
    names = tuple(f"class {i}" for i in range(11))
    dataset.protocol = register(replace(dataset.protocol, name="own-240x320-1111", dataset="own", classes=names))
    evaluate(ByBrightness(), dataset, progress=False).save(tmp_path / "evaluation.json")
    _own.clear()  # another process
    loaded = Evaluation.load(tmp_path / "evaluation.json")
    assert loaded.classes == names
    assert list(loaded.per_class().index) == list(names)
