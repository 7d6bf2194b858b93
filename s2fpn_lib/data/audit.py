"""Checks a dataset against its protocol before a run starts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, SegmentationDataset

if TYPE_CHECKING:  # the core works without pandas; only the tables below need it
    import pandas as pd


@dataclass(frozen=True)
class AuditReport:
    """What :func:`check_dataset` found in one split.

    Attributes:
        sizes: (height, width) of each sample, None for one that cannot be read.
        counts: (len, 256) int64, pixels of each label value; zeros for a sample that cannot be read.
        errors: one line per broken file, each beginning with the file's path (or the sample's name if it has none).
    """

    dataset: SegmentationDataset
    sizes: list[tuple[int, int] | None]
    counts: np.ndarray
    errors: list[str]

    def raise_for_errors(self) -> AuditReport:
        """The report itself, or :class:`DatasetError` naming every broken file."""
        if self.errors:
            split = f"{self.dataset.name} {self.dataset.split}"
            raise DatasetError(f"{split} has {len(self.errors)} broken files; fix or remove them:", self.errors)
        return self

    def size_table(self) -> pd.DataFrame:
        """Samples of each size, with columns height, width, samples."""
        import pandas as pd

        sizes = pd.DataFrame([size for size in self.sizes if size], columns=["height", "width"])
        return sizes.value_counts().rename("samples").reset_index()

    def class_table(self) -> pd.DataFrame:
        """One row per label value: id, class, pixels, share of the labeled pixels, samples that show it."""
        import pandas as pd

        protocol, total = self.dataset.protocol, self.counts.sum(axis=0)
        names = dict(enumerate(protocol.classes)) | {protocol.ignore_id: "(ignored)"}
        ids = sorted(set(names) | set(np.flatnonzero(total).tolist()))
        table = pd.DataFrame({"id": ids, "class": [names.get(each, "(undeclared)") for each in ids]})
        pixels, labeled = total[ids], total[: protocol.num_classes].sum()
        shares = np.where(table["id"] < protocol.num_classes, pixels / max(1, labeled), np.nan)
        return table.assign(pixels=pixels, share=shares, samples=(self.counts[:, ids] > 0).sum(axis=0))

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted({size for size in self.sizes if size}))
        state = f"{len(self.errors)} errors" if self.errors else "no errors"
        return f"{self.dataset.name} {self.dataset.split}: {len(self.dataset)} samples, {sizes or 'no size'}, {state}"


def check_dataset(dataset: SegmentationDataset) -> AuditReport:
    """Read every sample once and compare it with the protocol.

    The report names missing or truncated files, images without a label and labels without an image, labels of another
    size than their image, and label values that are neither a class nor the ignored id. A cached dataset was read when
    its cache was built; nothing is decoded again.
    """
    protocol, errors = dataset.protocol, list(dataset.problems)
    sizes: list[tuple[int, int] | None] = []
    counts = np.zeros((len(dataset), 256), dtype=np.int64)

    def read(index: int) -> tuple[tuple[int, int], np.ndarray] | DatasetError:
        try:
            return dataset.label_summary(index)
        except DatasetError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for index, outcome in enumerate(pool.map(read, range(len(dataset)))):
            if isinstance(outcome, DatasetError):
                errors.append(str(outcome))
                sizes.append(None)
                continue
            size, counts[index] = outcome
            sizes.append(size)
            undeclared = [value for value in np.flatnonzero(counts[index]) if value not in protocol.label_ids]
            if undeclared:
                found = ", ".join(f"{value} ({counts[index, value]} px)" for value in undeclared[:5])
                declared = f"0..{protocol.num_classes - 1} and {protocol.ignore_id} (ignored)"
                errors.append(f"{dataset.label_source(index)}: label holds {found}; {protocol.name} has {declared}")
    return AuditReport(dataset, sizes, counts, errors)


def drive_overlap(*reports: AuditReport) -> pd.DataFrame:
    """Samples of each drive in each split; a drive in two splits makes the second one's score optimistic."""
    import pandas as pd

    datasets = [report.dataset for report in reports]
    columns = {data.split: pd.Series(data.drives, dtype=str).value_counts() for data in datasets}
    table = pd.DataFrame(columns).fillna(0).astype(int).sort_index().rename_axis("drive")
    return table.assign(shared=(table > 0).sum(axis=1) > 1)
