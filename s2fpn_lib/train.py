"""Training: one loop for CPU and CUDA that continues bit-exactly after an interruption.

    result = train(TrainConfig.preset("quick", dataset="roadscenes"))

Batch k of a run and the dropout masks of step k are pure functions of (seed, k). A training state therefore holds no
random state, and a run that is interrupted anywhere gives the same weights on one CPU as one that is not.

`config.devices` processes on each of `config.nodes` machines train together: DistributedDataParallel over equal parts
of every batch, with BatchNorm statistics of the whole batch. A resumed run may use another number of them.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib import checkpoint, distributed, runs
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import SegmentationDataset
from s2fpn_lib.distributed import choose_device, from_first, rank
from s2fpn_lib.distributed.launch import StopRequested, StopSignals, launch, node_rank
from s2fpn_lib.evaluate import evaluate, is_interactive, progress_bar
from s2fpn_lib.losses import distillation_loss
from s2fpn_lib.model import ENCODERS
from s2fpn_lib.model.tta import AMP_DTYPES
from s2fpn_lib.replay import computed_twice
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.state import TrainingState, data_digests, default_run_dir, open_splits, step_seed

STEPS_BETWEEN_CHECKS = 50  # of the loss on CUDA, where each check synchronizes with the device

Row = dict[str, Any]


def compute_gradients(state: TrainingState, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch that is on the device; sets its gradients. The shapes are those of `train_step`."""
    config = state.config
    torch.manual_seed(step_seed(config.seed, state.step, rank()))
    with torch.autocast(state.device.type, AMP_DTYPES.get(state.amp), enabled=state.amp is not None):
        outputs = state.network(state.model.preprocess(images), aux=True, resize=False)
        if state.teacher:
            with torch.no_grad():
                teacher_logits = state.teacher(state.teacher.preprocess(images), resize=False)
    loss = state.criterion(outputs, labels)  # in float32; resizes the logits to the labels
    if state.teacher:
        distillation = distillation_loss(outputs[0], teacher_logits, config.distill_temperature)
        loss = loss + config.distill_weight * distillation
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    return loss.detach()


def train_step(state: TrainingState, images: Tensor, labels: Tensor) -> None:
    """One optimizer step on uint8 images (B, 3, h, w) and labels (B, h, w); on CUDA without a host sync."""
    config = state.config
    batch = [each.to(state.device, non_blocking=True) for each in (images, labels)]
    if config.replay_check and state.step % config.replay_check == 0:
        loss = computed_twice(state, partial(compute_gradients, state, *batch))
    else:
        loss = compute_gradients(state, *batch)
    if config.clip:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.lr = state.schedule.get_last_lr()[-1]
    state.schedule.step()
    if state.ema:
        state.ema.update(state.step)

    loss = distributed.mean_over_processes(loss)
    state.loss_sum += loss
    state.first_bad = torch.where((state.first_bad < 0) & ~loss.isfinite(), state.step, state.first_bad)
    state.step += 1
    if state.device.type == "cpu" or state.step % STEPS_BETWEEN_CHECKS == 0:
        state.check_finite()


def train_epoch(state: TrainingState, after_step: Callable[[], None]) -> Row:
    """The rest of the current epoch; returns its row of the metrics, without validation."""
    state.model.train()
    mark = time.perf_counter()
    for images, labels in state.loader:
        ready = time.perf_counter()
        train_step(state, images, labels)
        done = time.perf_counter()
        state.data_seconds += ready - mark
        state.step_seconds += done - ready
        state.seconds += done - mark
        after_step()
        mark = time.perf_counter()
    steps = len(state.loader)
    loss = state.loss_sum.item() / steps  # waits for the device, so the rest of its queue is step time
    rest = time.perf_counter() - mark
    state.step_seconds += rest
    state.seconds += rest
    state.check_finite()
    seconds = state.data_seconds + state.step_seconds
    row = {"epoch": state.epoch, "step": state.step, "lr": state.lr, "loss": loss, "val_miou": None}
    row |= {"data_s": state.data_seconds / steps, "step_s": state.step_seconds / steps}
    row |= {"images_per_s": steps * state.config.batch_size / seconds, "seconds": seconds}
    state.reset_epoch()
    return row


