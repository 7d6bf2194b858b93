"""Finding a dataset by name: where it lies, which split, which drives, and whether through the cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from s2fpn_lib.data import camvid, cityscapes
from s2fpn_lib.data.cache import cached
from s2fpn_lib.data.dataset import DatasetNotFound, SegmentationDataset, Subset

DATASETS = ("camvid", "cityscapes", "roadscenes")
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
PROJECT_DATA = Path(__file__).resolve().parents[2] / "data"


def open_dataset(
    name: str = "auto", root: str | Path | None = None, split: str = "train", *, cache: bool = True
) -> SegmentationDataset:
    """A dataset by name.

    Args:
        name: ``camvid``, ``cityscapes``, ``roadscenes`` (drawn, needs no files), or ``auto``: CamVid where its split is
            found, else RoadScenes, with a warning where ``root`` or ``S2FPN_DATA`` named a place or CamVid lacks the
            split.
        root: the folder that holds ``camvid/`` or ``cityscapes/``, or that folder itself. None: the environment
            variable ``S2FPN_DATA``, else the project's ``data/``.
        split: ``train``, ``val``, ``trainval`` or ``test``, with an optional choice of drives:
            ``trainval:drive=0006R0+0001TP`` keeps these, ``trainval:drive!=0016E5`` leaves this one out.
        cache: read through the memory-mapped cache (see :mod:`s2fpn_lib.data.cache`), made on first use.

    Raises:
        DatasetNotFound: no such files; the message says where it looked and what to do.
        ValueError: an unknown name, split or drive.
    """
    part, keep = parse_split(split)
    if name == "auto":
        try:
            return open_dataset("camvid", root, split, cache=cache)
        except DatasetNotFound as missing:
            base = data_root(root)
            if base != PROJECT_DATA or camvid.find_camvid(base):  # somebody meant to have CamVid
                warnings.warn(f"The built-in RoadScenes stand in for CamVid: {missing}", stacklevel=2)
            return open_dataset("roadscenes", None, split, cache=cache)
    parts = [_open_part(name, root, each) for each in SPLITS[part]]
    if cache:
        parts = [cached(dataset) for dataset in parts]
    if len(parts) == 1 and keep is None:
        return parts[0]
    items = [(dataset, index) for dataset in parts for index in range(len(dataset))]
    if keep is not None:
        drives = [dataset.drives[index] for dataset, index in items]
        items = [item for item, kept in zip(items, keep(drives), strict=True) if kept]
    return Subset(items, split, like=parts[0])


def parse_split(split: str) -> tuple[str, Callable[[list[str]], list[bool]] | None]:
    """``trainval:drive!=A+B`` -> (``trainval``, which samples to keep given their drives); None keeps all."""
    part, _, choice = split.partition(":")
    if part not in SPLITS:
        raise ValueError(f"split={split!r}: unknown split {part!r}; choose one of {', '.join(SPLITS)}")
    if not choice:
        return part, None
    wanted: set[str] = set()
    unwanted: set[str] = set()
    target = None
    for term in choice.split("+"):
        if term.startswith("drive!="):
            target, term = unwanted, term.removeprefix("drive!=")
        elif term.startswith("drive="):
            target, term = wanted, term.removeprefix("drive=")
        if target is None or not term or "=" in term:
            raise ValueError(f"split={split!r}: write the choice as drive=A, drive=A+B or drive!=A")
        target.add(term)

    def keep(drives: list[str]) -> list[bool]:
        known = sorted(set(drives))
        foreign = sorted((wanted | unwanted) - set(known))
        if foreign:
            raise ValueError(f"split={split!r}: no drive {', '.join(foreign)}; {part} has {', '.join(known)}")
        kept = [(not wanted or drive in wanted) and drive not in unwanted for drive in drives]
        if not any(kept):
            raise ValueError(f"split={split!r} leaves no sample; {part} has {', '.join(known)}")
        return kept

    return part, keep


def _open_part(name: str, root: str | Path | None, split: str) -> SegmentationDataset:
    if name == "roadscenes":
        from s2fpn_lib.data.roadscenes.dataset import RoadScenes

        return RoadScenes(split)
    if name not in DATASETS:
        raise ValueError(f"dataset={name!r} is unknown; choose one of auto, {', '.join(DATASETS)}")
    find, opener, module = {
        "camvid": (camvid.find_camvid, camvid.open_camvid, camvid),
        "cityscapes": (cityscapes.find_cityscapes, cityscapes.open_cityscapes, cityscapes),
    }[name]
    base = data_root(root)
    folder = find(base)
    if folder is None:
        looked = ", ".join(str(base / each) for each in module.FOLDERS)
        raise DatasetNotFound(f"{name} was not found; looked in {looked}. {module.HELP}")
    return opener(folder, split)


def data_root(root: str | Path | None = None) -> Path:
    """Where datasets are looked for: ``root``, else the environment variable S2FPN_DATA, else the project's data/."""
    return Path(root or os.environ.get("S2FPN_DATA") or PROJECT_DATA).expanduser()
