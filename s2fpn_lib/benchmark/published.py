"""How the published code runs inference and scores it: the baselines of the benchmarks, used for nothing else.

As the scripts of github.com/mohamedac29/S2-FPN do it; the README's "Coming from the published code" says what the
workbench does instead. The training step is in `published_step`, the loader in `published_loader`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data.dataset import FileDataset
from s2fpn_lib.data.transforms import PUBLISHED_SCALES
from s2fpn_lib.model import S2FPN
from s2fpn_lib.optim import warmup_poly

# MERGED published_loader: """Training samples the way the published code makes them: the baseline of the loader benchmark, used for nothing else.
#
# As the dataset classes of github.com/mohamedac29/S2-FPN have it: decode image and label on every access, resize the
# whole of both by the random scale, subtract the mean in float32, pad, cut the crop, go from HWC to CHW, flip.
# """
# MERGED published_step: """One training step the way the published code does it: the baseline of the training benchmark, used for nothing else.
#
# As train.py of github.com/mohamedac29/S2-FPN has it: contiguous layout, five logits maps resized to the label, one
# weighted cross-entropy each, PyTorch's plain Adam, a scheduler made anew in every step, and `loss.item()` after it.
# """


class PublishedInference:
    """`run(x)` -> logits (B, K, H, W), after four auxiliary heads and four more full-size interpolations that nobody
    reads, in contiguous layout with batch norms unfolded.

    grad: as published, forward passes record a graph for a backward pass that never comes; False spares it that.
    """

    def __init__(self, model: nn.Module, *, grad: bool = True) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
        self.grad = grad

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.set_grad_enabled(self.grad):
            logits, _ = self.model(x.contiguous(), aux=True)
        return logits.detach()


def eval_fps(run: Callable[[Tensor], Tensor], x: Tensor, *, warmup: int, calls: int) -> float:
    """Frames per second as eval_fps.py takes it: a fixed warm-up, then `calls` calls by the clock, their mean."""
    for _ in range(warmup):
        run(x)
    _wait(x)
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    _wait(x)
    return calls * len(x) / (time.perf_counter() - start)


def pixel_loop_matrix(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 confusion counts, rows = label, of (H, W) ids by the published metric's loop over pixels.

    Label ids from `num_classes` on are not scored.
    """
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for truth, guess in zip(label.flatten(), pred.flatten(), strict=True):
        if truth < num_classes:
            matrix[truth, guess] += 1
    return matrix


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


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


class PublishedStep:
    """`step(images, labels)` trains a contiguous copy of `model` on one batch and returns the loss.

    images: (B, 3, h, w) float32, as the published loader hands them over; labels: (B, h, w) int64. config: for the
    optimizer's and the schedule's numbers. total: steps of the run.
    """

    def __init__(
        self, model: S2FPN, config: TrainConfig, class_weights: Tensor | None, *, ignore_index: int, total: int
    ) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
        self.config, self.total, self.ignore_index = config, total, ignore_index
        self.class_weights = class_weights
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.done = 0
        self.losses: list[float] = []

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        logits, auxiliary = self.model(images, aux=True)  # all five at the label's size
        loss = sum(self._cross_entropy(each, labels) for each in (logits, *auxiliary))
        self.optimizer.zero_grad()
        loss.backward()
        scheduler = self._schedule()
        self.optimizer.step()
        scheduler.step()
        self.done += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, self.class_weights, ignore_index=self.ignore_index)

    def _schedule(self) -> LambdaLR:
        """Made again in every step, as published; the rate is the one of `schedule.warmup_poly_schedule`."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["initial_lr"] = config.lr

        def factor(step: int) -> float:
            return warmup_poly(
                step, total=self.total, warmup=config.warmup, start_factor=config.warmup_start, power=config.poly_power
            )

        return LambdaLR(self.optimizer, factor, last_epoch=self.done - 1)
