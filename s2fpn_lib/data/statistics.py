"""Statistics of a dataset: the audit of its files and labels, class frequencies and weights, pixels of rare classes."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from s2fpn_lib.data.dataset import DatasetError, SegmentationDataset

SHOWN_ERRORS = 5  # of each kind

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AuditReport:
    """What :func:`check_dataset` found in one split."""

    dataset: SegmentationDataset
    sizes: list[tuple[int, int] | None]  # (height, width) of each sample, None for one that cannot be read
    counts: np.ndarray  # (len, 256) int64, pixels of each label value; zeros for a sample that cannot be read
    errors: list[str]  # one line per broken file, beginning with its path (or the sample's name if it has none)

    def raise_for_errors(self) -> AuditReport:
        """The report itself, or :class:`DatasetError` with the text of `explained`."""
        if self.errors:
            head = f"{self.dataset.name} {self.dataset.split} has {len(self.errors)} errors; fix or remove the files:"
            raise DatasetError("\n  ".join([head, *self.explained()]))
        return self

    def explained(self) -> list[str]:
        """The errors for a reader: of each kind and folder the number, five examples, and the likely cause if known."""
        lines = []
        for folder, errors in _by_kind_and_folder(self.errors):
            if len(errors) > SHOWN_ERRORS:
                lines.append(f"{len(errors)} errors of one kind in {folder}, for example:")
            lines += errors[:SHOWN_ERRORS]
            path, _, reason = errors[0].partition(": ")
            if reason == "file is missing" and (cause := _likely_cause(Path(path))):
                lines.append(f"Likely cause: {cause}")
        return lines

    def class_table(self) -> pd.DataFrame:
        """One row per label value: id, class, pixels, share of the labeled pixels, samples that show it."""
        import pandas as pd  # here, because the core works without it

        protocol, total = self.dataset.protocol, self.counts.sum(axis=0)
        names = dict(enumerate(protocol.classes)) | {protocol.ignore_id: "(ignored)"}
        ids = sorted(set(names) | set(np.flatnonzero(total).tolist()))
        table = pd.DataFrame({"id": ids, "class": [names.get(each, "(undeclared)") for each in ids]})
        pixels, labeled = total[ids], total[: protocol.num_classes].sum()
        shares = np.where(table["id"] < protocol.num_classes, pixels / max(1, labeled), np.nan)
        return table.assign(pixels=pixels, share=shares, samples=(self.counts[:, ids] > 0).sum(axis=0))

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted({size for size in self.sizes if size}))
        counted = f"{len(self.dataset)} samples, {sizes or 'no size'}, {len(self.errors) or 'no'} errors"
        return f"{self.dataset.name} {self.dataset.split}: {counted}"


def check_dataset(dataset: SegmentationDataset) -> AuditReport:
    """Read every sample once and compare it with the protocol: the report names missing or truncated files, images and
    labels without a partner or of another size, and label values that are neither a class nor the ignored id."""
    protocol, errors = dataset.protocol, list(dataset.problems)
    sizes, counts = [], np.zeros((len(dataset), 256), dtype=np.int64)

    def read(index: int) -> tuple[tuple[int, int] | None, np.ndarray | int, list[str]]:
        try:
            return *dataset.label_summary(index), []
        except DatasetError as error:
            return None, 0, [str(error)]

    with ThreadPoolExecutor() as pool:
        for index, (size, counts[index], unreadable) in enumerate(pool.map(read, range(len(dataset)))):
            sizes.append(size)
            errors += unreadable
            undeclared = np.setdiff1d(np.flatnonzero(counts[index]), protocol.label_ids)
            if undeclared.size:
                found = ", ".join(f"{value} ({counts[index, value]} px)" for value in undeclared[:5])
                declared = f"0..{protocol.num_classes - 1} and {protocol.ignore_id} (ignored)"
                errors.append(f"{dataset.label_source(index)}: label holds {found}; {protocol.name} has {declared}")
    if all(sizes):  # otherwise a class may be in a label that cannot be read
        if not counts[:, : protocol.num_classes].any():
            errors.append(_nothing_to_score(dataset))
        errors += dataset.class_problems(np.flatnonzero(counts.sum(axis=0)).tolist())
    return AuditReport(dataset, sizes, counts, errors)


def require_scored(dataset: SegmentationDataset) -> None:
    """Raises DatasetError if no pixel of the dataset carries a class; reads labels until it finds one that does."""
    classes = slice(dataset.protocol.num_classes)
    if not any(dataset.label_summary(index)[1][classes].any() for index in range(len(dataset))):
        raise DatasetError(_nothing_to_score(dataset))


def _nothing_to_score(dataset: SegmentationDataset) -> str:
    if dataset.name == "cityscapes" and dataset.split.startswith("test"):
        return (
            "cityscapes test: the labels of this split are not public, and all pixels of its label files are "
            "unlabeled. Evaluate on val. For a test score, predict the images with 13_predict and submit the files of "
            "its label_ids folder at https://www.cityscapes-dataset.com/submit/"
        )
    return (
        f"{dataset.name} {dataset.split}: all pixels of all labels are ignored, so nothing can be learned or scored; "
        f"compare the label files with the ids of {dataset.protocol.name}"
    )


def _by_kind_and_folder(errors: Iterable[str]) -> list[tuple[Path, list[str]]]:
    """The errors, which begin with a path, by kind and folder; the folders' parent for a kind in more than three."""
    kinds: dict[str, dict[Path, list[str]]] = defaultdict(lambda: defaultdict(list))
    for error in errors:
        path, _, reason = error.partition(": ")
        # without what differs between files: quoted text, names and paths of files, numbers, and details
        kind = re.sub(r"'[^']*'|\S*[/\\]\S*|\S+\.\w{3,4}\b|\d+", "#", reason)
        kinds[re.split(r"[(:;]", kind)[0]][Path(path).parent].append(error)
    groups = []
    for folders in kinds.values():
        if len(folders) > 3:
            folders = {Path(os.path.commonpath(folders)): [error for group in folders.values() for error in group]}
        groups += folders.items()
    return groups


