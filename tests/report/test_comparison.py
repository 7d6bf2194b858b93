"""Samples come back from their file as they were, and are laid side by side."""

import numpy as np
import pytest
import torch

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.model import build_model
from s2fpn_lib.report.comparison import SAMPLES, Sample, compare_evaluations, load_samples, save_samples
from s2fpn_lib.viz.images import colorize, predicted


def sample(value, protocol="roadscenes"):
    picture = torch.full((3, 24, 32), value, dtype=torch.uint8)
    return Sample(picture, picture[0] % 11, (picture[0] + 1) % 11, protocol)


def test_samples_come_back(tmp_path):
    dataset = open_dataset("roadscenes", split="val", cache=False)
    model = build_model("s2fpn_lite", num_classes=11).eval()
    save_samples(tmp_path, model, dataset, [3, 0])
    found = load_samples(tmp_path)
    assert list(found) == [dataset.names[3], dataset.names[0]]
    image, label = dataset[3]
    kept = found[dataset.names[3]]
    assert kept.image.equal(image)
    assert kept.label.equal(label)
    assert kept.prediction.equal(predicted(model, image, dataset.protocol.size))
    assert kept.protocol == dataset.protocol.name


def test_no_file_and_a_damaged_one(tmp_path):
    assert load_samples(tmp_path) == {}
    (tmp_path / SAMPLES).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"samples\.npz is damaged"):
        load_samples(tmp_path)


def save(folder, **samples):
    """The file that `save_samples` writes, for samples without a network."""
    arrays = {f"{part}:{name}": getattr(each, part) for name, each in samples.items() for part in each._fields[:3]}
    folder.mkdir()
    np.savez(folder / SAMPLES, protocol=next(iter(samples.values())).protocol, **arrays)


def test_networks_side_by_side_on_the_images_that_all_have(tmp_path):
    save(tmp_path / "x", a=sample(1), b=sample(2))
    save(tmp_path / "y", b=sample(2), c=sample(3))
    figure = compare_evaluations({"one": "x", "none": "without-samples", "two": "y"}, tmp_path)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["image", "label", "one", "two"]
    shown = figure.axes[3].images[0].get_array()
    np.testing.assert_array_equal(shown, colorize(sample(2).prediction, get_protocol("roadscenes")))


def test_evaluations_that_cannot_be_compared(tmp_path):
    save(tmp_path / "x", a=sample(1))
    save(tmp_path / "y", b=sample(1))
    save(tmp_path / "z", a=sample(1, "camvid-segnet-360x480"))
    assert compare_evaluations({"one": "x"}, tmp_path) is None
    assert compare_evaluations({"one": "x", "two": "y"}, tmp_path) is None
    with pytest.raises(ValueError, match="refusing to compare pictures of 2 protocols"):
        compare_evaluations({"one": "x", "two": "z"}, tmp_path)
