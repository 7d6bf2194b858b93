"""The published implementation of inference, loader, and training step: the reference of the benchmarks.

Each part does what the scripts of github.com/mohamedac29/S2-FPN do. Inference (eval_fps.py): contiguous layout, four
auxiliary heads whose logits nobody reads, and a recorded graph. Loader: decodes image and label at each access,
resizes both whole by the random scale, subtracts the mean in float32, pads, crops, transposes, and flips. Training
step (train.py): contiguous layout, five logits maps at the label's size with a weighted cross-entropy each, plain
Adam, a new scheduler and `loss.item()` in each step.
"""

import copy
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data.files import FileDataset
from s2fpn_lib.data.transforms import PUBLISHED_SCALES
from s2fpn_lib.model import S2FPN
from s2fpn_lib.optim import warmup_poly


class PublishedInference:
    """`run(x)` -> logits (B, K, H, W), with the auxiliary heads and, with `grad`, a recorded graph."""

    def __init__(self, model: nn.Module, *, grad: bool = True) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
        self.grad = grad

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.set_grad_enabled(self.grad):
            logits, _ = self.model(x.contiguous(), aux=True)
        return logits.detach()


def eval_fps(run: Callable[[Tensor], Tensor], x: Tensor, *, warmup: int, calls: int) -> float:
    """Frames per second as eval_fps.py measures them: a fixed warm-up, then the mean of `calls` calls by the clock."""
    for count in (warmup, calls):
        start = time.perf_counter()
        for _ in range(count):
            run(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
    return calls * len(x) / (time.perf_counter() - start)


class PublishedDataset(torch.utils.data.Dataset):
    """`dataset[i]` -> (image (3, h, w) float32, label (h, w) int64), randomly scaled, cropped to (h, w), and flipped.

    The published code resizes with OpenCV; here torch's uint8 kernel, which the workbench's loader uses, replaces it.
    """

    def __init__(self, files: FileDataset, crop: tuple[int, int]) -> None:
        self.files, self.crop = files, crop
        self.mean = np.asarray(files.protocol.mean_published, np.float32)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        (height, width), (image, label) = self.crop, self.files.arrays(index)  # (H, W, 3), (H, W)
        scale = self.rng.choice(PUBLISHED_SCALES)
        rows, columns = (round(scale * side) for side in label.shape)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]  # (H, W, 3) -> (1, 3, H, W)
        pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False)
        image = pixels[0].permute(1, 2, 0).numpy().astype(np.float32) - self.mean
        label = np.array(Image.fromarray(label).resize((columns, rows), Image.Resampling.NEAREST))
        edges = [(0, max(0, height - rows)), (0, max(0, width - columns))]
        if np.any(edges):  # zeros (the mean color) and ignored pixels at the bottom and the right
            image = np.pad(image, [*edges, (0, 0)])
            label = np.pad(label, edges, constant_values=self.files.protocol.ignore_id)
        top, left = (self.rng.integers(side - cut + 1) for side, cut in zip(label.shape, self.crop, strict=True))
        image = image[top : top + height, left : left + width].transpose(2, 0, 1)  # (h, w, 3) -> (3, h, w)
        label = label[top : top + height, left : left + width]
        step = self.rng.choice((-1, 1))
        return torch.from_numpy(image[:, :, ::step].copy()), torch.from_numpy(label[:, ::step].astype(np.int64))


class PublishedStep:
    """`step(images, labels)` trains a copy of `model` on (B, 3, h, w) float32 and (B, h, w) int64; returns the loss."""

    def __init__(
        self, model: S2FPN, config: TrainConfig, class_weights: Tensor | None, *, ignore_index: int, total: int
    ) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
        self.criterion = nn.CrossEntropyLoss(class_weights, ignore_index=ignore_index)
        schedule = {"warmup": config.warmup, "start_factor": config.warmup_start, "power": config.poly_power}
        self.factor = partial(warmup_poly, total=total, **schedule)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.optimizer.param_groups[0]["initial_lr"] = config.lr
        self.done = 0

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        logits, auxiliary = self.model(images, aux=True)  # all five at the label's size
        loss = sum(self.criterion(each, labels) for each in (logits, *auxiliary))
        self.optimizer.zero_grad()
        loss.backward()
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.factor, last_epoch=self.done - 1)
        self.optimizer.step()
        scheduler.step()
        self.done += 1
        return loss.item()
