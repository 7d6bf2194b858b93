"""Packs CamVid without loss into zip files of a given size, for a machine that has no other way to get the data.

    python scripts/pack_data.py packed --data data --megabytes 30 --also encoder.pth
    python -m s2fpn_lib.benchmark.gpu --data packed

Images become lossless WebP, a third smaller than PNG; labels stay PNG files of class ids. The archives hold SegNet's
layout, so that unpacked into one folder they are a dataset like any other, with the same digest. Each file is read
again and compared. `--also` adds other files at the top of the last archive, such as the ImageNet weights of an
encoder, with which the training of `benchmark.gpu` starts.
"""

import argparse
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from s2fpn_lib.data import open_dataset
from s2fpn_lib.data.files import FileDataset


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="folder of the archives")
    parser.add_argument("--data", help="folder that holds camvid/; default: S2FPN_DATA, else data/")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="which splits to pack")
    parser.add_argument("--megabytes", type=float, default=1000.0, help="largest size of an archive")
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="further files")
    given = parser.parse_args(arguments)
    given.target.mkdir(parents=True, exist_ok=True)
    splits = [open_dataset("camvid", given.data, split, cache=False) for split in given.splits]
    entries = [entry for dataset in splits for entry in packed(dataset)]
    entries += [(path.name, path.read_bytes()) for path in given.also]
    for number, part in enumerate(parts(entries, given.megabytes * 1e6), start=1):
        path = given.target / f"camvid-{number}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # the files are compressed already
            for name, content in part:
                archive.writestr(name, content)
        print(f"{path}: {len(part)} files, {path.stat().st_size / 1e6:.1f} MB")


def packed(dataset: FileDataset) -> Iterator[tuple[str, bytes]]:
    """Name in the archive and content of each image and label. Raises RuntimeError if a file is not what it was."""
    for index, name in enumerate(dataset.names):
        image, label = dataset.arrays(index)
        split = dataset.split
        yield f"camvid/{split}/{name}.webp", encoded(image, "WEBP", lossless=True, quality=100, method=4)
        yield f"camvid/{split}annot/{name}.png", encoded(label, "PNG", optimize=True)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    if not np.array_equal(np.array(Image.open(file)), pixels):
        raise RuntimeError(f"{kind} changes pixels: another version of Pillow may not")
    return file.getvalue()


def parts(entries: list[tuple[str, bytes]], most: float) -> list[list[tuple[str, bytes]]]:
    """The entries in order, in as few groups of at most `most` bytes as that allows. A larger entry stands alone."""
    groups: list[list[tuple[str, bytes]]] = [[]]
    size = 0.0
    for name, content in entries:
        entry = len(content) + 2 * len(name) + 150  # the archive's own records
        if groups[-1] and size + entry > most:
            groups.append([])
            size = 0.0
        groups[-1].append((name, content))
        size += entry
    return groups


if __name__ == "__main__":
    main()
