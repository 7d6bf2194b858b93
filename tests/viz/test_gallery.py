"""The gallery shows what the evaluation scored."""

import numpy as np
import pytest

from s2fpn_lib.data import open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.model import build_model
from s2fpn_lib.viz.gallery import predicted, weakest_classes, worst_images
from s2fpn_lib.viz.images import colorize


@pytest.fixture(scope="module")
def scored():
    dataset = open_dataset("roadscenes", split="val", cache=False)
    model = build_model("s2fpn_lite", num_classes=11)
    return model, dataset, evaluate(model, dataset, limit=3, flip=True, progress=False)


def test_worst_images_come_with_their_own_scores(scored):
    model, dataset, evaluation = scored
    index = evaluation.worst("Road", 1)[0]
    figure = worst_images(model, dataset, evaluation, class_name="Road", count=1, flip=True)
    image, label = dataset[index]
    pred = predicted(model, image, dataset.protocol.size, flip=True)
    alone = ConfusionMatrix(11, 11)
    alone.update(pred, label)
    caption = f"{dataset.names[index]}: Road IoU in this image {100 * alone.iou()[3]:.1f} %"
    assert caption in [text.get_text() for text in figure.texts]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), colorize(pred, dataset.protocol))


def test_weakest_classes_are_labelled_and_ordered(scored):
    _, _, evaluation = scored
    table = evaluation.per_class()
    names = weakest_classes(evaluation, 4)
    assert list(table.loc[names, "iou"]) == sorted(table.loc[names, "iou"])
    assert (table.loc[names, "label_share"] > 0).all()
