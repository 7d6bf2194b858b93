"""Training batches whose content depends on (seed, epoch, position) alone, and which resume at any batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from s2fpn_lib.data.dataset import SegmentationDataset, read_arrays
from s2fpn_lib.data.statistics import rare_pixels
from s2fpn_lib.data.transforms import Augment, apply, draw


def train_loader(
    dataset: SegmentationDataset,
    *,
    crop: tuple[int, int],
    batch_size: int,
    seed: int,
    workers: int = 0,
    augment: Augment | None = None,
    prefetch: int = 2,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> TrainLoader:
    """Augmented batches ``(images (B, 3, h, w), labels (B, h, w))``, both uint8.

    Args:
        crop: (h, w) of every sample in pixels.
        batch_size: samples a batch, in this process.
        seed: with the epoch and the position it decides every sample.
        workers: 0 makes the batches in this process; more in as many worker processes, which live as long as the
            loader.
        augment: None is the published augmentation.
        prefetch: batches made ahead: by one thread where ``workers`` is 0 (0 makes each when it is asked for), else
            per worker.
        rank, world_size: which share of every global batch of ``world_size * batch_size`` samples this process gets.
        pin_memory: page-locked batches, which a GPU can fetch while it computes.
    """
    return TrainLoader(
        dataset, crop, batch_size, seed, workers, augment or Augment(), prefetch, rank, world_size, pin_memory
    )


class BatchMaker:
    """``make(epoch, index)`` -> one batch; a pure function of its arguments, the same in every process."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        crop: tuple[int, int],
        batch_size: int,
        seed: int,
        augment: Augment,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset, self.crop, self.batch_size = dataset, (int(crop[0]), int(crop[1])), batch_size
        self.seed, self.augment, self.rank, self.world_size = seed, augment, rank, world_size
        mean = torch.tensor(dataset.protocol.mean_published)
        self.fill = mean.round().to(torch.uint8)
        self._order: tuple[int, np.ndarray] | None = None

    @cached_property
    def rare(self) -> list[dict[int, np.ndarray]] | None:
        """The rare-class index, made once and only where it is used."""
        if not self.augment.rare_class_crops:
            return None
        return rare_pixels(self.dataset, self.augment.rare_share)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of the samples in one epoch."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset)))
        return self._order[1]

    def make(self, epoch: int, index: int, pin_memory: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        order, rare = self.order(epoch), self.rare
        images = torch.empty(self.batch_size, 3, *self.crop, dtype=torch.uint8, pin_memory=pin_memory)
        labels = torch.empty(self.batch_size, *self.crop, dtype=torch.uint8, pin_memory=pin_memory)
        first = (index * self.world_size + self.rank) * self.batch_size
        for row in range(self.batch_size):
            position = first + row
            sample = int(order[position % len(order)])
            image, label = read_arrays(self.dataset, sample)
            rng = np.random.default_rng([self.seed, epoch, position])
            cut = draw(self.augment, rng, label.shape, self.crop, rare[sample] if rare else None)
            ignore_id = self.dataset.protocol.ignore_id
            apply(cut, image, label, images[row], labels[row], fill=self.fill, ignore_id=ignore_id)
        return images, labels


class TrainLoader:
    """Iterate it for the rest of one epoch; iterate it again for the next one. Made by :func:`train_loader`.

    ``state_dict()`` is the position of the next batch that an iteration gives. Batches that were made ahead do not
    count, so a state saved after any batch continues with the one that follows.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        crop: tuple[int, int],
        batch_size: int,
        seed: int,
        workers: int,
        augment: Augment,
        prefetch: int,
        rank: int,
        world_size: int,
        pin_memory: bool,
    ) -> None:
        if len(dataset) == 0 or batch_size < 1 or min(crop) < 1:
            raise ValueError(f"{dataset!r}, batch_size={batch_size}, crop={crop}: all of them must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in 0..{world_size - 1}")
        self.dataset, self.workers, self.prefetch, self.pin_memory = dataset, workers, prefetch, pin_memory
        self.maker = BatchMaker(dataset, crop, batch_size, seed, augment, rank, world_size)
        # the last, incomplete batch is dropped; a dataset smaller than one batch wraps around
        self._batches = max(1, len(dataset) // (batch_size * world_size))
        self.epoch, self.next_batch = 0, 0
        self._positions = _Positions()

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._batches

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch < len(self):
            raise ValueError(
                f"state {state} does not fit: an epoch has {len(self)} batches here; same data and batch size?"
            )
        self.epoch, self.next_batch = epoch, batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = self._from_workers() if self.workers else self._in_process(self.epoch, self.next_batch)
        for batch in batches:
            # moved on before the batch is handed out: a state saved while it is used names the one after it
            self.next_batch += 1
            if self.next_batch == len(self):
                self.epoch, self.next_batch = self.epoch + 1, 0
            yield batch

    def _in_process(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if not self.prefetch:
            for index in range(first, len(self)):
                yield self.maker.make(epoch, index, self.pin_memory)
            return
        pending: deque = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="s2fpn-batches") as pool:
            try:
                for index in range(first, len(self)):
                    pending.append(pool.submit(self.maker.make, epoch, index, self.pin_memory))
                    if len(pending) > self.prefetch:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _from_workers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._positions.left = [(self.epoch, index) for index in range(self.next_batch, len(self))]
        return iter(self._worker_loader)

    @cached_property
    def _worker_loader(self) -> DataLoader:
        _ = self.maker.rare  # made before the workers start, so that they share it
        return DataLoader(
            _MadeBatches(self.maker),
            batch_size=None,
            sampler=self._positions,
            num_workers=self.workers,
            persistent_workers=True,
            prefetch_factor=max(1, self.prefetch),
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else every epoch would take a number from the global generator
        )


class _MadeBatches(Dataset):
    """Batches by their position, for the workers of a DataLoader."""

    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __getitem__(self, position: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.maker.make(*position)


class _Positions(Sampler):
    """(epoch, batch) of what is left of an epoch.

    It does not hold the loader: in a cycle with it the workers would be told to stop only after a timeout.
    """

    def __init__(self) -> None:
        self.left: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.left)
