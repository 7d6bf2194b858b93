"""Is this dataset what its protocol says? Asked before a run starts: a broken file costs minutes, not a night."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from s2fpn_lib.data.cache import CachedDataset
from s2fpn_lib.data.dataset import DatasetError, FileDataset, SegmentationDataset, Subset, read_arrays
from s2fpn_lib.data.protocols import Protocol


@dataclass(frozen=True)
class AuditReport:
    """What :func:`check_dataset` found in one split.

    Attributes:
        names, drives: of all samples, as in the dataset.
        sizes: (height, width) of every sample that can be read, None of the others.
        counts: (len, 256) int64, pixels of each label value; zeros for a sample that cannot be read.
        errors: one line a broken file, each beginning with the file's path (or the sample's name where there is none).
    """

    name: str
    protocol: Protocol
    split: str
    names: tuple[str, ...]
    drives: tuple[str, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    counts: np.ndarray
    errors: tuple[str, ...]

    def raise_for_errors(self) -> AuditReport:
        """The report itself, or :class:`DatasetError` naming every broken file."""
        if self.errors:
            raise DatasetError(
                f"{self.name} {self.split} has {len(self.errors)} broken files; mend or remove them:", self.errors
            )
        return self

    def size_table(self) -> pd.DataFrame:
        """Samples of each size, with columns height, width, samples."""
        sizes = pd.DataFrame([size for size in self.sizes if size], columns=["height", "width"])
        return sizes.value_counts().rename("samples").reset_index()

    def class_table(self) -> pd.DataFrame:
        """One row a label value: id, class, pixels, share of the labelled pixels, samples that show it."""
        total = self.counts.sum(axis=0)
        known = dict(enumerate(self.protocol.classes)) | {self.protocol.ignore_id: "(ignored)"}
        ids = sorted(set(known) | set(np.flatnonzero(total).tolist()))
        labeled = max(1, total[: self.protocol.num_classes].sum())
        return pd.DataFrame(
            {
                "id": ids,
                "class": [known.get(each, "(foreign)") for each in ids],
                "pixels": total[ids],
                "share": [total[each] / labeled if each < self.protocol.num_classes else np.nan for each in ids],
                "samples": (self.counts[:, ids] > 0).sum(axis=0),
            }
        )

    def drive_table(self) -> pd.DataFrame:
        """Samples of each drive, with columns drive, samples."""
        return pd.Series(self.drives, name="drive").value_counts(sort=False).rename("samples").reset_index()

    def __str__(self) -> str:
        sizes = ", ".join(f"{row.height}x{row.width}" for row in self.size_table().itertuples())
        state = f"{len(self.errors)} errors" if self.errors else "no errors"
        return f"{self.name} {self.split}: {len(self.names)} samples, {sizes or 'no size'}, {state}"


def check_dataset(dataset: SegmentationDataset) -> AuditReport:
    """Read every sample once and hold it against the protocol.

    Found are: a missing or truncated file, an image without a label and the other way round, a label of another size
    than its image, a label value that is neither a class nor the ignored id. A dataset that came through the cache was
    read, and counted, when the cache was built; nothing is decoded again.
    """
    errors = list(dataset.problems)
    sizes: list[tuple[int, int] | None] = []
    counts = np.zeros((len(dataset), 256), dtype=np.int64)
    allowed = np.zeros(256, dtype=bool)
    allowed[list(dataset.protocol.label_ids)] = True
    for index, outcome in enumerate(_outcomes(dataset)):
        if isinstance(outcome, str):
            errors.append(outcome)
            sizes.append(None)
            continue
        size, counts[index] = outcome
        sizes.append(size)
        foreign = np.flatnonzero((counts[index] > 0) & ~allowed)
        if len(foreign):
            shown = ", ".join(f"{value} ({counts[index, value]} px)" for value in foreign[:5])
            last = dataset.protocol.num_classes - 1
            expected = f"0..{last} and {dataset.protocol.ignore_id} (ignored)"
            errors.append(f"{_label_path(dataset, index)}: label holds {shown}; {dataset.protocol.name} has {expected}")
    return AuditReport(
        dataset.name,
        dataset.protocol,
        dataset.split,
        tuple(dataset.names),
        tuple(dataset.drives),
        tuple(sizes),
        counts,
        tuple(errors),
    )


def drive_overlap(*reports: AuditReport) -> pd.DataFrame:
    """Samples of each drive in each split; a drive in two splits makes the second one's score optimistic."""
    columns = {report.split: pd.Series(report.drives, dtype=str).value_counts() for report in reports}
    table = pd.DataFrame(columns).fillna(0).astype(int).sort_index().rename_axis("drive")
    return table.assign(shared=(table > 0).sum(axis=1) > 1)


def _outcomes(dataset: SegmentationDataset) -> Iterator[tuple[tuple[int, int], np.ndarray] | str]:
    """(size, label counts) of every sample, or what is wrong with it; from the cache where there is one."""
    stored: dict[int, tuple[list[tuple[int, int]], np.ndarray]] = {}

    def read(index: int) -> tuple[tuple[int, int], np.ndarray] | str:
        part, inner = _resolve(dataset, index)
        if isinstance(part, CachedDataset):
            sizes, counts = stored[id(part)]
            return sizes[inner], counts[inner]
        try:
            _, label = read_arrays(part, inner)
        except DatasetError as error:
            return str(error)
        return label.shape, np.bincount(label.reshape(-1), minlength=256)  # (H, W) -> (H * W,)

    for part in dataset.parts if isinstance(dataset, Subset) else [dataset]:
        if isinstance(part, CachedDataset):
            stored[id(part)] = (part.sizes(), part.label_counts())
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(read, range(len(dataset)))


def _resolve(dataset: SegmentationDataset, index: int) -> tuple[SegmentationDataset, int]:
    return dataset.items[index] if isinstance(dataset, Subset) else (dataset, index)


def _label_path(dataset: SegmentationDataset, index: int) -> str:
    part, inner = _resolve(dataset, index)
    source = part.source if isinstance(part, CachedDataset) else part
    return str(source.samples[inner].label) if isinstance(source, FileDataset) else dataset.names[index]
