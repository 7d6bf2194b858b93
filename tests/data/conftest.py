"""Small dataset trees in SegNet's and Cityscapes' layout, and a cache folder that only the test sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.data.camvid import CamVid


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("S2FPN_CACHE", str(folder))
    return folder


def _write_pair(image: Path, label: Path, seed: int, size: tuple[int, int] = (24, 32)) -> None:
    """A random image and a label of class ids 0..11, as PNG."""
    rng = np.random.default_rng(seed)
    image.parent.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    Image.fromarray(rng.integers(0, 12, size, dtype=np.uint8)).save(label)


@pytest.fixture
def write_pair():
    return _write_pair


@pytest.fixture
def camvid_of_size(monkeypatch) -> Callable[[int, int], None]:
    """Makes another size that of SegNet's edition, so that a test can do with small files."""
    return lambda *size: monkeypatch.setattr(CamVid, "protocol", replace(CamVid.protocol, size=size))


@pytest.fixture
def camvid_tree(tmp_path, camvid_of_size) -> Path:
    """CamVid with 6 train, 3 val and 2 test pairs of 24x32 pixels, no list files; returns the folder above camvid/."""
    names = {
        "train": ("0001TP_000001", "0001TP_000002", "0006R0_000001", "0006R0_000002", "0016E5_000001", "0016E5_000002"),
        "val": ("0016E5_000003", "0016E5_000004", "0016E5_000005"),
        "test": ("0001TP_000009", "Seq05VD_f00000"),
    }
    camvid_of_size(24, 32)
    root = tmp_path / "data"
    for split, stems in names.items():
        for seed, stem in enumerate(stems):
            folder = root / "camvid"
            _write_pair(folder / split / f"{stem}.png", folder / f"{split}annot" / f"{stem}.png", seed)
    return root
