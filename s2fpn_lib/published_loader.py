"""Training samples the way the published code makes them: the baseline of the loader benchmark, used for nothing else.

As the dataset classes of github.com/mohamedac29/S2-FPN have it: decode image and label on every access, resize the
whole of both by the random scale, subtract the mean in float32, pad, cut the crop, go from HWC to CHW, flip.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from s2fpn_lib.data.augment import PUBLISHED_SCALES
from s2fpn_lib.data.dataset import FileDataset


class PublishedDataset(Dataset):
    """`dataset[i]` -> (image (3, h, w) float32, label (h, w) int64), randomly scaled, cut and flipped.

    files: `open_dataset(..., cache=False)`. crop: (h, w). The published code resizes by OpenCV; torch's kernel for
    uint8, which the workbench's loader uses, stands in for it.
    """

    def __init__(self, files: FileDataset, crop: tuple[int, int], seed: int = 0) -> None:
        self.files, self.crop = files, crop
        self.mean = np.asarray(files.protocol.mean_published, np.float32)
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.files.samples[index]
        image = np.array(Image.open(sample.image).convert("RGB"))  # (H, W, 3)
        label = self.files.decode_label(np.array(Image.open(sample.label)))
        image, label = self._scaled(image, label, self.rng.choice(PUBLISHED_SCALES))
        image = image.astype(np.float32) - self.mean
        image, label = self._padded(image, label)
        (height, width), (rows, columns) = self.crop, label.shape
        top, left = self.rng.integers(rows - height + 1), self.rng.integers(columns - width + 1)
        image = image[top : top + height, left : left + width].transpose(2, 0, 1)  # (h, w, 3) -> (3, h, w)
        label = label[top : top + height, left : left + width]
        step = self.rng.choice((-1, 1))
        return torch.from_numpy(image[:, :, ::step].copy()), torch.from_numpy(label[:, ::step].astype(np.int64))

    @staticmethod
    def _scaled(image: np.ndarray, label: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
        size = [round(scale * side) for side in label.shape]
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]  # (H, W, 3) -> (1, 3, H, W)
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        nearest = Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST)
        return pixels[0].permute(1, 2, 0).numpy(), np.array(nearest)

    def _padded(self, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Zeros (the mean colour) and ignored pixels at the bottom and the right, up to the crop's size."""
        missing = [max(0, wanted - side) for wanted, side in zip(self.crop, label.shape, strict=True)]
        if any(missing):
            edges = [(0, side) for side in missing]
            image = np.pad(image, [*edges, (0, 0)])
            label = np.pad(label, edges, constant_values=self.files.protocol.ignore_id)
        return image, label