def _likely_cause(missing: Path) -> str:
    """Why a file is missing, judged by what is in its place; empty where nothing there explains it."""
    existing = next((parent for parent in missing.parents if parent.is_dir()), None)
    if existing is None:
        return ""
    wanted = missing.relative_to(existing).parts[0]
    names = sorted(path.name for path in existing.iterdir())
    if alike := [name for name in names if name.lower() == wanted.lower()]:
        return f"{existing} holds {alike[0]}, not {wanted}; lists made on Windows often differ in upper and lower case"
    if re.fullmatch(r"[A-Za-z]:", wanted):
        return f"the list holds absolute Windows paths ({wanted}\\...); make them relative to {existing}"
    if windows := [name for name in names if "\\" in name]:
        return f"{existing} holds the file {windows[0]}: its archive was made on Windows; unpack it again with `7z x`"
    if wanted != missing.name:
        return f"there is no folder {existing / wanted}: unpack the archive that contains it, or correct the list"
    stem = re.sub(r"(_[A-Za-z]+)?\.\w+$", "", wanted)  # aachen_000000_000019_gtFine of ..._gtFine_labelTrainIds.png
    if alike := [name for name in names if re.match(re.escape(stem) + r"[._]", name)]:
        advice = "correct the list, or remove it: without one, files are found by their names"
        return f"{', '.join(alike[:4])} in the same folder: the list asks for another kind of file; {advice}"
    return ""


def drive_overlap(*reports: AuditReport) -> pd.DataFrame:
    """Samples of each drive in each split; a drive in two splits makes the second one's score optimistic."""
    import pandas as pd

    columns = {each.dataset.split: pd.Series(each.dataset.drives, dtype=str).value_counts() for each in reports}
    table = pd.DataFrame(columns).fillna(0).astype(int).sort_index().rename_axis("drive")
    return table.assign(shared=(table > 0).sum(axis=1) > 1)


def label_counts(dataset: SegmentationDataset) -> np.ndarray:
    """Pixels of each label value in each sample, (len, 256) int64; read from the cache where there is one."""
    return np.stack([dataset.label_summary(index)[1] for index in range(len(dataset))])


def class_pixels(dataset: SegmentationDataset) -> Tensor:
    """(K,) int64 number of pixels of each class over the dataset's labels; DatasetError for an undeclared id."""
    pixels = label_counts(dataset).sum(axis=0)
    if pixels.sum() > pixels[list(dataset.protocol.label_ids)].sum():
        check_dataset(dataset).raise_for_errors()
    return torch.from_numpy(pixels[: dataset.protocol.num_classes])


def class_weights_from(dataset: SegmentationDataset, constant: float = 1.10) -> Tensor:
    """(K,) float32 class weights 1 / ln(c + share), where share is the class's part of all labeled pixels (ENet).
    Raises ValueError if c is not above 1, a label holds an undeclared id, or no pixel is labeled."""
    if constant <= 1:
        raise ValueError(f"constant={constant}: the c of the class weights 1/ln(c + share) must be a number above 1")
    pixels = class_pixels(dataset)
    if not pixels.any():
        raise ValueError(f"no pixel of {dataset.name} {dataset.split} carries a class: class weights are undefined")
    share = pixels.double() / pixels.sum()
    return (1 / torch.log(constant + share)).float()


def rare_pixels(dataset: SegmentationDataset, share: float = 0.02) -> list[dict[int, np.ndarray]]:
    """For each sample ``{class id: (n, 2) rows and columns}`` of its rare classes, those with less than ``share`` of
    the labeled pixels; at most 64 pixels per class, evenly spaced in reading order."""
    pixels = class_pixels(dataset).numpy()
    rare = [each for each, count in enumerate(pixels) if 0 < count / pixels.sum() < share]
    found = []
    for index, counts in enumerate(label_counts(dataset)):
        present = [each for each in rare if counts[each]]
        label = dataset.arrays(index)[1] if present else None
        places = {each: np.argwhere(label == each) for each in present}  # (n, 2) per class
        steps = {each: np.linspace(0, len(places[each]) - 1, min(64, len(places[each]))) for each in present}
        found.append({each: places[each][steps[each].round().astype(np.int64)] for each in present})
    return found
