"""A dataset of the user's own images and masks, described by a YAML file (docs/own-data.md has the fields)."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
from PIL import Image, ImageColor, ImageOps

from s2fpn_lib.data.cache import cached
from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound
from s2fpn_lib.data.files import FileDataset, Sample, inside, listed_lines
from s2fpn_lib.data.images import ImageError, ids_of_colors, read_label
from s2fpn_lib.data.protocols import PROTOCOLS, Protocol, register
from s2fpn_lib.model import NORMALIZATIONS
from s2fpn_lib.validate import as_declared, did_you_mean, read_yaml

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
IGNORE_ID = 255  # of the training ids, unless the description gives one
IGNORE = "ignore"  # in a label map, and as the value of `unknown`
SPLIT_HELP = (
    "give {images: folder, labels: folder} with an optional label_suffix, {list: file} with `image label` on each "
    "line, or, for one split other than train, {every: n} with n of at least 2, which takes every n-th pair of train"
)
RESERVED_NAMES = {"auto", "camvid", "cityscapes", "roadscenes", *PROTOCOLS}
RESERVED_CLASSES = {IGNORE, "picture", "source", "width", "height"}  # columns of areas.csv of 13_predict
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """The fields of the YAML file; docs/own-data.md explains them."""

    name: str
    classes: list[str] | dict[str, Color]
    size: tuple[int, int]
    splits: dict[str, dict[str, Any]]
    ignore: int | Color | None = None
    label_map: dict[int, str] = field(default_factory=dict)
    unknown: Literal["error", "ignore"] = "error"
    recording: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name) or self.name in RESERVED_NAMES:
            advice = "use lower-case letters, digits, - and _, and no name of a built-in dataset"
            raise ValueError(f"name {self.name!r}: {advice}")
        names = list(self.classes)
        if not 1 <= len(names) <= 253 or len(set(names)) < len(names) or RESERVED_CLASSES & set(names):
            reserved = ", ".join(sorted(RESERVED_CLASSES))
            raise ValueError(f"classes {names}: give 1 to 253 different names, and none of {reserved}")
        colors = [*self.classes.values(), self.ignore] if isinstance(self.classes, dict) else []
        if len(set(colors)) < len(colors) or not all(0 <= n <= 255 for color in self.colors() for n in color):
            raise ValueError(f"classes {self.classes}, ignore {self.ignore}: give each another color, of 0 to 255")
        if min(self.size) < 32:
            raise ValueError(f"size {list(self.size)}: give [height, width] of at least 32 pixels each")
        for value, name in self.label_map.items():
            if name not in (*names, IGNORE):
                hint = did_you_mean(name, (*names, IGNORE))
                raise ValueError(f"label_map gives {value} the class {name!r}, which `classes` does not name.{hint}")
        if isinstance(self.ignore, int) and self.ids().get(self.ignore, self.ignore_id) != self.ignore_id:
            meant = names[self.ids()[self.ignore]]
            raise ValueError(
                f"ignore is {self.ignore}, which is also the id of {meant}. Without a label_map, the ids are 0 to "
                f"{len(names) - 1} in the order of the classes; one such as {{1: {names[0]}, ...}} changes them"
            )

    @property
    def ignore_id(self) -> int:
        """The training id of ignored pixels: the given one where it is no training id of a class."""
        given = self.ignore if isinstance(self.ignore, int) else IGNORE_ID
        return given if len(self.classes) <= given <= 255 else IGNORE_ID

    def ids(self) -> dict[int, int]:
        """{value in a label file: training id}."""
        numbers = {name: number for number, name in enumerate(self.classes)} | {IGNORE: self.ignore_id}
        values = self.label_map or dict(enumerate(self.classes))
        return {value: numbers[name] for value, name in values.items()}

    def colors(self) -> dict[Color, int]:
        """{color in a label file: training id}; empty if the classes have no colors."""
        if not isinstance(self.classes, dict):
            return {}
        ignored = {self.ignore: self.ignore_id} if isinstance(self.ignore, tuple) else {}
        return ignored | {color: number for number, color in enumerate(self.classes.values())}

    def protocol(self, path: Path) -> Protocol:
        """The evaluation protocol. Its name ends in 4 hex digits of the label rules: other rules, other numbers."""
        rules = [list(self.classes), list(self.ids().items()), list(self.colors().items()), self.ignore, self.unknown]
        rules.append(bool(self.label_map))  # then label files hold ids, not colors
        mark = hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:4]
        # without colors: hues in steps of the golden ratio, neighbors far apart
        drawn = [f"hsv({n * 0.618034 % 1 * 360:.9f}, 65%, {(90, 65)[n % 2]}%)" for n in range(len(self.classes))]
        colors = self.classes.values() if isinstance(self.classes, dict) else map(ImageColor.getrgb, drawn)
        return Protocol(
            name=f"{self.name}-{self.size[0]}x{self.size[1]}-{mark}",
            dataset=self.name,
            size=self.size,
            classes=tuple(self.classes),
            palette=tuple(colors),
            ignore_id=self.ignore_id,
            mean_published=NORMALIZATIONS["imagenet"][0],
            source=self.source or f"described by {path.name}",
            ignore_color=self.ignore if isinstance(self.ignore, tuple) else (0, 0, 0),
        )


def is_description(name: str) -> bool:
    """Whether a dataset's name is the path of a YAML file."""
    return str(name).lower().endswith((".yaml", ".yml"))


