"""Opening a dataset by name: where its files are, which split, which drives, and whether through the cache."""

import os
import re
import warnings
from pathlib import Path

from s2fpn_lib.data.cache import cached
from s2fpn_lib.data.camvid import CamVid, ExactCamVid, LargeCamVid, OriginalCamVid
from s2fpn_lib.data.custom import CustomDataset, is_description
from s2fpn_lib.data.dataset import DatasetNotFound, SegmentationDataset, Subset
from s2fpn_lib.data.files import Cityscapes, FileDataset
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.validate import did_you_mean

# in the order in which they are tried: SegNet's edition of CamVid before the original
READERS: dict[str, tuple[type[FileDataset], ...]] = {
    "camvid": (CamVid, OriginalCamVid),
    "camvid-11-720x960": (OriginalCamVid, LargeCamVid),
    "camvid-11exact-720x960": (ExactCamVid,),
    "cityscapes": (Cityscapes,),
}
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
PROJECT_DATA = Path(__file__).resolve().parents[2] / "data"


def open_dataset(
    name: str = "auto", root: str | Path | None = None, split: str = "train", *, cache: bool = True
) -> SegmentationDataset:
    """A dataset by name; DatasetNotFound if its files are missing, ValueError for an unknown name, split, or drive.

    Args:
        name: ``camvid``, ``cityscapes``, ``roadscenes`` (drawn, needs no files), the path of a YAML file that describes
            the user's own dataset (docs/own-data.md), or ``auto``: CamVid if found, else RoadScenes, with a warning if
            ``root`` or ``S2FPN_DATA`` names a folder or CamVid lacks the split.
        root: the folder that holds ``camvid/`` or ``cityscapes/``, or that folder itself. None: the environment
            variable ``S2FPN_DATA``, else the project's ``data/``. For a YAML file: the folder that its paths are
            relative to; None: its own.
        split: ``train``, ``val``, ``trainval``, or ``test``, with an optional choice of drives:
            ``trainval:drive=0006R0+0001TP`` keeps these, ``trainval:drive!=0016E5`` leaves this one out.
        cache: read through the cache (see :mod:`s2fpn_lib.data.cache`), made on first use.
    """
    part, _, choice = split.partition(":")
    if part not in SPLITS:
        raise ValueError(f"split={split!r}: unknown split {part!r}; choose one of {', '.join(SPLITS)}")
    base = Path(root or os.environ.get("S2FPN_DATA") or PROJECT_DATA).expanduser()
    if name == "auto":
        try:
            return open_dataset("camvid", base, split, cache=cache)
        except DatasetNotFound as missing:
            if base != PROJECT_DATA or any(reader.find(base) for reader in READERS["camvid"]):
                warnings.warn(f"RoadScenes is used instead of CamVid: {missing}", stacklevel=2)
            return open_dataset("roadscenes", None, split, cache=cache)
    if is_description(name):
        parts = [CustomDataset(name, each, root) for each in SPLITS[part]]
    else:
        parts = [_open_part(name, base, each) for each in SPLITS[part]]
    if cache:
        parts = [cached(dataset) for dataset in parts]
    if len(parts) == 1 and not choice:
        return parts[0]
    items = [(dataset, index) for dataset in parts for index in range(len(dataset))]
    if choice:
        kept = _chosen_drives(split, choice, {drive for dataset in parts for drive in dataset.drives})
        items = [(dataset, index) for dataset, index in items if dataset.drives[index] in kept]
    return Subset(items, split, like=parts[0])


def _chosen_drives(split: str, choice: str, known: set[str]) -> set[str]:
    """The drives that a choice such as ``drive=A+B`` or ``drive!=A`` keeps; ValueError where it is malformed."""
    if not re.fullmatch(r"drive!?=[^=]+(\+drive!?=[^=]+)*", choice):
        raise ValueError(f"split={split!r}: write the choice as drive=A, drive=A+B, or drive!=A")
    named: dict[str, set[str]] = {"=": set(), "!=": set()}
    for operator, drives in re.findall(r"drive(!?=)([^=]+?)(?=\+drive!?=|$)", choice):
        named[operator].update(drives.split("+"))
    unknown = sorted((named["="] | named["!="]) - known)
    kept = (named["="] or known) - named["!="]
    if unknown or not kept:
        problem = f"no drive {', '.join(unknown)}" if unknown else "the choice leaves no sample"
        raise ValueError(f"split={split!r}: {problem}; {split.partition(':')[0]} has {', '.join(sorted(known))}")
    return kept


def _open_part(name: str, base: Path, split: str) -> SegmentationDataset:
    if name == "roadscenes":
        return RoadScenes(split)
    if name not in READERS:
        known = ("auto", *READERS, "roadscenes")
        hint = did_you_mean(name, known)
        raise ValueError(
            f"dataset={name!r} is unknown; choose {', '.join(known)}, or the .yaml file of an own dataset.{hint}"
        )
    for reader in READERS[name]:
        if folder := reader.find(base):
            return reader(folder, split)
    folders, held = [base / each for each in reader.FOLDERS], []
    for folder in folders:
        inner = sorted(path for path in folder.glob("*") if path.is_dir())
        names = [f"{path.name}/ (files: {sum(1 for _ in path.iterdir())})" for path in inner[:8]]
        held += [f"{folder} holds {', '.join(names)}" + (", ..." if len(inner) > 8 else "")] if names else []
    found = f" Found: {'; '.join(held)}." if held else ""
    raise DatasetNotFound(f"{name} was not found; searched in {', '.join(map(str, folders))}.{found} {reader.HELP}")


def same_images(first: str, second: str) -> bool:
    """Whether two dataset names stand for the same images, as the editions of CamVid do."""
    return first == second or {first, second} <= {each for each in READERS if each.startswith("camvid")}
