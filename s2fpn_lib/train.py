"""Training: one loop for CPU and CUDA, exact to the bit when it is stopped and taken up again.

    result = train(TrainConfig.preset("quick", dataset="roadscenes"))

Batch k of a run, and the dropout of step k, are pure functions of (seed, k). A training state therefore holds weights,
optimizer, averages and a position, and no random state; the same run cut anywhere gives the same weights on one CPU.

`config.devices` processes on each of `config.nodes` machines train together: DistributedDataParallel over equal parts
of every batch, BatchNorm over all of it. A run may go on with another number of them than it began with.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s2fpn_lib import runs
from s2fpn_lib.checkpoint import (
    find_weights,
    load_model,
    load_state,
    load_weights,
    read_metadata,
    save_state,
    save_weights,
)
from s2fpn_lib.config import PRESETS, TrainConfig
from s2fpn_lib.data import SegmentationDataset, TrainLoader, check_dataset, open_dataset, train_loader
from s2fpn_lib.data.statistics import class_weights_from
from s2fpn_lib.distributed import (
    AMP_DTYPES,
    WorkerFailed,
    choose_amp,
    choose_device,
    from_first,
    keep_freed_memory,
    launch,
    local_rank,
    mean_over_processes,
    node_rank,
    rank,
    refuse_differing,
    synchronize_batch_norm,
    world_size,
)
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.losses import DeepSupervisionLoss, distillation_loss
from s2fpn_lib.model import build_model
from s2fpn_lib.optim import ExponentialMovingAverage, build_optimizer, fit_warmup, warmup_poly_schedule
from s2fpn_lib.progress import is_interactive, progress_bar
from s2fpn_lib.runs import ConfigChanged, RunDirectory, RunLocked

# MERGED training: """One step, one epoch and the state of a training run; `train` drives them."""


__all__ = [
    "PRESETS",
    "ConfigChanged",
    "RunLocked",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "WorkerFailed",
    "train",
]


STEPS_BETWEEN_CHECKS = 50  # of the loss on CUDA, where a look at it is a host sync

Row = dict[str, Any]


class TrainingDiverged(RuntimeError):
    """The loss or the weights became infinite or NaN; the message names step and samples, and what to try."""


class Training:
    """Everything that changes while a run goes on, and one step of it.

    A fresh object continues from the run directory's last state where there is one. `network` is what the step calls:
    `model` itself, or a wrapper that shares its parameters.

    Where several processes train together each has one of these and its share of every batch; gradients, losses and
    BatchNorm statistics are those of the whole batch, so all of them hold the same weights after every step, and only
    the first one writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset | None,
        device: torch.device,
        run: RunDirectory,
    ):
        self.config, self.device, self.run, self.val_set = config, device, run, val_set
        self.protocol = train_set.protocol
        self.amp = choose_amp(config.amp, device)
        self.loader = train_loader(
            train_set,
            crop=config.crop or self.protocol.size,
            batch_size=config.batch_size // world_size(),
            seed=config.seed,
            rank=rank(),
            world_size=world_size(),
            workers=config.workers,
            augment=config.augment(),
            pin_memory=device.type == "cuda",
        )
        self.total_steps = config.epochs * len(self.loader)
        self.git_sha = runs.code_version()["git_sha"]
        state = load_state(run.state)

        torch.manual_seed(config.seed)
        self.model = build_model(
            config.model,
            revision=config.revision,
            num_classes=self.protocol.num_classes,
            encoder_weights=None if state else config.encoder_weights or None,
            **({"normalization": config.normalization} if config.normalization else {}),
            **config.switches,
        ).to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
        if config.init_from and not state:
            load_weights(self.model, find_weights(config.init_from))
        if world_size() > 1:
            self.model = synchronize_batch_norm(self.model)
        self.network = torch.compile(self.model) if config.compile else self.model
        if world_size() > 1:
            # static_graph: published layouts hold parameters that never get a gradient
            self.network = DistributedDataParallel(self.network, static_graph=True)
        self.ema = ExponentialMovingAverage(self.model, config.ema) if config.ema else None
        self.criterion = DeepSupervisionLoss(
            self.protocol.ignore_id,
            class_weights_from(train_set, config.class_weights) if config.class_weights else None,
            config.aux_weight,
            criterion=config.criterion,
            aux_resolution=config.aux_resolution,
            ohem_threshold=config.ohem_threshold,
            ohem_min_kept=config.ohem_min_kept,
            lovasz_weight=config.lovasz_weight,
        ).to(device)
        self.teacher = Teacher(config.distill_from, self.protocol.num_classes, device) if config.distill_from else None
        self.optimizer = build_optimizer(self.model, config)
        self.schedule = warmup_poly_schedule(
            self.optimizer,
            total=self.total_steps,
            warmup=fit_warmup(config.warmup, self.total_steps),
            start_factor=config.warmup_start,
            power=config.poly_power,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == "fp16")

        self.step = 0  # optimizer steps done
        self.best: float | None = None  # best validation mIoU so far
        self.seconds = 0.0  # spent training and validating, over all starts
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # first step with a NaN or infinite loss
        self._begin_epoch()
        if state:
            self.load_state_dict(state)
        refuse_differing(
            "recipe and step",
            (runs.config_hash(config.recipe()), self.step),
            f"start every node with the same parameters, and with {run.path} on a disk that all nodes share",
        )

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // len(self.loader)

    @property
    def averaged(self) -> nn.Module:
        """The weights that are validated and handed over: the moving average where there is one."""
        return self.ema.model if self.ema else self.model

    def _begin_epoch(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.data_seconds = self.step_seconds = 0.0

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step on a batch of uint8 (B,3,h,w) images and (B,h,w) labels. On CUDA without any host sync."""
        torch.manual_seed(step_seed(self.config.seed, self.step, rank()))
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, AMP_DTYPES.get(self.amp), enabled=self.amp is not None):
            outputs = self.network(self.model.preprocess(images), aux=True, resize=False)
            taught = self.teacher.logits(images) if self.teacher else None
        loss = self.criterion(outputs, labels)  # float32, and resizes the logits to the label
        if taught is not None:
            distilled = distillation_loss(outputs[0], taught, self.config.distill_temperature)
            loss = loss + self.config.distill_weight * distilled

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr = self.schedule.get_last_lr()[-1]
        self.schedule.step()
        if self.ema:
            self.ema.update(self.step)

        loss = mean_over_processes(loss.detach())
        self.loss_sum += loss
        self.first_bad = torch.where((self.first_bad < 0) & ~loss.isfinite(), self.step, self.first_bad)
        self.step += 1
        if self.device.type == "cpu" or self.step % STEPS_BETWEEN_CHECKS == 0:
            self.refuse_bad()

    def train_epoch(self, after_step: Callable[[], None]) -> Row:
        """The rest of the current epoch; its row of the metrics, without validation."""
        self.model.train()
        mark = time.perf_counter()
        for images, labels in self.loader:
            ready = time.perf_counter()
            self.train_step(images, labels)
            done = time.perf_counter()
            self.data_seconds += ready - mark
            self.step_seconds += done - ready
            self.seconds += done - mark
            after_step()
            mark = time.perf_counter()
        loss = self.loss_sum.item() / len(self.loader)  # waits for the device: the queue's rest is step time
        rest = time.perf_counter() - mark
        self.step_seconds += rest
        self.seconds += rest
        self.refuse_bad()
        steps, seconds = len(self.loader), self.data_seconds + self.step_seconds
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.lr,
            "loss": loss,
            "val_miou": None,
            "data_s": self.data_seconds / steps,
            "step_s": self.step_seconds / steps,
            "images_per_s": steps * self.config.batch_size / seconds,
            "seconds": seconds,
        }
        self._begin_epoch()
        return row

    def validate(self) -> float:
        """mIoU on the validation split; a new best one is saved as best.safetensors."""
        start = time.perf_counter()
        limit = self.config.eval_images or None
        result = evaluate(
            self.averaged,
            self.val_set,
            batch_size=self.config.batch_size,
            limit=limit,
            amp=self.amp,
            distributed=True,
            progress=False,
        )
        miou = result.confusion.miou()
        if self.best is None or miou > self.best:
            self.best = miou
            self.save_weights(self.run.best, miou)
        self.seconds += time.perf_counter() - start
        return miou

    def refuse_bad(self) -> None:
        """Raises TrainingDiverged if a loss so far was not finite. Syncs with the device."""
        if (step := int(self.first_bad)) >= 0:
            raise TrainingDiverged(self._diverged(step))

    def _diverged(self, step: int) -> str:
        epoch, batch = divmod(step, len(self.loader))
        try:
            for number in range(world_size()):
                maker = copy.copy(self.loader.maker)
                maker.rank = number
                self.criterion.check_labels(maker.make(epoch, batch)[1], self.protocol.num_classes)
            advice = "try a lower lr, clip=1.0 or amp='off'"
        except ValueError as error:
            advice = str(error)
        return (
            f"the loss of step {step} (epoch {epoch + 1}, batch {batch + 1} of {len(self.loader)}) is not finite; "
            f"samples: {', '.join(batch_names(self.loader, step))}. "
            f"{self._what_stays()}; {advice}"
        )

    def _what_stays(self) -> str:
        kept = self.run.state.exists()
        return f"{self.run.state} keeps the last good state" if kept else "no state had been saved before"

    def save(self) -> None:
        """Writes the training state, in the first process; never one that has diverged."""
        self.refuse_bad()
        norms = torch.stack(torch._foreach_norm(list(self.model.parameters())))
        if not norms.isfinite().all():
            raise TrainingDiverged(
                f"weights are not finite after step {self.step - 1} though its loss was (an overflow in the gradient); "
                f"samples: {', '.join(batch_names(self.loader, self.step - 1))}. "
                f"{self._what_stays()}; try a lower lr, clip=1.0 or amp='off'"
            )
        if rank() == 0:
            save_state(self.run.state, self.state_dict())

    def state_dict(self) -> Row:
        """All that resuming needs. Random numbers are functions of seed and step, so there is no random state in it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "this_epoch": [self.loss_sum, self.data_seconds, self.step_seconds],
        }

    def load_state_dict(self, state: Row) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        loss_sum, self.data_seconds, self.step_seconds = state["this_epoch"]
        self.loss_sum.copy_(loss_sum)

    def save_weights(self, path: Path, val_miou: float | None) -> None:
        """Writes the averaged weights with their provenance, in the first process."""
        if rank() > 0:
            return
        config = self.config
        provenance = {
            "dataset": config.dataset,
            "protocol": self.protocol.name,
            "train_split": config.train_split,
            "val_split": config.val_split,
            "val_miou": val_miou,
            "pretraining": pretraining(config),
            "seed": config.seed,
            "epoch": self.epoch,
            "step": self.step,
            "recipe": runs.config_hash(config.recipe()),
            "git_sha": self.git_sha,
        }
        save_weights(self.averaged, path, provenance)


