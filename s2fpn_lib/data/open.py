"""Opening a dataset by name: where its files are, which split, which drives, and whether through the cache."""

import os
import re
import warnings
from pathlib import Path
from types import ModuleType

from s2fpn_lib.data import camvid, cityscapes
from s2fpn_lib.data.cache import cached
from s2fpn_lib.data.dataset import DatasetNotFound, SegmentationDataset, Subset
from s2fpn_lib.validate import did_you_mean

READERS = {"camvid": camvid, "cityscapes": cityscapes}
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
PROJECT_DATA = Path(__file__).resolve().parents[2] / "data"


def open_dataset(
    name: str = "auto", root: str | Path | None = None, split: str = "train", *, cache: bool = True
) -> SegmentationDataset:
    """A dataset by name.

    Args:
        name: ``camvid``, ``cityscapes``, ``roadscenes`` (drawn, needs no files), or ``auto``: CamVid where its split is
            found, else RoadScenes, with a warning where ``root`` or ``S2FPN_DATA`` names a folder or CamVid lacks the
            split.
        root: the folder that holds ``camvid/`` or ``cityscapes/``, or that folder itself. None: the environment
            variable ``S2FPN_DATA``, else the project's ``data/``.
        split: ``train``, ``val``, ``trainval``, or ``test``, with an optional choice of drives:
            ``trainval:drive=0006R0+0001TP`` keeps these, ``trainval:drive!=0016E5`` leaves this one out.
        cache: read through the memory-mapped cache (see :mod:`s2fpn_lib.data.cache`), made on first use.

    Raises:
        DatasetNotFound: the files are missing; the message says where they were searched for and how to get them.
        ValueError: an unknown name, split, or drive.
    """
    part, _, choice = split.partition(":")
    if part not in SPLITS:
        raise ValueError(f"split={split!r}: unknown split {part!r}; choose one of {', '.join(SPLITS)}")
    if name == "auto":
        try:
            return open_dataset("camvid", root, split, cache=cache)
        except DatasetNotFound as missing:
            base = _data_root(root)
            if base != PROJECT_DATA or _find(camvid, base):
                warnings.warn(f"RoadScenes is used instead of CamVid: {missing}", stacklevel=2)
            return open_dataset("roadscenes", None, split, cache=cache)
    parts = [_open_part(name, root, each) for each in SPLITS[part]]
    if cache:
        parts = [cached(dataset) for dataset in parts]
    if len(parts) == 1 and not choice:
        return parts[0]
    items = [(dataset, index) for dataset in parts for index in range(len(dataset))]
    if choice:
        drives = [dataset.drives[index] for dataset, index in items]
        kept = _chosen_drives(split, choice, set(drives))
        items = [item for item, drive in zip(items, drives, strict=True) if drive in kept]
    return Subset(items, split, like=parts[0])


def _chosen_drives(split: str, choice: str, known: set[str]) -> set[str]:
    """The drives that a choice such as ``drive=A+B`` or ``drive!=A`` keeps; ValueError where it is malformed."""
    named: dict[str, set[str]] = {"=": set(), "!=": set()}
    operator = None
    for term in choice.split("+"):
        found = re.fullmatch(r"(?:drive(!?=))?([^=]+)", term)
        operator = found and (found[1] or operator)
        if not operator:
            raise ValueError(f"split={split!r}: write the choice as drive=A, drive=A+B, or drive!=A")
        named[operator].add(found[2])
    unknown = sorted((named["="] | named["!="]) - known)
    kept = (named["="] or known) - named["!="]
    existing = f"{split.partition(':')[0]} has {', '.join(sorted(known))}"
    if unknown:
        raise ValueError(f"split={split!r}: no drive {', '.join(unknown)}; {existing}")
    if not kept:
        raise ValueError(f"split={split!r} leaves no sample; {existing}")
    return kept


def _open_part(name: str, root: str | Path | None, split: str) -> SegmentationDataset:
    if name == "roadscenes":
        from s2fpn_lib.data.roadscenes.dataset import RoadScenes

        return RoadScenes(split)
    if name not in READERS:
        known = ("auto", *READERS, "roadscenes")
        raise ValueError(f"dataset={name!r} is unknown; choose one of {', '.join(known)}.{did_you_mean(name, known)}")
    reader, base = READERS[name], _data_root(root)
    folder = _find(reader, base)
    if folder is None:
        searched = ", ".join(str(base / each) for each in reader.FOLDERS)
        raise DatasetNotFound(f"{name} was not found; searched in {searched}. {reader.HELP}")
    return reader.open_split(folder, split)


def _find(reader: ModuleType, base: Path) -> Path | None:
    """The first of a reader's usual folders below ``base`` that holds its dataset."""
    return next((base / folder for folder in reader.FOLDERS if reader.is_here(base / folder)), None)


def _data_root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("S2FPN_DATA") or PROJECT_DATA).expanduser()
