"""The images on which a network did worst, to look at: image | label | prediction | error."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from s2fpn_lib.data import SegmentationDataset
from s2fpn_lib.evaluate import Evaluation, at_size, predict_logits
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.viz.images import show_predictions


def predicted(model: nn.Module, image: Tensor, protocol_size: tuple[int, int], **views: Any) -> Tensor:
    """(H, W) uint8 ids at the image's own size, predicted as `evaluate` does it. views: see `predict_logits`."""
    size = image.shape[-2:]
    scores = predict_logits(model, at_size(image, protocol_size)[None], **views)
    if scores.shape[-2:] != size:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    return class_ids(scores)[0].to("cpu", torch.uint8)


def prediction_grid(
    model: nn.Module,
    dataset: SegmentationDataset,
    indices: list[int],
    *,
    captions: list[str] | None = None,
    **views: Any,
) -> Figure:
    """image | label | prediction | error for chosen samples. captions: None takes the sample ids."""
    samples = [dataset[i] for i in indices]
    preds = [predicted(model, image, dataset.protocol.size, **views) for image, _ in samples]
    return show_predictions(
        [image for image, _ in samples],
        [label for _, label in samples],
        preds,
        dataset.protocol,
        names=captions or [dataset.names[i] for i in indices],
    )


def worst_images(
    model: nn.Module,
    dataset: SegmentationDataset,
    evaluation: Evaluation,
    *,
    class_name: str | None = None,
    count: int = 3,
    **views: Any,
) -> Figure:
    """The worst images for a class (None: over all classes), worst first, with their scores in the captions.

    Raises ValueError where no scored image has enough of the class (see `Evaluation.worst`).
    """
    indices = evaluation.worst(class_name, count)
    if not indices:
        raise ValueError(f"no scored image has enough {class_name} pixels to call it worst")
    iou = evaluation.image_iou()
    captions = []
    for index in indices:
        image_iou = iou[evaluation.indices.index(index)]
        score = image_iou.nanmean() if class_name is None else image_iou[evaluation.classes.index(class_name)]
        what = "mean IoU of this image" if class_name is None else f"{class_name} IoU in this image"
        captions.append(f"{dataset.names[index]}: {what} {100 * score:.1f} %")
    return prediction_grid(model, dataset, indices, captions=captions, **views)


def weakest_classes(evaluation: Evaluation, count: int = 3) -> list[str]:
    """The labelled classes with the lowest IoU over the split, lowest first."""
    table = evaluation.per_class()
    labeled = table[table["label_share"] > 0]
    return list(labeled.sort_values("iou").index[:count])
