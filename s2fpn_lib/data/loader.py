"""Training batches whose content depends on (seed, epoch, position) alone and which resume at any batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from s2fpn_lib.data.dataset import SegmentationDataset
from s2fpn_lib.data.statistics import rare_pixels
from s2fpn_lib.data.transforms import Augment, apply, draw
from s2fpn_lib.distributed.launch import ignore_stop_signals

Key = tuple[int, int, int]  # epoch, position in the epoch's order, index of the sample at that position


class AugmentedSamples(Dataset):
    """``samples[epoch, position, index]`` -> ``(image (3, h, w), label (h, w))``, the same in every process."""

    def __init__(self, dataset: SegmentationDataset, crop: tuple[int, int], seed: int, augment: Augment) -> None:
        self.dataset, self.crop, self.seed, self.augment = dataset, tuple(crop), seed, augment
        self.fill = torch.tensor(dataset.protocol.mean_published).round().to(torch.uint8)
        self.rare = rare_pixels(dataset) if augment.rare_class_crops else None

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, position, index = key
        image, label = self.dataset.arrays(index)
        rng = np.random.default_rng([self.seed, epoch, position])
        cut = draw(self.augment, rng, label.shape, self.crop, self.rare[index] if self.rare else None)
        return apply(cut, image, label, self.crop, fill=self.fill, ignore_id=self.dataset.protocol.ignore_id)


class TrainLoader(DataLoader):
    """Augmented batches ``(images (B, 3, h, w), labels (B, h, w))``, both uint8.

    One iteration gives the rest of an epoch, the next iteration the next epoch. ``state_dict()`` is the position of the
    next batch; batches that workers made ahead do not count. Raises ValueError for an empty dataset or an option that
    is out of range.

    Args:
        crop: (h, w) of every sample in pixels.
        workers: number of worker processes, which live as long as the loader; 0 makes the batches in this process.
        augment: None is the published augmentation.
        rank, world_size: which part of every global batch of ``world_size * batch_size`` samples this process gets.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        crop: tuple[int, int],
        batch_size: int,
        seed: int,
        workers: int = 0,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if min(len(dataset), batch_size, *crop) < 1:
            raise ValueError(f"{dataset!r}, batch_size={batch_size}, crop={crop}: all of them must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in 0..{world_size - 1}")
        self.seed, self.epoch, self.next_batch = seed, 0, 0
        self._global_size = batch_size * world_size
        self._part = slice(rank * batch_size, (rank + 1) * batch_size)
        self._remaining: list[list[Key]] = []  # of the epoch; DataLoader reads it anew in each iteration
        super().__init__(
            AugmentedSamples(dataset, crop, seed, augment or Augment()),
            batch_sampler=self._remaining,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),  # else each epoch would draw a number from the global generator
        )

    def __len__(self) -> int:
        """Batches per epoch. The last, incomplete batch is dropped; a dataset smaller than one batch wraps around."""
        return max(1, len(self.dataset.dataset) // self._global_size)

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of one batch of all processes together, by its position."""
        return default_collate([self.dataset[key] for key in self._global_batches(epoch)[index]])

    def batch_names(self, epoch: int, index: int) -> list[str]:
        """Sample names of one batch of all processes together."""
        return [self.dataset.dataset.names[sample] for _, _, sample in self._global_batches(epoch)[index]]

    def _global_batches(self, epoch: int) -> list[list[Key]]:
        """The keys of each batch of an epoch, of all processes together."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset.dataset))
        positions = range(len(self) * self._global_size)
        keys = [(epoch, position, int(order[position % len(order)])) for position in positions]
        return [keys[first : first + self._global_size] for first in range(0, len(keys), self._global_size)]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch < len(self):
            raise ValueError(f"state {state}: an epoch has {len(self)} batches here; same data and batch size?")
        self.epoch, self.next_batch = epoch, batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rest = self._global_batches(self.epoch)[self.next_batch :]
        self._remaining[:] = [keys[self._part] for keys in rest]
        for images, labels in super().__iter__():
            # advanced before the batch is handed out: a state saved while it is used names the batch after it
            self.next_batch += 1
            if self.next_batch == len(self):
                self.epoch, self.next_batch = self.epoch + 1, 0
            yield images, labels


train_loader = TrainLoader
