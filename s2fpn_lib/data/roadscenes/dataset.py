"""RoadScenes: a synthetic road-scene dataset with the eleven classes of CamVid.

A scene depends only on its seed and size. They determine the family (town, suburb, ...), the weather, the camera, the
road, and everything along the road, painted from far to near in true perspective
(:mod:`s2fpn_lib.data.roadscenes.draw`). Colors overlap between classes on purpose: gray walls beside gray asphalt,
white sky above white walls. A see-through fence is labeled as a whole, as in CamVid.
"""

import hashlib
import zlib

import numpy as np

from s2fpn_lib.data.dataset import SegmentationDataset
from s2fpn_lib.data.protocols import get_protocol
from s2fpn_lib.data.roadscenes.families import FAMILIES, HELD_OUT, family_of
from s2fpn_lib.data.roadscenes.layout import compose
from s2fpn_lib.data.roadscenes.objects import UNLABELED

GENERATOR_VERSION = 1  # to be raised with any change of the images; part of the cache key

SIZE = (240, 320)
COUNTS = {"train": 400, "val": 100, "test": 150}
_FIRST_SEED = {"train": 0, "val": 300_000, "test": 600_000}
_SEEDS_PER_SPLIT = 300_000


def render_scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One scene: `(image (H, W, 3) RGB, label (H, W))`, both uint8; the same bytes on every machine.

    Raises:
        ValueError: a negative seed, or a size below 32 pixels per side.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: scene seeds start at 0")
    if min(size) < 32:
        raise ValueError(f"size={tuple(size)}: a scene needs at least 32 pixels per side (height, width)")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([20220614, seed])))
    canvas, lens = compose(rng, family_of(seed), size)
    image, label = canvas.render()
    if lens.hood:
        _paint_hood(image, label, lens.hood, lens.hood_color)
    return _through_lens(image, lens, rng), label


def _paint_hood(image: np.ndarray, label: np.ndarray, height: float, color: tuple[float, float, float]) -> None:
    """Paint the hood of the camera's car, an unlabeled arc of relative height `height` at the bottom edge."""
    _, h, w = image.shape
    x = (np.arange(w, dtype=np.float32) + 0.5) / w * 2 - 1
    edge = h - h * np.float32(height) * (1 - np.float32(0.55) * x * x)
    below = np.arange(h, dtype=np.float32)[:, None] - edge  # (H, W) pixels below the edge of the hood
    cover = np.clip(below + 0.5, 0, 1)
    shine = np.clip(1 - below / (np.float32(height) * h) * np.float32(0.9), np.float32(0.25), 1)
    for channel in range(3):
        image[channel] += cover * (np.float32(color[channel]) * shine - image[channel])
    label[below > 0] = UNLABELED


def _through_lens(image: np.ndarray, lens, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, contrast, vignette, blur, and sensor noise: (3, H, W) float32 -> (H, W, 3) uint8."""
    _, h, w = image.shape
    y = (np.arange(h, dtype=np.float32) / h * 2 - 1)[:, None]
    x = (np.arange(w, dtype=np.float32) / w * 2 - 1)[None, :]
    vignette = 1 - np.float32(lens.vignette) * (x * x + y * y)
    noise = rng.integers(-128, 128, size=(h + 16, w + 16), dtype=np.int8).astype(np.float32) * np.float32(
        lens.noise / 128
    )
    result = np.empty((h, w, 3), dtype=np.uint8)
    for channel in range(3):
        plane = image[channel] * (vignette * np.float32(lens.gain[channel]))
        soft = plane.copy()  # the lens: a 1-2-1 blur along each axis, mixed in
        soft[:, 1:-1] = plane[:, 1:-1] * np.float32(0.5) + (plane[:, :-2] + plane[:, 2:]) * np.float32(0.25)
        soft[1:-1] = soft[1:-1] * np.float32(0.5) + (soft[:-2] + soft[2:]) * np.float32(0.25)
        plane += np.float32(lens.blur) * (soft - plane)
        plane = np.clip(plane * np.float32(1 / 255), 0, np.float32(1.6))
        plane = plane * (1 + np.float32(lens.shoulder)) / (1 + np.float32(lens.shoulder) * plane)  # soft highlights
        plane += np.float32(lens.contrast) * (plane - np.float32(0.5))
        plane = plane * 255 + noise[5 * channel : 5 * channel + h, 3 * channel : 3 * channel + w]
        result[..., channel] = np.clip(plane + np.float32(0.5), 0, 255).astype(np.uint8)
    return result


class RoadScenes(SegmentationDataset):
    """Synthetic road scenes as a dataset.

    Args:
        split: ``train``, ``val``, ``trainval`` (both) or ``test``. Splits have disjoint seeds. Train and val share
            five scene families in equal parts; every tenth test scene comes from a family that no other split has.
        size: (height, width) of image and label.
        count: number of scenes; None: 400, 100, 500 and 150. For ``trainval`` four fifths are training scenes.
    """

    name = "roadscenes"

    def __init__(self, split: str = "train", size: tuple[int, int] = SIZE, count: int | None = None) -> None:
        if split not in (*COUNTS, "trainval"):
            raise ValueError(f"split={split!r}: choose one of train, val, trainval, test")
        if count is not None and not 0 < count <= _SEEDS_PER_SPLIT // 2:
            raise ValueError(f"count={count}: choose 1 to {_SEEDS_PER_SPLIT // 2} scenes, or None for the default")
        self.split, self.size = split, (int(size[0]), int(size[1]))
        self.protocol = get_protocol("roadscenes")
        if split == "trainval":
            train = COUNTS["train"] if count is None else count - count // 5
            val = COUNTS["val"] if count is None else count // 5
            self.seeds = _seeds("train", train) + _seeds("val", val)
        else:
            self.seeds = _seeds(split, COUNTS[split] if count is None else count)
        self.drives = [family_of(seed) for seed in self.seeds]
        self.names = [f"{family}_{seed:06d}" for family, seed in zip(self.drives, self.seeds, strict=True)]

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return render_scene(self.seeds[index], self.size)

    def fingerprint(self, index: int) -> tuple[int, int, int]:
        """Height, width, and a number for the scene, which stands for its pixels: nothing is drawn for it."""
        return *self.size, zlib.crc32(f"roadscenes-v{GENERATOR_VERSION}-{self.seeds[index]}".encode())

    def cache_key(self) -> str:
        """Identifies the content: generator version, size, and scenes."""
        scenes = hashlib.sha256(",".join(map(str, self.seeds)).encode()).hexdigest()[:12]
        h, w = self.size
        return f"roadscenes-v{GENERATOR_VERSION}-{self.split}-{h}x{w}-{len(self)}-{scenes}"


def _seeds(split: str, count: int) -> list[int]:
    """The first `count` seeds of a split: families in turn; every tenth test scene is of the held-out family."""
    common = [residue for residue, family in enumerate(FAMILIES) if family != HELD_OUT]
    held_out = FAMILIES.index(HELD_OUT)
    seeds = []
    for index in range(count):
        row, column = divmod(index, len(common))
        unseen = split == "test" and index % 10 == 9
        residue = held_out if unseen else common[column]
        seeds.append(_FIRST_SEED[split] + row * len(FAMILIES) + residue)
    return seeds