def pretraining(config: TrainConfig) -> str:
    """What the weights know from before this run, in words: "none", "imagenet", or what `init_from` had been trained
    on; and what the teacher had been trained on, where there is one."""
    known = config.encoder_weights or "none"
    if config.init_from:
        earlier = read_metadata(find_weights(config.init_from))
        known = f"{earlier.get('pretraining', 'unstated')}, then {earlier.get('dataset')} {earlier.get('train_split')}"
    if config.distill_from:
        teacher = read_metadata(find_weights(config.distill_from))
        known += f"; taught by a network trained on {teacher.get('dataset')} {teacher.get('train_split')}"
    return known


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the random numbers (dropout) of one step in one process: SplitMix64 of them, 32 bits, which is what
    torch's CPU generator uses of a seed. Adjacent steps, seeds and processes get unrelated streams."""
    mask = 2**64 - 1
    z = ((seed + 1) * 0xD1342543DE82EF95 + (step + 1) * 0x9E3779B97F4A7C15 + rank * 0xA0761D6478BD642F) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 32


def batch_names(loader: TrainLoader, step: int) -> list[str]:
    """Sample ids of the batch, of all processes together, that step `step` (0 is a run's first) trained on."""
    epoch, batch = divmod(step, len(loader))
    order = loader.maker.order(epoch)
    size = loader.maker.world_size * loader.maker.batch_size
    return [loader.dataset.names[order[(batch * size + row) % len(order)]] for row in range(size)]


