"""The images and models that the inspector offers: thumbnails with their scores, released weights, and own runs."""

import contextlib
import math
from pathlib import Path

from s2fpn_lib.checkpoint import CheckpointError, released_names
from s2fpn_lib.data import Protocol, SegmentationDataset, evenly_spaced
from s2fpn_lib.metrics import ConfusionMatrix, class_totals, iou_from_totals
from s2fpn_lib.model import S2FPN
from s2fpn_lib.viz.images import as_array, jpeg, predicted
from s2fpn_lib.workbench.provenance import checkpoint_protocol

MOST_THUMBS = 24
THUMB_HEIGHT = 84  # pixels; shown at half this height


def strip_indices(dataset: SegmentationDataset) -> list[int]:
    """The images of the strip of thumbnails, spread evenly over the split."""
    return evenly_spaced(len(dataset), min(len(dataset), MOST_THUMBS))


def thumbnail(dataset: SegmentationDataset, index: int) -> bytes:
    """A small picture of an image, as JPEG."""
    pixels = as_array(dataset[index][0])
    return jpeg(pixels, max(1, round(THUMB_HEIGHT * pixels.shape[1] / pixels.shape[0])))


def image_score(network: S2FPN, dataset: SegmentationDataset, index: int) -> float | None:
    """mIoU (0..1) of one image, as `Evaluation.image_iou` has it; None for an image without a scored pixel."""
    protocol, (image, label) = dataset.protocol, dataset[index]
    pred = predicted(network, image, protocol.size).to(label.device)
    matrix = ConfusionMatrix(protocol.num_classes, protocol.ignore_id).update(pred[None], label[None])
    score = float(iou_from_totals(class_totals(matrix))[0].nanmean())
    return None if math.isnan(score) else score


def model_choices(results: Path, protocol: Protocol) -> list[tuple[str, str]]:
    """Released weights and runs under `results` that predict the protocol's classes: (name or path, text)."""
    runs = sorted({path.parent for path in results.rglob("*.safetensors") if path.with_name("result.json").exists()})
    choices = [(name, name) for name in released_names()] + [(str(run), str(run.relative_to(results))) for run in runs]
    return [choice for choice in choices if _predicts(choice[0], protocol)]


def _predicts(path_or_name: str, protocol: Protocol) -> bool:
    with contextlib.suppress(CheckpointError, KeyError, ValueError):
        found = checkpoint_protocol(path_or_name)
        return found is not None and found.classes == protocol.classes
    return False