def read_description(path: str | Path) -> Description:
    """The description in a YAML file; DatasetNotFound if there is none, DatasetError if it describes no dataset."""
    path = Path(path).expanduser()
    try:
        given = read_yaml(path)
    except FileNotFoundError:
        raise DatasetNotFound(f"{path}: there is no such file; docs/own-data.md shows how to write one") from None
    except ValueError as error:
        raise DatasetError(str(error)) from error
    declared = get_type_hints(Description)
    try:
        if not isinstance(given, dict):
            raise ValueError(f"it holds no fields; a dataset has {', '.join(declared)}")
        for name, value in given.items():
            if name not in declared:
                raise ValueError(f"unknown field {name!r}.{did_you_mean(name, declared)} Known: {', '.join(declared)}")
            try:
                given[name] = as_declared(value, declared[name])
            except TypeError as error:
                raise ValueError(f"{name} is {error} (put text such as yes, no, or 12 in quotes)") from None
        if missing := [each for each in ("name", "classes", "size", "splits") if each not in given]:
            raise ValueError(f"{', '.join(missing)} missing")
        described = Description(**given)
        described.protocol(path)  # raises for names and sizes that no protocol has
        return described
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


class CustomDataset(FileDataset):
    """One split of the dataset that a YAML file describes, resized to its `size`; a border that remains is ignored. The
    paths in the file are relative to `root`, by default the file's folder. Raises DatasetNotFound if the file, the
    split, its images, or its labels are missing, and DatasetError if the file describes no dataset."""

    RESIZED = True

    def __init__(self, path: str | Path, split: str, root: str | Path | None = None) -> None:
        self.path, self.split = Path(path).expanduser(), split
        self.root = Path(root).expanduser() if root else self.path.parent
        self.description = read_description(self.path)
        self.protocol = register(self.description.protocol(self.path))
        self.table = np.full(256, self.protocol.ignore_id if self.description.unknown == IGNORE else -1, dtype=np.int16)
        for value, number in {self.description.ignore: self.protocol.ignore_id, **self.description.ids()}.items():
            if isinstance(value, int):
                if not 0 <= value <= 255:
                    raise DatasetError(f"{self.path}: the id {value} does not fit into 8 bits (0 to 255)")
                self.table[value] = number
        named, problems = self._pairs(split)
        self.names, self.samples = list(named), list(named.values())
        self.problems = tuple(problems)
        pattern = self.description.recording
        try:
            found = [re.search(pattern, name) for name in self.names]
        except re.error as error:
            raise DatasetError(f"{self.path}: recording {pattern!r} is no pattern: {error}") from None
        if not all(found):
            missed = self.names[found.index(None)]
            raise DatasetError(f"{self.path}: recording {pattern!r} does not match {missed!r}")
        self.drives = [match[match.re.groups and 1] or name for match, name in zip(found, self.names, strict=True)]

    def read_label(self, path: Path) -> np.ndarray:
        colors = {} if self.description.label_map else self.description.colors()
        pixels = read_label(path, palette_as_colors=bool(colors))
        if pixels.ndim == 3 and not colors and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]  # ids, written three times
        if pixels.ndim == 3:
            if not colors:
                advice = "give `classes` as `name: [r, g, b]`, without a label_map"
                raise ImageError(f"{path}: a color image, but {self.path.name} maps ids to classes; {advice}")
            unknown = self.protocol.ignore_id if self.description.unknown == IGNORE else None
            return ids_of_colors(pixels, colors, path, self.protocol.classes, unknown)
        ids = self.table[pixels]
        for value in np.unique(pixels).tolist() if colors else ():
            if colors.get((value, value, value), self.table[value]) != self.table[value]:
                raise ImageError(
                    f"{path}: a gray image, and the gray {value} is both an id and a class color in {self.path.name}: "
                    "save it in RGB like the other labels, or give a label_map if the labels hold ids"
                )
        if (undeclared := pixels[ids < 0]).size:
            counts = np.bincount(undeclared)
            found = ", ".join(f"{value} ({counts[value]} pixels)" for value in np.flatnonzero(counts)[:5])
            value = int(undeclared[0])
            raise ImageError(
                f"{path}: holds the id {found}, which {self.path.name} does not name: add `{value}: <class>` or "
                f"`{value}: {IGNORE}` to its label_map, or set `unknown: {IGNORE}`"
            )
        return ids.astype(np.uint8)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = super().arrays(index)
        if label.shape == self.protocol.size:
            return image, label
        size, gray = self.protocol.size[::-1], tuple(map(round, self.protocol.mean_published))
        framed = ImageOps.pad(Image.fromarray(image), size, Image.Resampling.BILINEAR, color=gray)
        ids = ImageOps.pad(Image.fromarray(label), size, Image.Resampling.NEAREST, color=self.protocol.ignore_id)
        return np.asarray(framed), np.asarray(ids)

    def class_problems(self, occurring: Collection[int]) -> list[str]:
        absent = set(range(self.protocol.num_classes)) - set(occurring)
        for split in self.description.splits if absent else ():
            if split != self.split:
                other = cached(CustomDataset(self.path, split, self.root))
                for index in range(len(other)):
                    try:
                        absent -= set(np.flatnonzero(other.label_summary(index)[1]).tolist())
                    except DatasetError:
                        absent.clear()  # unknown: the audit of that split names the file
        names, splits = [self.protocol.classes[each] for each in sorted(absent)], ", ".join(self.description.splits)
        advice = "remove it from `classes`, or correct the label_map or the colors"
        return [f"{self.path}: no label of any split ({splits}) holds the class {name!r}: {advice}" for name in names]

    def _pairs(self, split: str) -> tuple[dict[str, Sample], list[str]]:
        """{name: image and label} of a split, and the problems found while pairing."""
        splits = self.description.splits
        if split not in splits:
            advice = f"add one under `splits`, such as `{split}: {{every: 5}}`, which takes every fifth pair of train"
            raise DatasetNotFound(f"{self.path} has no split {split!r}; it has {', '.join(splits)}: {advice}")
        held_out = {name: each["every"] for name, each in splits.items() if set(each) == {"every"}}
        given = splits["train"] if split in held_out and "train" in splits else splits[split]
        if set(given) == {"list"}:
            named, problems = self._from_list(inside(self.root, str(given["list"]), str(self.path)))
        elif {"images", "labels"} <= set(given) <= {"images", "labels", "label_suffix"}:
            folders = [inside(self.root, str(given[kind]), str(self.path)) for kind in ("images", "labels")]
            named, problems = self._from_folders(*folders, str(given.get("label_suffix", "")))
        else:
            raise DatasetError(f"{self.path}: the split {split!r} is {given}; {SPLIT_HELP}")
        if held_out and (split == "train" or split in held_out):
            (part, every), *others = held_out.items()
            if others or part == "train" or not isinstance(every, int) or every < 2:
                raise DatasetError(f"{self.path}: {SPLIT_HELP}; it is given as {held_out}")
            kept = [name for i, name in enumerate(named) if (i % every == 0) == (split == part)]
            named = {name: named[name] for name in kept}
        if not named:
            raise DatasetNotFound(f"{self.path}: no pair is left for the split {split!r}: {SPLIT_HELP}")
        return named, problems

    def _from_list(self, path: Path) -> tuple[dict[str, Sample], list[str]]:
        if not path.is_file():
            raise DatasetNotFound(f"{path}: the list of {self.path.name} cannot be read (no such file)")
        named: dict[str, Sample] = {}
        problems = []
        for place, line in listed_lines(path):
            words = re.split(r"\s*[\t,]\s*", line) if re.search(r"[\t,]", line) else line.split()
            if len(words) != 2:
                advice = "separate paths that contain spaces by a tab or a comma"
                raise DatasetError(f"{place}: expected `image label`, found {line[:80]!r}; {advice}")
            parts = Path(words[0]).with_suffix("").parts
            name = "/".join(part for part in parts if part not in ("..", "/"))  # a name never leaves its folder
            if name in named:
                problems.append(f"{place}: the image {words[0]} is listed twice")
            named[name] = Sample(*(inside(self.root, word, place) for word in words))
        if not named:
            raise DatasetNotFound(f"{path}: the list of {self.path.name} names no pair")
        return named, problems

    def _from_folders(self, images: Path, labels: Path, suffix: str) -> tuple[dict[str, Sample], list[str]]:
        """Pairs with the same path below the two folders, except for `suffix` and the kind of file."""
        of_label = _stems(labels, suffix)
        of_image = {path: stem for path, stem in _stems(images).items() if path not in of_label}
        problems = []
        for kind, folder, stems in (("images", images, of_image), ("labels", labels, of_label)):
            if not stems:
                ending = f" whose name ends in {suffix!r}" if suffix and kind == "labels" else ""
                state = f"holds no image file{ending}" if folder.is_dir() else "does not exist"
                raise DatasetNotFound(f"{folder}: the {kind} folder of {self.path} {state}")
            for stem, count in Counter(stems.values()).items():
                if count > 1:
                    problems.append(f"{folder / stem}: the name occurs {count} times, as different kinds of file")
        by_stem = {stem: path for path, stem in of_label.items()}
        ending = suffix + next(iter(of_label)).suffix
        named = {stem: Sample(path, by_stem.get(stem, labels / f"{stem}{ending}")) for path, stem in of_image.items()}
        problems += [f"{path}: label without an image in {images}" for s, path in by_stem.items() if s not in named]
        return named, problems


def _stems(folder: Path, suffix: str = "") -> dict[Path, str]:
    """{image file below the folder: its path in the folder without `suffix` and kind of file}, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    stems = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
    stems = {path: stem for path, stem in stems.items() if "/." not in f"/{stem}"}  # without hidden ones
    return {path: stem.removesuffix(suffix) for path, stem in stems.items() if stem.endswith(suffix)}