class Teacher:
    """A trained network, frozen, to learn from.

    Args:
        path_or_name: what `load_model` takes: a .safetensors file, a run directory or a released name.
        num_classes: the student's.
        device: where the student trains.

    Raises:
        CheckpointError: no such weights, or damaged ones.
        ValueError: the teacher knows another number of classes.
    """

    def __init__(self, path_or_name: str | Path, num_classes: int, device: torch.device):
        self.network = load_model(path_or_name, device=device).requires_grad_(False)
        if self.network.num_classes != num_classes:
            raise ValueError(
                f"the teacher {path_or_name} has {self.network.num_classes} classes, the student {num_classes}: "
                "distil from a network that was trained on the same classes"
            )

    def logits(self, images: Tensor) -> Tensor:
        """The teacher's (B, K, h, w) logits of uint8 (B, 3, H, W) images, at the resolution it computes them at."""
        with torch.no_grad():
            return self.network(self.network.preprocess(images), resize=False)


@dataclass
class TrainResult:
    """A finished run.

    Attributes:
        run_dir: its folder.
        config: as trained, "auto" dataset resolved.
        model: with the weights that the checkpoint rule chose, in eval mode on the CPU.
        history: one dict an epoch: epoch (finished ones), step, lr, loss, val_miou (share, None where not validated),
            data_s and step_s (seconds a step, waiting for the batch and computing), images_per_s (both together),
            seconds (of the epoch, validation included).
        summary: what result.json holds: checkpoint, rule, val_miou, stopped_by, protocol, amp, device, seconds, ...
    """

    run_dir: Path
    config: TrainConfig
    model: nn.Module
    history: list[Row]
    summary: Row

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / self.summary["checkpoint"]


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    results: str | Path | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Trains, or takes up an interrupted run, or returns a finished one without touching it.

    With `config.devices` above 1 the training runs in new processes; a script then calls this under
    `if __name__ == "__main__":`. With `config.nodes` above 1 the same call is made on every node, with a run_dir (or
    results) on a disk that all share, and the environment says where they meet: MASTER_ADDR, MASTER_PORT, NODE_RANK.

    Args:
        config: the whole recipe.
        run_dir: where; default: <results>/train/<dataset>-<model>-<revision>-<hash of the recipe>.
        results: the folder of all results; default: `runs.results_root()`.
        on_epoch: called with every epoch's row after its state is safe, e.g. to redraw a plot. With several processes
            the first of them calls it, so it must be a function of a module that can be imported there.
        progress: a progress bar; None: on a terminal and in a notebook. An epoch always prints one line.

    Raises:
        DatasetError: a file of either split is broken; all of them are named, and nothing has been written.
        ConfigChanged: run_dir holds a run with another recipe.
        RunLocked: another process trains in run_dir.
        TrainingDiverged: NaN or infinite loss; the last good state stays.
        CheckpointError: a state could not be written (disk full); the last good state stays.
        WorkerFailed: of several processes one was killed or raised an error, such as the two above; the message names
            it. The last good state stays, and the same call goes on from there.
        ValueError: more devices than this machine has, or nodes that do not know where to meet.
    """
    device = choose_device(config.device, config.devices - 1)  # of the node's last process: there must be so many
    first_node = node_rank(config.nodes) == 0
    train_set = open_dataset(config.dataset, config.data_root or None, config.train_split)
    check_dataset(train_set).raise_for_errors()
    config = config.replace(dataset=train_set.name)  # "auto" would mean something else once CamVid is installed
    val_set = None
    if config.val_split:
        val_set = open_dataset(config.dataset, config.data_root or None, config.val_split)
        check_dataset(val_set).raise_for_errors()
        _refuse_seen(config, train_set, val_set)
    run = RunDirectory(run_dir or default_run_dir(config, results))
    progress = is_interactive() if progress is None else progress
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])  # the caller's random stream stays
    with forked, run.lock() if first_node else nullcontext():
        if first_node:
            run.claim(config.recipe(), TrainConfig().recipe())
        summary = _finished(run, config)
        if summary is not None:
            print(f"{run.path} is already finished; returning it")
        elif config.processes == 1:
            summary = _fit(config, train_set, val_set, run, on_epoch, progress)
        else:
            backend = "nccl" if device.type == "cuda" else "gloo"
            arguments = (config, train_set, val_set, run, on_epoch, progress)
            summary = launch(_fit, *arguments, devices=config.devices, nodes=config.nodes, backend=backend)
        return TrainResult(run.path, config, load_model(run.path), runs.read_rows(run.metrics), summary)


def default_run_dir(config: TrainConfig, results: str | Path | None = None) -> Path:
    """<results>/train/<dataset>-<model>-<revision>-<hash>: the same recipe comes back to the same folder."""
    name = f"{config.dataset}-{config.model}-{config.revision}-{runs.config_hash(config.recipe())}"
    return Path(results or runs.results_root()) / "train" / name


def _fit(
    config: TrainConfig,
    train_set: SegmentationDataset,
    val_set: SegmentationDataset | None,
    run: RunDirectory,
    on_epoch: Callable[[Row], None] | None,
    progress: bool,
) -> Row:
    """The training of this process, alone or with others; the summary of the run."""
    device = choose_device(config.device, local_rank())
    if device.type == "cpu":
        keep_freed_memory()
    with _tuned_convolutions(device):
        training = Training(config, train_set, val_set, device, run)
        _train_epochs(training, on_epoch, progress)
        return from_first(_finish(training) if rank() == 0 else None)


def _train_epochs(training: Training, on_epoch: Callable[[Row], None] | None, progress: bool) -> None:
    """Epoch after epoch until the last one, or the last that fits into the time budget of the first process."""
    config, run, first = training.config, training.run, rank() == 0
    if first:
        run.drop_metrics_after(training.epoch)
        environment = {"device": str(training.device), "amp": training.amp or "off", "processes": config.processes}
        run.record_environment({**runs.environment(), **environment, "resumed_at_step": training.step})
    budget = 60 * config.max_minutes or float("inf")
    rows = runs.read_rows(run.metrics)
    longest = max((row["seconds"] for row in rows), default=0.0)
    last_saved = training.seconds
    with progress_bar(
        training.total_steps, enabled=progress and first, initial=training.step, unit="step", desc=run.path.name
    ) as bar:

        def after_step() -> None:
            nonlocal last_saved
            bar.update()
            waited = training.seconds - last_saved
            inside_epoch = training.step % len(training.loader) != 0
            if inside_epoch and config.checkpoint_minutes and waited > 60 * config.checkpoint_minutes:
                training.save()
                last_saved = training.seconds

        while training.epoch < config.epochs and from_first(not longest or training.seconds + longest <= budget):
            row = training.train_epoch(after_step)
            trained = training.seconds
            last = training.epoch == config.epochs
            if config.val_split and (last or training.epoch % config.eval_every == 0):
                row["val_miou"] = training.validate()
            row["seconds"] += training.seconds - trained
            longest = max(longest, row["seconds"])
            if first:
                runs.append_row(run.metrics, row)  # before the state: a resumed run drops rows its state does not know
            if last or training.epoch % config.checkpoint_every == 0 or training.seconds + longest > budget:
                training.save()
                last_saved = training.seconds
            if first:
                bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                bar.write(_epoch_line(row, config.epochs))
                if on_epoch:
                    on_epoch(row)


def _finish(training: Training) -> Row:
    """Writes last.safetensors and result.json."""
    config, run = training.config, training.run
    last_row = runs.read_rows(run.metrics)[-1]
    training.save_weights(run.last, last_row["val_miou"])
    best = config.checkpoint_rule == "best-val"
    summary = {
        "checkpoint": (run.best if best else run.last).name,
        "checkpoint_rule": config.checkpoint_rule,
        "val_miou": training.best if best else last_row["val_miou"],
        "stopped_by": "epochs" if training.epoch == config.epochs else "max_minutes",
        "epochs": training.epoch,
        "steps": training.step,
        "seconds": training.seconds,
        "max_minutes": config.max_minutes,
        "images_per_s": last_row["images_per_s"],
        "dataset": config.dataset,
        "protocol": training.protocol.name,
        "train_split": config.train_split,
        "val_split": config.val_split,
        "model": config.model,
        "revision": config.revision,
        "pretraining": pretraining(config),
        "seed": config.seed,
        "device": str(training.device),
        "amp": training.amp or "off",
        "processes": config.processes,
        "recipe": runs.config_hash(config.recipe()),
        "git_sha": training.git_sha,
    }
    runs.write_json(run.result, summary)
    return summary


def _finished(run: RunDirectory, config: TrainConfig) -> Row | None:
    """The summary of a finished run, None where there is something left to train: a run that its time budget stopped
    goes on when the budget has grown."""
    if not run.result.exists():
        return None
    summary = runs.read_json(run.result)
    has_time = not config.max_minutes or config.max_minutes > summary["max_minutes"]
    return None if summary["stopped_by"] == "max_minutes" and has_time else summary


def _refuse_seen(config: TrainConfig, train_set: SegmentationDataset, val_set: SegmentationDataset) -> None:
    """A checkpoint must not be chosen by images that were trained on."""
    seen = set(train_set.names) & set(val_set.names)
    if seen and config.checkpoint_rule == "best-val":
        raise ValueError(
            f"{len(seen)} of the {len(val_set)} images of val_split={config.val_split!r} are also in "
            f"train_split={config.train_split!r} ({min(seen)}, ...): checkpoint_rule='best-val' would choose by images "
            "trained on. Choose disjoint splits, or checkpoint_rule='last'"
        )


@contextmanager
def _tuned_convolutions(device: torch.device) -> Iterator[None]:
    """cuDNN times its convolution algorithms: crops all have one size, so the search pays off after a few steps."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=device.type == "cuda"):
        yield


def _epoch_line(row: Row, epochs: int) -> str:
    score = "" if row["val_miou"] is None else f"  val mIoU {100 * row['val_miou']:.2f} %"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}{score}  lr {row['lr']:.2e}  "
        f"{row['images_per_s']:.1f} images/s  waited {1e3 * row['data_s']:.0f} ms, step {1e3 * row['step_s']:.0f} ms"
    )
