"""Score a model on a split: one streaming pass, nothing kept but counts."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.data import SegmentationDataset, evenly_spaced, get_protocol
from s2fpn_lib.distributed import AMP_DTYPES, rank, sum_over_processes, world_size
from s2fpn_lib.metrics import BoundaryScore, ConfusionMatrix, class_ids, class_totals, iou_from_totals
from s2fpn_lib.model.modes import evaluation_mode
from s2fpn_lib.progress import is_interactive, progress_bar
from s2fpn_lib.runs import write_atomic

# MERGED inference: """From uint8 images to scores: one view, several scales, mirrored, or window by window.
#
# Whatever the views, softmax over the classes of what comes back is the probability: with one view these are the
# network's own logits, with several the logarithm of the averaged probabilities.
# """


CONVENTION = "mean over classes in labels or predictions, zero TP counts 0"


@dataclass
class Evaluation:
    """What one pass over a split found.

    Attributes:
        confusion: the whole split's counts.
        per_image: (N, K, 3) int64, each image's true positives, label pixels, predicted pixels.
        boundary_f: (K,) float64 boundary F-score per class, NaN where undefined; `boundary_mean` its mean over images.
        indices: the N dataset indices that were scored, `names` their sample ids.
        settings: protocol, split, images, images_in_split, device, amp, scales, flip, window, boundary_tolerance.
        seconds: wall time of the pass (loading included): not a speed measurement.
        provenance: where the model came from (checkpoint, model, seed, ...), as the caller knows it; part of every row.
    """

    confusion: ConfusionMatrix
    per_image: Tensor
    boundary_f: Tensor
    boundary_mean: float
    indices: list[int]
    names: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = math.nan
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The protocol's class names."""
        return get_protocol(self.settings["protocol"]).classes

    def row(self, **provenance: Any) -> dict[str, Any]:
        """One flat row for a table: its provenance with `provenance` added, the settings, the scores, IoU per class.

        Percentages are not used: every score is a share in 0..1, NaN where undefined.
        """
        m = self.confusion
        return {
            **self.provenance,
            **provenance,
            **self.settings,
            "convention": CONVENTION,
            "miou": m.miou(),
            "published_miou": m.published_miou(),
            "pixel_accuracy": m.pixel_accuracy(),
            "class_accuracy": m.class_accuracy(),
            "fwiou": m.frequency_weighted_iou(),
            "boundary_f": self.boundary_mean,
            **{f"iou_{name}": value for name, value in zip(self.classes, m.iou().tolist(), strict=True)},
        }

    def per_class(self) -> pd.DataFrame:
        """One line a class: iou, precision, recall, boundary_f, and its share of the labelled pixels."""
        m = self.confusion
        columns = {"iou": m.iou(), "precision": m.precision(), "recall": m.recall(), "boundary_f": self.boundary_f}
        columns["label_share"] = m.matrix.sum(1).double() / m.matrix.sum()
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}, index=list(self.classes))
        return frame.rename_axis("class")

    def image_iou(self) -> Tensor:
        """(N, K) float64 IoU of each image; NaN where an image has the class in neither map."""
        return iou_from_totals(self.per_image)

    def worst(self, class_name: str | None = None, count: int = 5, *, min_share: float = 0.002) -> list[int]:
        """Dataset indices of the images where a class (None: the mean over the image's classes) is worst, worst first.

        An image counts for a class only where the label gives it at least `min_share` of the scored pixels: the very
        worst would otherwise be images in which the class is a handful of pixels.
        """
        iou = self.image_iou()
        if class_name is None:
            scores = iou.nanmean(1)
        else:
            if class_name not in self.classes:
                raise ValueError(f"no class {class_name!r} in {self.settings['protocol']}: {', '.join(self.classes)}")
            k = self.classes.index(class_name)
            share = self.per_image[:, k, 1] / self.per_image[:, :, 1].sum(1)
            scores = torch.where(share >= min_share, iou[:, k], math.nan)
        order = torch.argsort(scores, stable=True).tolist()  # NaN sorts last
        return [self.indices[i] for i in order if not math.isnan(scores[i])][:count]

    def to_json(self) -> str:
        """Everything, as JSON text; `from_json` gives it back exactly."""
        return json.dumps(
            {
                "provenance": self.provenance,
                "settings": self.settings,
                "seconds": self.seconds,
                "ignore_index": self.confusion.ignore_index,
                "matrix": self.confusion.matrix.tolist(),
                "boundary_f": [None if math.isnan(v) else v for v in self.boundary_f.tolist()],
                "boundary_mean": None if math.isnan(self.boundary_mean) else self.boundary_mean,
                "indices": self.indices,
                "names": self.names,
                "per_image": self.per_image.tolist(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """The evaluation that `to_json` wrote, on the CPU."""
        data = json.loads(text)
        return cls(
            confusion=ConfusionMatrix.from_matrix(torch.tensor(data["matrix"]), data["ignore_index"]),
            per_image=torch.tensor(data["per_image"], dtype=torch.int64),
            boundary_f=torch.tensor([math.nan if v is None else v for v in data["boundary_f"]], dtype=torch.float64),
            boundary_mean=math.nan if data["boundary_mean"] is None else data["boundary_mean"],
            indices=data["indices"],
            names=data["names"],
            settings=data["settings"],
            provenance=data["provenance"],
            seconds=data["seconds"],
        )

    def save(self, path: str | Path) -> None:
        """`to_json` into a file, atomically."""
        write_atomic(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """The evaluation in a file that `save` wrote."""
        return cls.from_json(Path(path).read_text())


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    batch_size: int = 4,
    device: torch.device | str | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    amp: str | None = None,
    limit: int | None = None,
    boundary_tolerance: float | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Score `model` on `dataset` under its protocol, at every label's own size.

    The network sees images of the protocol's size (others are resized to it); its scores are resized to the label.
    Labels are never resized. scales, flip, window, overlap, amp: see `predict_logits`; a network meant for half the
    size (S²-FPN on Cityscapes: 512 x 1024) takes `scales=(0.5,)`.

    Args:
        dataset: a dataset of `open_dataset`, or anything with a length, [i] and .protocol like one.
        device: where to run; None leaves the model where it is. The model is moved there.
        limit: score only so many images, spread evenly over the split (neighbouring video frames are near copies).
        boundary_tolerance: pixels; None: 0.75 % of the image diagonal.
        distributed: every process of a distributed training calls this, scores its share of the batches and gets the whole
            split's evaluation. The batches are those of one process, so the counts are, too, exactly.
        progress: a progress bar on a terminal and in a notebook, one line at the end elsewhere.

    Memory does not grow with the split except for 3 K numbers an image.
    """
    protocol = dataset.protocol
    if getattr(model, "num_classes", protocol.num_classes) != protocol.num_classes:
        raise ValueError(
            f"the model gives {model.num_classes} classes, {protocol.name} has {protocol.num_classes}:"
            " evaluate it on the dataset it was trained for"
        )
    if device is not None:
        model = model.to(device)
    device = getattr(model, "device", None) or next((p.device for p in model.parameters()), torch.device("cpu"))
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    indices = evenly_spaced(len(dataset), limit)
    split, names = getattr(dataset, "split", "unnamed"), getattr(dataset, "names", range(len(dataset)))
    confusion = ConfusionMatrix(protocol.num_classes, protocol.ignore_id)
    boundary = BoundaryScore(protocol.num_classes, protocol.ignore_id, boundary_tolerance)
    batches = [range(len(indices))[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    mine = batches[rank() :: world_size()] if distributed else batches
    per_image = torch.zeros(len(indices), protocol.num_classes, 3, dtype=torch.int64, device=device)
    start = time.perf_counter()
    what = f"{protocol.name} {split}"
    with progress_bar(sum(map(len, mine)), enabled=None if progress else False, desc=what, unit="image") as bar:
        for positions in mine:
            images, labels = load_batch(dataset, [indices[i] for i in positions])
            totals: list[Tensor] = []
            scores = predict_logits(
                model, images.to(device), scales=scales, flip=flip, window=window, overlap=overlap, amp=amp
            )
            for some, label in by_label_size(scores, labels):
                label = label.to(device)
                pred = class_ids(some)
                totals.append(class_totals(confusion.update(pred, label)))
                boundary.update(pred, label)
            per_image[positions.start : positions.stop] = torch.cat(totals)
            bar.update(len(images))
    if distributed:
        confusion.counts = sum_over_processes(confusion.counts.to(device))
        boundary.class_sums = sum_over_processes(boundary.class_sums.to(device))
        boundary.image_sums = sum_over_processes(boundary.image_sums.to(device))
        per_image = sum_over_processes(per_image)  # each image's row is 0 in all processes but one
    seconds = time.perf_counter() - start
    if progress and not is_interactive():
        print(f"{what}: {len(indices)} images in {seconds:.1f} s, mIoU {100 * confusion.miou():.2f} %")
    return Evaluation(
        confusion=confusion,
        per_image=per_image.cpu(),
        boundary_f=boundary.per_class().cpu(),
        boundary_mean=boundary.mean(),
        indices=indices,
        names=[str(names[i]) for i in indices],
        settings={
            "protocol": protocol.name,
            "split": split,
            "images": len(indices),
            "images_in_split": len(dataset),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "amp": amp or "float32",
            "scales": "+".join(f"{s:g}" for s in scales),
            "flip": flip,
            "window": f"{window[0]}x{window[1]} overlap {overlap:g}" if window else "whole image",
            "boundary_tolerance": "0.75 % of the diagonal"
            if boundary_tolerance is None
            else f"{boundary_tolerance:g} px",
        },
        seconds=seconds,
    )


def load_batch(dataset: SegmentationDataset, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """(B, 3, H, W) uint8 images at the protocol's size, and their labels as they are."""
    pairs = [dataset[i] for i in indices]
    images = [at_size(image, dataset.protocol.size) for image, _ in pairs]
    return torch.stack(images), [label for _, label in pairs]


def at_size(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) uint8, bilinear and smoothed: how an image gets to the size that a network sees."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def by_label_size(scores: Tensor, labels: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores at their labels' sizes; the whole batch at once where all labels share one size."""
    if all(label.shape == labels[0].shape for label in labels):
        groups = [(scores, torch.stack(labels))]
    else:
        groups = [(score[None], label[None]) for score, label in zip(scores, labels, strict=True)]
    for some, label in groups:
        if some.shape[-2:] != label.shape[-2:]:
            some = F.interpolate(some, size=label.shape[-2:], mode="bilinear", align_corners=False)
        yield some, label


def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    amp: str | None = None,
) -> Tensor:
    """Scores of a batch.

    Args:
        model: has `preprocess`; put into evaluation mode here and back afterwards.
        images: (B, 3, H, W) uint8 RGB.
        scales: the image is resized by each; the probabilities are resized back and averaged with equal weight.
        flip: every scale also mirrored left to right.
        window: (h, w) in pixels of the resized image: the network sees windows of that size (or of the image's, where
            that is smaller), and overlapping probabilities are averaged with weights that fall off to the window's rim.
        overlap: least share of a window that the next one covers again, 0 <= overlap < 1.
        amp: "bf16" or "fp16" runs the network under autocast; None runs it in float32, also inside a caller's autocast.

    Returns:
        (B, K, H, W) float32 on the model's device; softmax over dim 1 gives the (averaged) probabilities.

    Raises:
        TypeError: images that are not uint8. ValueError: sizes, scales, overlap or amp that make no sense.
    """
    _check(images, scales, window, overlap, amp)
    with torch.inference_mode(), evaluation_mode(model):
        x = model.preprocess(images)  # (B, 3, H, W); affine per channel, so resizing afterwards changes nothing
        if len(scales) == 1 and not flip:
            scores, is_logits = _scale_scores(model, x, scales[0], window, overlap, amp)
            return scores if is_logits else scores.clamp_min(1e-12).log()
        total = x.new_zeros(())
        for scale, mirrored in itertools.product(scales, (False, True) if flip else (False,)):
            view = x.flip(-1) if mirrored else x
            scores, is_logits = _scale_scores(model, view, scale, window, overlap, amp)
            probability = scores.softmax(1) if is_logits else scores
            total = total + (probability.flip(-1) if mirrored else probability)
        return (total / (len(scales) * (1 + flip))).clamp_min(1e-12).log()


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows of `window` pixels begin: evenly, covering `length` pixels, overlapping at least so much."""
    if window >= length:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def window_weights(height: int, width: int) -> Tensor:
    """(height, width) float32 weights of a window's pixels: a tent, 1 at the rim and highest in the middle."""
    tents = []
    for n in (height, width):
        ramp = torch.arange(1, n + 1, dtype=torch.float32)
        tents.append(torch.minimum(ramp, ramp.flip(0)))
    return torch.minimum(tents[0][:, None], tents[1][None, :])


def _scale_scores(
    model: nn.Module, x: Tensor, scale: float, window: tuple[int, int] | None, overlap: float, amp: str | None
) -> tuple[Tensor, bool]:
    """(B, K, H, W) at x's size, and whether these are logits (one pass) or probabilities (averaged windows)."""
    size = x.shape[-2:]
    height, width = (max(1, round(n * scale)) for n in size)
    scaled = x if (height, width) == size else _resize(x, (height, width))
    starts = [(0, 0)]
    if window is not None:
        window = min(window[0], height), min(window[1], width)
        starts = list(
            itertools.product(window_starts(height, window[0], overlap), window_starts(width, window[1], overlap))
        )
    if len(starts) == 1:
        return _resize(_forward(model, scaled, amp), size), True

    weights = window_weights(*window).to(x.device)
    total = share = None
    for top, left in starts:
        part = (..., slice(top, top + window[0]), slice(left, left + window[1]))
        probability = _forward(model, scaled[part], amp).softmax(1) * weights  # (B, K, h, w)
        if total is None:
            total = x.new_zeros(len(x), probability.shape[1], height, width)
            share = x.new_zeros(height, width)
        total[part] += probability
        share[part] += weights
    return _resize(total / share, size), False


def _forward(model: nn.Module, x: Tensor, amp: str | None) -> Tensor:
    with torch.autocast(x.device.type, dtype=AMP_DTYPES.get(amp, torch.bfloat16), enabled=amp is not None):
        return model(x).float()


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear on pixel centres, (B, C, h, w) -> (B, C, *size); smoothed first where it shrinks."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    shrinks = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def _check(
    images: Tensor, scales: Sequence[float], window: tuple[int, int] | None, overlap: float, amp: str | None
) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}; give uint8 RGB 0..255, model.preprocess normalises them")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {tuple(images.shape)}; expected (B, 3, H, W)")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: give at least one scale, all above 0")
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise ValueError(f"window={window}: give (height, width) in pixels, or None for the whole image")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: a share of the window, at least 0 and below 1")
    if amp is not None and amp not in AMP_DTYPES:
        raise ValueError(f"amp={amp!r}: choose one of {', '.join(AMP_DTYPES)} or None for float32")
