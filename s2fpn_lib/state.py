"""The state of a training run: built from a configuration, saved, and restored."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from s2fpn_lib import checkpoint, runs
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import PROTOCOLS, SegmentationDataset, check_dataset, open_dataset, train_loader
from s2fpn_lib.data.statistics import class_weights_from
from s2fpn_lib.distributed import choose_amp, rank, require_equal, synchronize_batch_norm, world_size
from s2fpn_lib.losses import DeepSupervisionLoss
from s2fpn_lib.model import ENCODERS, S2FPN, build_model
from s2fpn_lib.optim import ExponentialMovingAverage, build_optimizer, warmup_poly
from s2fpn_lib.runs import RunDirectory


class TrainingDiverged(RuntimeError):
    """The loss or the weights became infinite or NaN; the message names step and samples, and what to try."""


class TrainingState:
    """Everything that changes while a run goes on; `train` has the steps that change it.

    A new object continues from the last state in the run directory, if there is one. Each of several processes has its
    own object and part of every batch; only the first one writes files. `network` is what a step calls: `model` itself
    or a wrapper of it. `averaged` has the weights that are validated and saved: the moving average, or else the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset | None,
        device: torch.device,
        run: RunDirectory,
    ):
        self.config, self.val_set, self.device, self.run = config, val_set, device, run
        self.identity = run.identity()
        self.protocol = train_set.protocol
        self.amp = choose_amp(config.amp, device)
        self.loader = train_loader(
            train_set,
            crop=config.crop or self.protocol.size,
            batch_size=config.batch_size // world_size(),
            augment=config.augment(),
            rank=rank(),
            world_size=world_size(),
            pin_memory=device.type == "cuda",
            **config.only("seed", "workers"),
        )
        self.total_steps = config.epochs * len(self.loader)
        state = checkpoint.load_state(run.state, self.identity)

        # In channels_last cuDNN 9.19 compiles kernels for each depthwise convolution: on an H100 the first step took
        # over 14 s, in the contiguous layout 3 s
        channels_last = config.channels_last and not (device.type == "cuda" and ENCODERS[config.model].depthwise)
        torch.manual_seed(config.seed)
        self.model = build_model(
            config.model,
            num_classes=self.protocol.num_classes,
            encoder_weights=config.encoder_weights if state is None and config.encoder_weights else None,
            normalization=config.normalization or None,
            revision=config.revision,
            **config.switches,
        ).to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
        if state is None:
            fresh = checkpoint.initialize(self.model, config.init_from) if config.init_from else []
            if fresh and rank() == 0:
                kept = "all weights are kept but these, which are initialized anew"
                print(f"{config.init_from}: {kept}: {', '.join(fresh)}")
            self.origin = origin(config, train_set.name, fresh)
            if self.protocol.name not in PROTOCOLS:  # splits of the user's own dataset may change
                self.origin["training"][-1]["images"] = train_set.names
        else:
            self.origin = state.get("origin") or origin_of_earlier_version(config, train_set.name, run)
        self.data = data_digests(train_set, val_set)
        self.execution = {"device": str(device), "amp": self.amp or "off", "processes": config.processes}
        self.provenance = {
            "protocol": self.protocol.name,
            "protocol_definition": self.protocol.to_dict(),
            "dataset": train_set.name,
            **config.only("train_split", "val_split", "seed"),
            "data": self.data["train"],
            "recipe": runs.config_hash(config.recipe()),
            "git_sha": runs.code_version()["git_sha"],
            **self.origin,
        }
        if world_size() > 1:
            self.model = synchronize_batch_norm(self.model)
        self.network = torch.compile(self.model) if config.compile else self.model
        if world_size() > 1:
            # static_graph: published layouts hold parameters that never get a gradient
            self.network = DistributedDataParallel(self.network, static_graph=True)
        self.ema = ExponentialMovingAverage(self.model, config.ema) if config.ema else None
        self.averaged = self.ema.model if self.ema else self.model
        self.val_images_seen = len(checkpoint.names_seen(self.origin, val_set) & {*val_set.names}) if val_set else 0
        self.criterion = DeepSupervisionLoss(
            self.protocol.ignore_id,
            class_weights_from(train_set, config.class_weights) if config.class_weights else None,
            **config.only("aux_weight", "criterion", "aux_resolution"),
            **config.only("ohem_threshold", "ohem_min_kept", "lovasz_weight"),
        ).to(device)
        self.teacher = load_teacher(config, self.protocol.num_classes, device)
        rates = config.only("lr", "encoder_lr", "weight_decay", "decay_all", "momentum")
        self.optimizer = build_optimizer(self.model, config.optimizer, **rates)
        schedule = {"warmup": min(config.warmup, self.total_steps // 10), "start_factor": config.warmup_start}
        factor = partial(warmup_poly, total=self.total_steps, power=config.poly_power, **schedule)
        self.schedule = LambdaLR(self.optimizer, factor)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == "fp16")

        self.step, self.seconds = 0, 0.0  # finished optimizer steps; time in training and validation, over all starts
        self.best: float | None = None  # best validation mIoU so far
        self.row: dict[str, Any] | None = None  # of an epoch that is trained, but not yet validated and recorded
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # first step with a NaN or infinite loss
        self.reset_epoch()
        if state:
            self.load_state_dict(state)
        self.saved_at = self.seconds  # of the last training state
        require_equal(
            "recipe, data, and step",
            (self.provenance["recipe"], self.data, self.step),
            f"start every node with the same parameters and data, and with {run.path} on a disk that all nodes share",
        )

    @property
    def epoch(self) -> int:
        return self.step // len(self.loader)

    def reset_epoch(self) -> None:
        """Sets the sums of the current epoch to zero."""
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.data_seconds = self.step_seconds = 0.0

    def check_finite(self) -> None:
        """Raises TrainingDiverged if a loss so far was not finite. Synchronizes with the device."""
        step = int(self.first_bad)
        if step < 0:
            return
        advice = "try a lower lr, clip=1.0 or amp='off'"
        try:
            _, labels = self.loader.batch(*divmod(step, len(self.loader)))
            self.criterion.check_labels(labels, self.protocol.num_classes)
        except ValueError as error:
            advice = str(error)
        raise TrainingDiverged(self.report(step, "the loss is not finite", advice))

    def report(self, step: int, what: str, advice: str) -> str:
        """What an error says about a step."""
        epoch, batch = divmod(step, len(self.loader))
        kept = f"{self.run.state} keeps the last good state" if self.run.state.exists() else "no state had been saved"
        return (
            f"step {step} (epoch {epoch + 1}, batch {batch + 1} of {len(self.loader)}): {what}; samples: "
            f"{', '.join(self.loader.batch_names(epoch, batch))}. {kept}; {advice}"
        )

    def save(self) -> None:
        """Writes the training state in the first process, unless the training has diverged."""
        self.check_finite()
        norms = torch.stack(torch._foreach_norm(list(self.model.parameters())))
        if not norms.isfinite().all():
            what = "the weights are not finite after it though its loss was (an overflow in the gradient)"
            raise TrainingDiverged(self.report(self.step - 1, what, "try a lower lr, clip=1.0 or amp='off'"))
        if rank() == 0:
            checkpoint.save_state(self.run.state, self.state_dict())
        self.saved_at = self.seconds

    def _parts(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("model", "optimizer", "schedule", "scaler", "loader")}
        return parts | {"ema": self.ema.model if self.ema else None}

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs. Random numbers are functions of seed and step, so no random state is in it."""
        parts = {name: None if part is None else part.state_dict() for name, part in self._parts().items()}
        others = {name: getattr(self, name) for name in ("step", "best", "seconds", "origin", "row")}
        others["run"] = self.identity
        return {**parts, **others, "this_epoch": [self.loss_sum, self.data_seconds, self.step_seconds]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(state[name])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        self.row = state.get("row")
        loss_sum, self.data_seconds, self.step_seconds = state["this_epoch"]
        self.loss_sum.copy_(loss_sum)

    def save_weights(self, path: Path, val_miou: float | None) -> None:
        """Writes the averaged weights with their provenance in the first process."""
        if rank() == 0:
            position = {"val_miou": val_miou, "epoch": self.epoch, "step": self.step}
            checkpoint.save_weights(self.averaged, path, self.provenance | position)

    def write_summary(self) -> dict[str, Any]:
        """Writes last.safetensors and result.json of a finished run; returns the contents of the latter."""
        last_row = runs.read_rows(self.run.metrics)[-1]
        self.save_weights(self.run.last, last_row["val_miou"])
        best = self.config.checkpoint_rule == "best-val"
        summary = {
            "checkpoint": (self.run.best if best else self.run.last).name,
            "checkpoint_rule": self.config.checkpoint_rule,
            "val_miou": self.best if best else last_row["val_miou"],
            "val_images_seen": self.val_images_seen,
            "stopped_by": "epochs" if self.epoch == self.config.epochs else "max_minutes",
            "epochs": self.epoch,
            "steps": self.step,
            "seconds": self.seconds,
            "max_minutes": self.config.max_minutes,
            "images_per_s": last_row["images_per_s"],
            **self.provenance,
            "data": self.data,
            **self.config.only("model", "revision"),
            **self.execution,
        }
        runs.write_json(self.run.result, summary)
        return runs.read_json(self.run.result)


def open_splits(config: TrainConfig) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The training and validation splits of a run, with every file checked; None without a validation split.

    Raises DatasetError if files are broken, and ValueError if the checkpoint rule would choose by images trained on.
    """
    root = config.data_root or None
    train_set = open_dataset(config.dataset, root, config.train_split)
    check_dataset(train_set).raise_for_errors()
    if not config.val_split:
        return train_set, None
    val_set = open_dataset(train_set.name if config.dataset == "auto" else config.dataset, root, config.val_split)
    check_dataset(val_set).raise_for_errors()
    seen = set(train_set.names) & set(val_set.names)
    if seen and config.checkpoint_rule == "best-val":
        raise ValueError(
            f"{len(seen)} of the {len(val_set)} images of val_split={config.val_split!r} are also in "
            f"train_split={config.train_split!r} ({min(seen)}, ...): checkpoint_rule='best-val' would choose by images "
            "trained on. Choose disjoint splits, or checkpoint_rule='last'"
        )
    return train_set, val_set


def data_digests(train_set: SegmentationDataset, val_set: SegmentationDataset | None) -> dict[str, str]:
    """{"train": digest, "val": digest} of a run's splits; without "val" where there is none."""
    splits = {"train": train_set, "val": val_set}
    return {name: dataset.digest() for name, dataset in splits.items() if dataset}


def load_teacher(config: TrainConfig, num_classes: int, device: torch.device) -> S2FPN | None:
    """The frozen network of `distill_from`; None without one. Raises ValueError for another number of classes."""
    if not config.distill_from:
        return None
    teacher = checkpoint.load_model(config.distill_from, device=device).requires_grad_(False)
    if teacher.num_classes != num_classes:
        raise ValueError(
            f"the teacher {config.distill_from} has {teacher.num_classes} classes, the student {num_classes}: "
            "use a teacher that was trained on the same classes"
        )
    return teacher


def origin(config: TrainConfig, dataset: str, fresh: Sequence[str] = ()) -> dict[str, Any]:
    """What the weights of a run are trained on: `pretraining`, in words what came before it, and `training` as in
    `checkpoint.training_history`. fresh: names of the parameters that `init_from` leaves as initialized."""
    pretraining, training = config.encoder_weights or "none", []
    if config.init_from:
        earlier, data = _recorded(config.init_from)
        pretraining = f"{earlier.get('pretraining', 'unstated')}, then {data}"
        if fresh:
            pretraining += f"; initialized anew: {', '.join(fresh)}"
        training += checkpoint.training_history(earlier)
    if config.distill_from:
        teacher, data = _recorded(config.distill_from)
        pretraining += f"; taught by a network trained on {data}"
        training += checkpoint.training_history(teacher)
    return {"pretraining": pretraining, "training": [*training, {"dataset": dataset, "split": config.train_split}]}


def _recorded(source: str) -> tuple[dict[str, Any], str]:
    """The metadata of a checkpoint, {} in the author's layout, and its training data in words."""
    if metadata := checkpoint.read_metadata(source):
        return metadata, f"{metadata.get('dataset')} {metadata.get('train_split')}"
    return {}, f"{Path(source).name} (training data not recorded)"


def origin_of_earlier_version(config: TrainConfig, dataset: str, run: RunDirectory) -> dict[str, Any]:
    """`origin` of a run whose state does not hold it: from `init_from`, or, if that is gone, from the best weights."""
    try:
        return origin(config, dataset)
    except checkpoint.CheckpointError:
        known = checkpoint.read_metadata(run.best) if run.best.exists() else {}
        now = {"dataset": dataset, "train_split": config.train_split, **known}
        return {"pretraining": known.get("pretraining", "unstated"), "training": checkpoint.training_history(now)}


def default_run_dir(config: TrainConfig, dataset: str, data: dict[str, str], results: str | Path | None = None) -> Path:
    """<results>/train/<dataset>-<model>-<revision>-<hash>: equal recipes on equal data have equal folders.

    dataset: its name, which for the user's own is not `config.dataset`. data: of `data_digests`.
    """
    recipe = config.recipe()
    folder = Path(results or runs.results_root()) / "train"
    for identity in (recipe, {**recipe, "data": data}):  # an earlier version hashed the recipe alone
        run = RunDirectory(folder / f"{dataset}-{config.model}-{config.revision}-{runs.config_hash(identity)}")
        if run.config.exists() and runs.read_json(run.config).get("data", data) == data:
            break
    return run.path


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of one step's dropout in one process: SplitMix64 of the three numbers, so that neighbors get unrelated
    streams, cut to the 32 bits that torch's CPU generator uses."""
    mask = 2**64 - 1
    z = ((seed + 1) * 0xD1342543DE82EF95 + (step + 1) * 0x9E3779B97F4A7C15 + rank * 0xA0761D6478BD642F) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 32
