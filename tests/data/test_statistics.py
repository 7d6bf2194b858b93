"""Class weights against the published formula."""

import math

import numpy as np
import pytest

from s2fpn_lib.data import SegmentationDataset, get_protocol
from s2fpn_lib.data.statistics import class_pixels, class_weights_from


class Labeled(SegmentationDataset):
    """Labels given as arrays, with black images."""

    name, split, protocol = "camvid", "train", get_protocol("camvid-segnet-360x480")

    def __init__(self, *labels: list[list[int]]):
        self.labels = [np.array(label, dtype=np.uint8) for label in labels]
        self.names = self.drives = [f"sample{i}" for i in range(len(labels))]

    def arrays(self, index):
        label = self.labels[index]
        return np.zeros((*label.shape, 3), dtype=np.uint8), label


def test_class_weights_are_the_published_formula_over_labeled_pixels():
    dataset = Labeled([[0, 0, 11], [1, 11, 11]], [[0, 2, 2], [2, 2, 11]])  # 3 x class 0, 1 x 1, 4 x 2, 4 ignored
    assert class_pixels(dataset).tolist() == [3, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0]
    expected = [1 / math.log(1.10 + share) for share in (3 / 8, 1 / 8, 4 / 8)] + [1 / math.log(1.10)] * 8
    assert class_weights_from(dataset, "published").tolist() == pytest.approx(expected, rel=1e-6)
    assert class_weights_from(dataset, 1.5)[3].item() == pytest.approx(1 / math.log(1.5), rel=1e-6)


def test_class_weights_of_invalid_labels_and_constants():
    with pytest.raises(ValueError, match=r"sample1 .* holds the id 12"):
        class_weights_from(Labeled([[0]], [[12]]))
    with pytest.raises(ValueError, match="a number above 1"):
        class_weights_from(Labeled([[0]]), 1.0)
    with pytest.raises(ValueError, match="no pixel"):
        class_weights_from(Labeled([[11]]))