def validate(state: TrainingState, stop: StopSignals) -> float:
    """mIoU on the validation split; saves the weights as best.safetensors where it is the best so far."""
    start = time.perf_counter()
    options = {"batch_size": state.config.batch_size, "limit": state.config.eval_images or None, "amp": state.amp}
    with stop.at_once():
        miou = evaluate(state.averaged, state.val_set, distributed=True, progress=False, **options).confusion.miou()
    if state.best is None or miou > state.best:
        state.save_weights(state.run.best, miou)
        state.best = miou
    state.seconds += time.perf_counter() - start
    return miou


@dataclass
class TrainResult:
    """A finished run.

    A row of the history holds epoch (finished ones), step, lr, loss, val_miou (share; None without validation), data_s
    and step_s (seconds per step spent waiting for the batch and computing), images_per_s (with both), and seconds (of
    the epoch, with validation).
    """

    run_dir: Path
    config: TrainConfig  # as trained, with the dataset "auto" resolved
    model: nn.Module  # with the weights that the checkpoint rule chose, in evaluation mode on the CPU
    history: list[Row]  # one per epoch
    summary: Row  # the contents of result.json

    @property
    def checkpoint(self) -> Path:
        return checkpoint.find_weights(self.run_dir)


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    results: str | Path | None = None,
    on_epoch: Callable[[Row, nn.Module], None] | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Trains, resumes an interrupted run, or returns a finished one without changing it.

    With `config.devices` above 1 the training runs in new processes; a script then calls this function under
    `if __name__ == "__main__":`. With `config.nodes` above 1 the same call is made on every node, with a run_dir (or
    results) on a disk that all nodes share and MASTER_ADDR, MASTER_PORT, and NODE_RANK in the environment.

    Args:
        run_dir: folder of the run; default: `default_run_dir`.
        results: folder of all results; default: `runs.results_root()`.
        on_epoch: called after the state of an epoch is saved, with its row and the validated (averaged) network. With
            several processes, the first one calls it, so it must be a function of an importable module.
        progress: whether to show a progress bar; None: on a terminal and in a notebook. Each epoch prints one line.

    Raises:
        DatasetError: files of a split are broken; the message names all of them, and nothing has been written.
        ConfigChanged: run_dir holds a run with another recipe or on other data.
        RunLocked: another process trains in run_dir.
        WriteError: a file or folder of the run cannot be written. The same call continues once it can.
        TrainingDiverged, WorkerFailed: the loss is NaN or infinite, or one of several processes failed. The last good
            state stays, and the same call continues from there.
        ValueError: the device is not supported, there are fewer than requested, or the nodes do not know where to meet.
    """
    device = choose_device(config.device, config.devices - 1)  # of the node's last process: checks their number
    if config.replay_check and device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        advice = "set CUBLAS_WORKSPACE_CONFIG=:4096:8 and call torch.use_deterministic_algorithms(True)"
        raise ValueError(f"replay_check needs deterministic mode on a GPU, where equal steps may differ: {advice}")
    first_node = node_rank(config.nodes) == 0
    runs.require_writable(run_dir or results or runs.results_root())  # before the audit of the data, which takes time
    train_set, val_set = open_splits(config)
    if config.dataset == "auto":
        config = config.replace(dataset=train_set.name)  # "auto" would mean something else once CamVid is installed
    data = data_digests(train_set, val_set)
    run = RunDirectory(run_dir or default_run_dir(config, train_set.name, data, results))
    progress = is_interactive() if progress is None else progress
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])  # leaves the caller's generators alone
    with forked, run.lock() if first_node else nullcontext():
        if first_node:
            run.claim(config.recipe(), TrainConfig().recipe(), data)
        summary = runs.read_json(run.result) if run.result.exists() else None
        if summary and summary.get("stopped_by") == "max_minutes":
            has_time = not config.max_minutes or config.max_minutes > summary["max_minutes"]
            summary = None if has_time else summary
        arguments = (config, train_set, val_set, run, on_epoch, progress)
        if summary:
            print(f"{run.path} is already finished; returning it")
        else:
            if first_node:
                checkpoint.load_state(run.state, run.identity(), recover=True)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            where = {**config.only("devices", "nodes"), "backend": backend}
            summary = launch(_run, *arguments, **where) if config.processes > 1 else _run(*arguments)
        model = checkpoint.load_model(run.path)
        return TrainResult(run.path, config, model, runs.read_rows(run.metrics), summary)


def cudnn_search(model: str, device: torch.device) -> AbstractContextManager:
    """Lets cuDNN search for its fastest algorithms, except in deterministic mode, because two searches may end
    differently, and with depthwise convolutions, for which cuDNN 9.19 compiles kernels: over 70 s on an H100."""
    search = not ENCODERS[model].depthwise and not torch.are_deterministic_algorithms_enabled()
    return torch.backends.cudnn.flags(enabled=True, benchmark=search and device.type == "cuda")


def _run(
    config: TrainConfig,
    train_set: SegmentationDataset,
    val_set: SegmentationDataset | None,
    run: RunDirectory,
    on_epoch: Callable[[Row, nn.Module], None] | None,
    progress: bool,
) -> Row:
    """The training of this process, alone or with others; returns the summary of the run."""
    device = choose_device(config.device, distributed.local_rank())
    if device.type == "cpu":
        distributed.keep_freed_memory()
    with cudnn_search(config.model, device):
        state = TrainingState(config, train_set, val_set, device, run)
        with StopSignals() as stop:
            if not (finished := _train_epochs(state, on_epoch, progress, stop)):
                del state.loader  # and its processes, before the signal that stopped the training ends this one
        if not finished:  # another process got the signal, or the caller's handler of it has returned
            raise KeyboardInterrupt("the training was stopped")
        return from_first(state.write_summary() if rank() == 0 else None)


def _train_epochs(
    state: TrainingState, on_epoch: Callable[[Row, nn.Module], None] | None, progress: bool, stop: StopSignals
) -> bool:
    """Trains up to the last epoch that fits into the time budget; False if a signal stopped it, after a save."""
    config, run, first = state.config, state.run, rank() == 0
    if first:
        run.drop_metrics_after(state.epoch - bool(state.row))
        run.record_environment({**runs.environment(), **state.execution, "resumed_at_step": state.step})
    budget = 60 * config.max_minutes or float("inf")
    longest = max((row["seconds"] for row in runs.read_rows(run.metrics)), default=0.0)

    def after_step() -> None:
        bar.update()
        if state.step % len(state.loader) == 0:  # the end of the epoch, where `finish_epoch` comes first
            return
        if 0 < 60 * config.checkpoint_minutes < state.seconds - state.saved_at:
            state.save()
        stop.check()

    def no_time_left() -> bool:
        return from_first(longest > 0 and state.seconds + longest > budget)

    def finish_epoch() -> bool:
        """Validates, records, and saves the epoch that has been trained; returns whether it is the last one."""
        nonlocal longest
        row, trained = state.row, state.seconds
        longest = max(longest, row["seconds"])
        last = state.epoch == config.epochs or no_time_left()
        if config.val_split and (last or state.epoch % config.eval_every == 0):
            if config.processes > 1:  # a process that a signal stops there may keep the first one from saving
                state.save()
            row["val_miou"] = validate(state, stop)
        row["seconds"] += state.seconds - trained
        longest = max(longest, row["seconds"])
        last = last or no_time_left()
        if first:
            runs.append_row(run.metrics, row)  # before the state: a resumed run drops rows its state does not know
        state.row = None
        if last or state.epoch % config.checkpoint_every == 0:
            state.save()
        if first:
            bar.write(_epoch_line(row, state))
            if on_epoch:
                on_epoch(row, state.averaged)
        return last

    look = {"initial": state.step, "unit": "step", "desc": run.path.name}
    with progress_bar(state.total_steps, enabled=progress and first, **look) as bar:
        try:
            last = finish_epoch() if state.row else state.epoch == config.epochs or no_time_left()
            if last and config.val_split and state.best is None:  # interrupted before its first validation
                validate(state, stop)
            while not last:
                stop.check()
                state.row = train_epoch(state, after_step)
                last = finish_epoch()
        except StopRequested:
            if state.seconds > state.saved_at or not run.state.exists():
                state.save()
            if first:
                name = stop.received.name if stop.received else "a signal to another process"
                place = f"stopped by {name} after step {state.step} of {state.total_steps}"
                bar.write(f"{place}: {run.state} holds the state, and the same call continues there")
            return False
    return True


def _epoch_line(row: Row, state: TrainingState) -> str:
    score = "" if row["val_miou"] is None else f"  val mIoU {100 * row['val_miou']:.2f} %"
    if score and state.val_images_seen:
        score += f" ({state.val_images_seen} of {len(state.val_set)} images trained on)"
    return (
        f"epoch {row['epoch']}/{state.config.epochs}  loss {row['loss']:.4f}{score}  lr {row['lr']:.2e}  "
        f"{row['images_per_s']:.1f} images/s  waited {1e3 * row['data_s']:.0f} ms, step {1e3 * row['step_s']:.0f} ms"
    )
