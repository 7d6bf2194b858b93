"""Evaluation of a model on a split: logits at the protocol's size, scores at each label's own size."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from s2fpn_lib.checkpoint import names_seen
from s2fpn_lib.data import PROTOCOLS, Protocol, SegmentationDataset, evenly_spaced, get_protocol, register
from s2fpn_lib.data.statistics import require_scored
from s2fpn_lib.distributed import rank, sum_over_processes, world_size
from s2fpn_lib.metrics import BoundaryScore, ConfusionMatrix, class_ids, class_totals, iou_from_totals
from s2fpn_lib.model.tta import at_size, predict_logits, resize_bilinear
from s2fpn_lib.runs import read_json, write_atomic
from s2fpn_lib.validate import as_declared

if TYPE_CHECKING:
    import pandas as pd

CONVENTION = "mean over classes in labels or predictions, zero TP counts 0"
LEAST_SHARE = 0.002  # of an image's scored pixels, for `Evaluation.worst`


@dataclass
class Evaluation:
    """Counts and scores of one pass over a split."""

    confusion: ConfusionMatrix  # of the whole split
    per_image: Tensor  # (N, K, 3) int64, each image's true positives, label pixels, predicted pixels
    boundary_f: Tensor  # (K,) float64 boundary F-score per class, NaN where undefined
    boundary_mean: float  # mean boundary F-score over images
    indices: list[int]  # the N dataset indices that were scored
    names: list[str]  # their sample ids
    # How the split was scored: protocol, split, images, device, amp, scales, flip, window, ...; `data` is the digest of
    # the dataset, `images_seen` the number of scored images that the weights were trained on
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = math.nan  # wall time of the pass, loading included; not a speed measurement
    provenance: dict[str, Any] = field(default_factory=dict)  # of the model, given by the caller; part of every row

    @property
    def classes(self) -> tuple[str, ...]:
        return get_protocol(self.settings["protocol"]).classes

    @property
    def caveat(self) -> str:
        """A sentence to show beside every score of images that the weights were trained on; empty if there are none."""
        return seen_caveat(self.settings.get("images_seen", 0), len(self.indices))

    def row(self) -> dict[str, Any]:
        """One flat row for a table: provenance, settings, scores (0..1, NaN where undefined), and IoU per class."""
        m = self.confusion
        return {
            **self.provenance,
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

    def per_class(self) -> "pd.DataFrame":
        """One row per class: iou, precision, recall, boundary_f, and label_share, its share of the labeled pixels."""
        import pandas as pd

        m = self.confusion
        columns = {"iou": m.iou(), "precision": m.precision(), "recall": m.recall(), "boundary_f": self.boundary_f}
        columns["label_share"] = m.matrix.sum(1).double() / m.matrix.sum()
        return pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))

    def image_iou(self) -> Tensor:
        """(N, K) float64 IoU of each image; NaN where an image has the class in neither label nor prediction."""
        return iou_from_totals(self.per_image)

    def worst(self, class_name: str | None = None, count: int = 5) -> list[int]:
        """Dataset indices of the images with the lowest IoU of a class, lowest first; None: of the mean over classes.

        Images count only where the label gives the class `LEAST_SHARE` of the scored pixels, not a handful of pixels.
        """
        scores = self.image_iou()
        if class_name is None:
            scores = scores.nanmean(1)
        elif class_name in self.classes:
            k = self.classes.index(class_name)
            share = self.per_image[:, k, 1] / self.per_image[:, :, 1].sum(1)
            scores = torch.where(share >= LEAST_SHARE, scores[:, k], math.nan)
        else:
            raise ValueError(f"no class {class_name!r} in {self.settings['protocol']}: {', '.join(self.classes)}")
        order = torch.argsort(scores, stable=True).tolist()  # NaN sorts last
        return [self.indices[i] for i in order if not math.isnan(scores[i])][:count]

    def save(self, path: str | Path) -> None:
        """Writes everything to a JSON file, atomically; `load` restores it exactly."""
        protocol = get_protocol(self.settings["protocol"])
        fields = {
            **{name: getattr(self, name) for name in ("provenance", "settings", "seconds", "indices", "names")},
            # a name is enough for a protocol of this library; others are known from their files alone
            "protocol": None if protocol.name in PROTOCOLS else protocol.to_dict(),
            "ignore_index": self.confusion.ignore_index,
            "matrix": self.confusion.matrix.tolist(),
            "boundary_f": [None if math.isnan(value) else value for value in self.boundary_f.tolist()],
            "boundary_mean": None if math.isnan(self.boundary_mean) else self.boundary_mean,
            "per_image": self.per_image.tolist(),
        }
        write_atomic(path, json.dumps(fields) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The evaluation in a file that `save` wrote, on the CPU. ValueError that names the file for any other."""
        try:
            fields = read_json(path)
            if own := fields.pop("protocol", None):
                register(Protocol.from_dict(own))
            ignore_index = as_declared(fields.pop("ignore_index"), int | None)
            confusion = ConfusionMatrix.from_matrix(torch.tensor(fields.pop("matrix")), ignore_index)
            f = [math.nan if f is None else float(f) for f in (*fields.pop("boundary_f"), fields.pop("boundary_mean"))]
            per_image = torch.tensor(fields.pop("per_image"), dtype=torch.int64)
            kinds = dict.fromkeys(("settings", "provenance"), dict[str, str | int | float | bool | None])
            kinds |= {"names": list[str], "indices": list[int]}
            fields |= {name: as_declared(fields[name], kind) for name, kind in kinds.items()}
            loaded = cls(confusion, per_image, torch.tensor(f[:-1], dtype=torch.float64), f[-1], **fields)
            classes, images = len(loaded.classes), len(loaded.names)
            sizes = len(f) - 1, confusion.num_classes, len(loaded.indices), tuple(per_image.shape)
            if sizes != (classes, classes, images, (images, classes, 3)):
                raise ValueError(f"{classes} classes and {images} images, but sizes {sizes}")
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an evaluation ({error!s:.300}): restore it, or evaluate again") from error
        return loaded


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
    distributed: bool = False,
    progress: bool = True,
    observer: Callable[[Tensor, Tensor], None] | None = None,
) -> Evaluation:
    """Scores `model` on `dataset` under its protocol, at each label's own size.

    The network sees images of the protocol's size (others are resized to it). Its logits are resized to the label;
    labels are never resized. A network for half the size (S²-FPN on Cityscapes: 512 x 1024) takes `scales=(0.5,)`.

    Args:
        dataset: a dataset of `open_dataset`, or any object with a length, `[i]`, and `.protocol` like one.
        device: where to run; the model is moved there. None leaves the model where it is.
        scales, flip, window, overlap, amp: see `predict_logits`.
        limit: score only this many images, spread evenly over the split.
        distributed: each process of a distributed training calls this, scores its share, and gets the whole evaluation.
        progress: show a progress bar on a terminal and in a notebook, and print one line at the end elsewhere.
        observer: called with the logits (1, K, H, W) and the label (1, H, W) of each image.

    Raises ValueError for a model with other classes than the protocol, and for a batch size or limit below 1, and
    DatasetError for a split without a scored pixel, such as Cityscapes' test.
    """
    protocol, metadata = dataset.protocol, getattr(model, "metadata", {})
    require_classes(model, protocol)
    if isinstance(dataset, SegmentationDataset):
        require_scored(dataset)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    if device is not None:
        model = model.to(device)
    device = getattr(model, "device", None) or next((p.device for p in model.parameters()), torch.device("cpu"))
    indices = evenly_spaced(len(dataset), limit)
    split, names = getattr(dataset, "split", "unnamed"), getattr(dataset, "names", range(len(dataset)))
    confusion = ConfusionMatrix(protocol.num_classes, protocol.ignore_id)
    boundary = BoundaryScore(protocol.num_classes, protocol.ignore_id)  # with the default tolerance
    per_image = torch.zeros(len(indices), protocol.num_classes, 3, dtype=torch.int64, device=device)
    batches = [range(len(indices))[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    if distributed:
        batches = batches[rank() :: world_size()]
    start = time.perf_counter()
    title = f"{protocol.name} {split}"
    with progress_bar(sum(map(len, batches)), enabled=None if progress else False, desc=title, unit="image") as bar:
        for positions in batches:
            pairs = [dataset[indices[i]] for i in positions]
            images = torch.stack([at_size(image, protocol.size) for image, _ in pairs]).to(device)
            logits = predict_logits(model, images, scales=scales, flip=flip, window=window, overlap=overlap, amp=amp)
            for i, one, (_, label) in zip(positions, logits.split(1), pairs, strict=True):
                label = label[None].to(device)
                scores = resize_bilinear(one, label.shape[-2:])
                pred = class_ids(scores)
                if observer is not None:
                    observer(scores, label)
                per_image[i] = class_totals(confusion.update(pred, label))[0]
                boundary.update(pred, label)
            bar.update(len(pairs))
    if distributed:  # `to`: a process without a batch still has its zeros on the CPU
        confusion.counts = sum_over_processes(confusion.counts.to(device))
        boundary.class_sums = sum_over_processes(boundary.class_sums.to(device))
        boundary.image_sums = sum_over_processes(boundary.image_sums.to(device))
        per_image = sum_over_processes(per_image)  # each image's row is 0 in all processes but one
    confusion.counts = confusion.counts.cpu()
    seconds = time.perf_counter() - start
    seen = count_seen(model, dataset, indices)
    if progress and not is_interactive():
        line = f"{title}: {len(indices)} images in {seconds:.1f} s, mIoU {100 * confusion.miou():.2f} %"
        print(line, seen_caveat(seen, len(indices)), sep="\n" if seen else "")
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
            **({"data": dataset.digest()} if isinstance(dataset, SegmentationDataset) else {}),
            "images": len(indices),
            "images_in_split": len(dataset),
            **({"images_seen": seen} if metadata else {}),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "amp": amp or "float32",
            "scales": "+".join(f"{scale:g}" for scale in scales),
            "flip": flip,
            "window": f"{window[0]}x{window[1]} overlap {overlap:g}" if window else "whole image",
            "boundary_tolerance": "0.75 % of the diagonal",
        },
        seconds=seconds,
    )


