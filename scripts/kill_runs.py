"""Kills trainings at chosen points, lets them finish, and compares them bit for bit with uninterrupted ones.

    python scripts/kill_runs.py --log results/reliability/kills.txt

A small network is trained, and evaluated afterwards, with 0 and with 2 loader workers and in two gloo processes.
SIGKILL comes at each of seven points: while the run starts, in the middle of an epoch, when half of a training state is
written, between the two renames that make it the newest, at the edge of an epoch, during validation, and during the
write of the evaluation. Some kills hit only one of the two gloo processes. After each kill the newest state must be
intact, and no step may be lost that a state had held. In the end the weights, the optimizer, the averaged weights, the
rows of the metrics, the result, and the evaluation must equal those of an uninterrupted run. The exit status is 0 if
all of this holds. `scripts/kill_study.py` kills studies between two notebooks.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from s2fpn_lib import checkpoint, runs
from s2fpn_lib import evaluate as evaluate_module
from s2fpn_lib import state as state_module
from s2fpn_lib import train as train_module
from s2fpn_lib.checkpoint import load_state
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.runs import RunDirectory, read_json, read_rows
from s2fpn_lib.train import TrainConfig, train

PROJECT = Path(__file__).resolve().parent.parent
POINTS = {
    "start": "while the run starts",
    "epoch": "in the middle of an epoch",
    "write": "half of a training state written",
    "renames": "between the renames of a training state",
    "edge": "at the edge of an epoch",
    "validation": "during validation",
    "evaluation": "during the write of the evaluation",
}
SETTINGS = {"0 workers": {}, "2 workers": {"workers": 2}, "2 processes": {"devices": 2}}
TIMES = ("seconds", "data_s", "step_s", "images_per_s", "max_minutes")
VARIABLE = "S2FPN_KILL"  # point:number of the time that the point is reached; workers inherit it


class Scenes(RoadScenes):
    """A few small scenes, held in memory."""

    def __init__(self, split: str):
        super().__init__(split, size=(64, 96), count={"train": 10, "val": 4}[split])
        self.pairs = [super(Scenes, self).arrays(index) for index in range(len(self))]

    def arrays(self, index: int) -> tuple:
        return self.pairs[index]


def configuration(setting: str) -> TrainConfig:
    """Three epochs of five steps with everything on that has state, and a training state after every step."""
    small = {"crop": (32, 48), "batch_size": 2, "epochs": 3, "warmup": 4, "encoder_weights": "", "encoder_lr": 0.0}
    chosen = {"ema": 0.9, "amp": "off", "device": "cpu", "eval_every": 1, "eval_images": 0, "checkpoint_minutes": 1e-6}
    return TrainConfig.preset("quick", dataset="roadscenes", **small, **chosen, **SETTINGS[setting])


def die(number: int) -> None:
    """Kills this process and, if it is a worker of a training and the number is odd, also its launcher."""
    if multiprocessing.parent_process() and number % 2:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, number: int) -> Iterator[Any]:
    """Patches that kill the first process when it reaches the point for the given time."""
    times = itertools.count(1)

    def reached(*_: Any, **__: Any) -> None:
        if os.environ.get("RANK", "0") == "0" and next(times) == number:
            die(number)

    def before(original: Any) -> Any:
        return lambda *args, **kwargs: (reached(), original(*args, **kwargs))[1]

    def after(original: Any) -> Any:
        return lambda *args, **kwargs: (original(*args, **kwargs), reached())[0]

    def half(state: dict, file: io.BufferedIOBase) -> None:
        whole = io.BytesIO()
        torch_save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        reached()
        file.write(whole.getvalue()[len(whole.getvalue()) // 2 :])

    def rename(source: Path, target: Path) -> Path:
        if source.name.startswith(".last.pt"):
            reached()
        return replace(source, target)

    def save(evaluation: Any, path: Path) -> None:
        with mock.patch.object(os, "fsync", reached):  # the temporary file is written, and not yet renamed
            save_evaluation(evaluation, path)

    torch_save, replace, save_evaluation = torch.save, Path.replace, evaluate_module.Evaluation.save
    if point == "start":  # while config.json is written, and before and after the state is built
        yield mock.patch.object(os, "fsync", before(os.fsync))
        yield mock.patch.object(state_module, "build_model", after(before(state_module.build_model)))
    elif point == "epoch":  # the gradients are computed, the weights are not yet changed
        yield mock.patch.object(train_module, "compute_gradients", after(train_module.compute_gradients))
    elif point == "write":
        yield mock.patch.object(checkpoint.torch, "save", half)
    elif point == "renames":
        yield mock.patch.object(Path, "replace", rename)
    elif point == "edge":  # before and after the row of the epoch is written
        yield mock.patch.object(runs, "append_row", after(before(runs.append_row)))
    elif point == "validation":
        yield mock.patch.object(evaluate_module, "predict_logits", before(evaluate_module.predict_logits))
    elif point == "evaluation":
        yield mock.patch.object(evaluate_module.Evaluation, "save", save)


def child(folder: Path, setting: str) -> None:
    """Trains in `folder`, or continues, and evaluates the result."""
    result = train(configuration(setting), run_dir=folder, progress=False)
    if not (folder / "evaluation.json").exists():
        evaluation = evaluate_module.evaluate(result.model, Scenes("val"), progress=False)
        evaluation.save(folder / "evaluation.json")


@cache
def server() -> subprocess.Popen:
    """The process of `serve`; it ends when this one does."""
    command = [sys.executable, __file__, "--serve"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def start(folder: Path, setting: str, kill: str = "") -> tuple[int, str]:
    """Runs `child` in a process of its own, forked from one that has imported all; returns its status and output."""
    print(json.dumps([str(folder), setting, kill]), file=server().stdin, flush=True)
    return tuple(json.loads(server().stdout.readline()))


def serve() -> None:
    """Forks a process for each line of standard input, and prints how it ended."""
    import torch._dynamo  # noqa: F401 as the first step of an optimizer does

    for line in sys.stdin:
        folder, setting, kill = json.loads(line)
        with tempfile.TemporaryFile("w+") as said:
            process = os.fork()
            if not process:
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
                os.environ[VARIABLE] = kill
                prepare()
                return child(Path(folder), setting)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            said.seek(0)
            print(json.dumps([status, said.read()]), flush=True)


def steps(folder: Path) -> int:
    """The steps of the newest state of a run; 0 before the first one. Raises an error if a file is torn."""
    for path in folder.glob("*.json"):
        read_json(path)
    read_rows(RunDirectory(folder).metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the state before it is used, and the steps are counted
        state = load_state(RunDirectory(folder).state)
    return state["step"] if state else 0


def killed(folder: Path, setting: str, point: str, number: int) -> tuple[str, list[str]]:
    """Starts the run with a kill; returns a line about it, and what went wrong."""
    before, begun = (steps(folder) if folder.exists() else 0), time.monotonic()
    status, said = start(folder, setting, f"{point}:{number}")
    held = steps(folder)
    one_process = setting == "2 processes" and number % 2 == 0
    who = "one of two processes" if one_process else "all processes"
    line = f"{setting}, {POINTS[point]} ({who}), after {time.monotonic() - begun:4.1f} s: state at step {held}"
    faults = [] if held >= before else [f"{line}, before it at step {before}"]
    if status != -signal.SIGKILL and "(SIGKILL)" not in said:  # the launcher tells how its process ended
        faults.append(f"{line}: the run was not killed, status {status}: {said[-2000:]}")
    return line, faults


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of nested dicts and lists."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from tensors(each, f"{path}.{key}")
    else:
        yield path, value


def differences(folder: Path, reference: Path) -> list[str]:
    """What differs between two finished runs, but for times."""
    found = []
    for name in ("last.safetensors", "best.safetensors"):
        if (folder / name).read_bytes() != (reference / name).read_bytes():
            found.append(f"{name} has other bytes")
    ours, theirs = ({**load_state(RunDirectory(each).state)} for each in (folder, reference))
    for state in (ours, theirs):
        state.pop("seconds")
        state["this_epoch"] = state["this_epoch"][0]  # the others are times
    ours, theirs = dict(tensors(ours)), dict(tensors(theirs))
    if ours.keys() != theirs.keys():
        found.append(f"the states hold other values: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    for name, value in theirs.items():
        other = ours.get(name)
        if not (torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value):
            found.append(f"the states differ in {name}")
    for name in ("metrics.jsonl", "result.json", "evaluation.json"):
        rows = [read_rows(each / name) if "jsonl" in name else [read_json(each / name)] for each in (folder, reference)]
        first, second = ([{k: v for k, v in row.items() if k not in TIMES} for row in side] for side in rows)
        if first != second:
            found.append(f"{name}: {str(first)[:300]} instead of {str(second)[:300]}")
    left = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
    return [*found, *([f"left over {left}"] if left else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=4, help="kills at each point in each setting")
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS], choices=SETTINGS)
    parser.add_argument("--points", nargs="+", default=[*POINTS], choices=POINTS)
    parser.add_argument("--log", type=Path, default=PROJECT / "results" / "reliability" / "kills.txt")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return 0
    given.log.parent.mkdir(parents=True, exist_ok=True)
    moments, count, faults = random.Random(0), 0, []
    with given.log.open("w") as log, tempfile.TemporaryDirectory(prefix="kill-runs-") as temporary:

        def say(text: str) -> None:
            line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {text}"
            print(line, file=log, flush=True)
            print(line, flush=True)

        work = Path(temporary)
        for setting in given.settings:
            reference = work / setting.replace(" ", "-")
            status, said = start(reference, setting)
            say(f"{setting}: reference, not interrupted, status {status}, step {steps(reference)}")
            if status:
                faults.append(f"{setting}: the reference ends with status {status}: {said[-2000:]}")
                continue
            for point in given.points:
                folder = work / f"{reference.name}-{point}"
                for _ in range(given.each):
                    count += 1
                    # later ones would come after the end: each process validates one batch per epoch
                    last = 1 if point == "evaluation" or (point, setting) == ("validation", "2 processes") else 3
                    most = 2 if point == "edge" else last
                    line, found = killed(folder, setting, point, moments.randint(1, most))
                    say(f"kill {count}: {line}")
                    faults += found
                status, said = start(folder, setting)
                found = differences(folder, reference) if not status else [f"status {status}: {said[-2000:]}"]
                say(f"{setting}, {POINTS[point]}: finished, {len(found)} differences to the reference")
                faults += [f"{setting}, {point}: {each}" for each in found]
        for fault in faults:
            say(f"FAULT {fault}")
        say(f"{count} kills: {f'{len(faults)} faults' if faults else 'no run was lost, all are equal to the bit'}")
    return 1 if faults else 0


def prepare() -> None:
    """Small data and one code version for the run; a kill, if the variable names one."""
    state_module.open_dataset = lambda name, root=None, split="train": Scenes(split)
    runs.code_version = lambda: {"git_sha": "0" * 40, "dirty": False}  # a commit meanwhile would be in the metadata
    if os.environ[VARIABLE]:
        point, _, number = os.environ[VARIABLE].partition(":")
        for patch in arm(point, int(number)):
            patch.start()


if VARIABLE in os.environ:  # in the processes of a distributed training, which import this file
    prepare()
if __name__ == "__main__":
    sys.exit(main())
