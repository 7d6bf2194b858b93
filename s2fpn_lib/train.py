"""Training: one loop for CPU and CUDA, exact to the bit when it is stopped and taken up again.

    result = train(TrainConfig.preset("quick", dataset="roadscenes"))

Batch k of a run, and the dropout of step k, are pure functions of (seed, k). A training state therefore holds weights,
optimizer, averages and a position, and no random state; the same run cut anywhere gives the same weights on one CPU.

`config.devices` processes on each of `config.nodes` machines train together: DistributedDataParallel over equal parts
of every batch, BatchNorm over all of it. A run may go on with another number of them than it began with.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from s2fpn_lib import runs
from s2fpn_lib.allocator import keep_freed_memory
from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import SegmentationDataset, check_dataset, open_dataset
from s2fpn_lib.devices import choose_device
from s2fpn_lib.distributed import from_first, local_rank, rank
from s2fpn_lib.launch import WorkerFailed, launch, node_rank
from s2fpn_lib.presets import PRESETS
from s2fpn_lib.runs import ConfigChanged, RunDirectory, RunLocked
from s2fpn_lib.training import Row, Training, TrainingDiverged, pretraining

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
    progress = _someone_watches() if progress is None else progress
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
    with tqdm(
        total=training.total_steps,
        initial=training.step,
        unit="step",
        desc=run.path.name,
        disable=not (progress and first),
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
                bar.write(_epoch_line(row, config.epochs), file=sys.stdout)
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


def _someone_watches() -> bool:
    """On a terminal or in a notebook."""
    ipython = sys.modules.get("IPython")
    return sys.stderr.isatty() or (ipython is not None and ipython.get_ipython() is not None)


def _epoch_line(row: Row, epochs: int) -> str:
    score = "" if row["val_miou"] is None else f"  val mIoU {100 * row['val_miou']:.2f} %"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}{score}  lr {row['lr']:.2e}  "
        f"{row['images_per_s']:.1f} images/s  waited {1e3 * row['data_s']:.0f} ms, step {1e3 * row['step_s']:.0f} ms"
    )