def majority_baselines(dataset: SegmentationDataset, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Scores of two predictors that ignore the image, so that a network must do better: the "commonest class"
    everywhere, and the "commonest class at each position". They are fitted to the labels on which they are scored.

    Returns one row per predictor: baseline, class (None for positions), protocol, split, images, miou, pixel_accuracy.
    """
    protocol, classes = dataset.protocol, dataset.protocol.num_classes
    indices = evenly_spaced(len(dataset), limit)
    counts = torch.zeros(classes + 1, *protocol.size, dtype=torch.int32)  # (class, H, W); the last: ignored pixels
    for index in indices:
        label = dataset[index][1].long().clamp(max=classes)[None]  # (1, H, W)
        counts.scatter_add_(0, label, torch.ones_like(label, dtype=torch.int32))
    everywhere = int(counts[:classes].sum((1, 2)).argmax())
    position = counts[:classes].argmax(0).to(torch.uint8)  # (H, W)
    position[counts[:classes].amax(0) == 0] = everywhere  # positions without a label
    rows = []
    for name, named, guess in (
        ("commonest class", protocol.classes[everywhere], torch.full_like(position, everywhere)),
        ("commonest class at each position", None, position),
    ):
        matrix = ConfusionMatrix(classes, protocol.ignore_id)
        for index in indices:
            matrix.update(guess, dataset[index][1])
        row = {"baseline": name, "class": named, "protocol": protocol.name, "split": dataset.split}
        scores = {"miou": matrix.miou(), "pixel_accuracy": matrix.pixel_accuracy()}
        rows.append({**row, "images": len(indices), **scores})
    return rows


def require_classes(model: nn.Module, protocol: Protocol) -> None:
    """Raises ValueError if the model predicts other classes than the protocol's, by their number or recorded names."""
    number = getattr(model, "num_classes", protocol.num_classes)
    trained = getattr(model, "metadata", {}).get("protocol")
    with contextlib.suppress(KeyError):  # a protocol that is not known here: only the number can be compared
        names = get_protocol(trained).classes if trained else protocol.classes
        if number == protocol.num_classes and names != protocol.classes:
            raise ValueError(
                f"the model predicts {', '.join(names)} ({trained}), and {protocol.name} has "
                f"{', '.join(protocol.classes)}: evaluate it on data with its own classes"
            )
    if number != protocol.num_classes:
        raise ValueError(
            f"the model gives {number} classes, {protocol.name} has {protocol.num_classes}:"
            " give the dataset, or the protocol of the dataset, that it was trained on"
        )


def count_seen(model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int]) -> int:
    """Number of the chosen images of a dataset that the weights of `model` were trained on, as far as recorded."""
    if not isinstance(dataset, SegmentationDataset):
        return 0
    seen = names_seen(getattr(model, "metadata", {}), dataset)
    return sum(dataset.names[index] in seen for index in indices)


def seen_caveat(seen: int, images: int) -> str:
    """The sentence for a score or picture of `images` images of which `seen` were trained on; empty for none."""
    if not seen:
        return ""
    these = f"all {images} of these images" if seen == images else f"{seen} of these {images} images"
    these = "this image" if images == 1 else these
    return f"The network was trained on {these}, so the result says little about new images"


def is_interactive() -> bool:
    """Whether a progress bar would be seen: on a terminal, and in the kernel of a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(total: int, *, enabled: bool | None = None, **options: Any) -> Any:
    """A context manager that gives tqdm's bar with these options or, where none is shown or tqdm is not installed, an
    object with the same `update` and `write`. enabled: None for `is_interactive()`."""
    with contextlib.suppress(ImportError):
        if is_interactive() if enabled is None else enabled:
            from tqdm.auto import tqdm

            return tqdm(total=total, mininterval=0.5, file=sys.stdout, **options)
    return contextlib.nullcontext(SimpleNamespace(update=lambda count=1: None, write=partial(print, flush=True)))
