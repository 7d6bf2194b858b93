"""What is worth doing on a GPU that is at hand for a few minutes, unattended:

    python -m s2fpn_lib.benchmark.gpu --minutes 9 --out results/gpu --data data

Parts: "right" (the tests marked cuda), "fast" (`benchmark.ways`: times), "train" (the presets `STAGES`), and
"summary" (a page). The first three do the most telling first, and each row is in a file of `--out` as soon as it is
known. What a part leaves of its share of the minutes goes to the next ones. A task that fails is recorded in
tasks.jsonl, and the part goes on, in a new process where the error has broken the GPU's context.
"""

import argparse
import contextlib
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from s2fpn_lib.benchmark import ways
from s2fpn_lib.checkpoint import load_state, save_weights
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import evenly_spaced
from s2fpn_lib.data.download import unpack
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import PROJECT, append_row, atomic_file, environment, read_rows, write_atomic
from s2fpn_lib.state import open_splits
from s2fpn_lib.train import train
from s2fpn_lib.viz.images import prediction_views

SHARES = {"right": 2.0, "fast": 3.0, "train": 4.0}  # of the minutes
NAMES = (*SHARES, "summary")
BROKEN = 77  # exit status of a process whose GPU no longer answers
RESERVE = 10.0  # seconds of the budget for the start and the end
# Of the training: presets, each from the weights of the one before, and their shares of the time that is left
STAGES = {"lite-camvid-gpu-own": 0.5, "lite-camvid-gpu": 1.0}
# On a CPU the same code runs on a small network and few small crops
SMALL = {"model": "s2fpn_lite", "crop": (32, 48), "batch_size": 16, "workers": 0, "compile": False, "eval_images": 4}
SMALL |= {"dataset": "roadscenes", "train_split": "train:drive=park", "val_split": "val:drive=park"}
SLACK = 0.9  # share of the time to plan with
MEASURED = 4  # epochs; the first one starts processes and loads kernels
# Of the page
FILES = ("tasks", "right", "speed", "training", "loader", "train", "failed")
TIMES = ["p50_ms", "spread", "ratio", "ratio_low", "ratio_high"]
PLACE = ["network", "size", "batch"]
WORDS = {"p50_ms": "ms", "ratio": "times published", "ratio_low": "lowest", "ratio_high": "highest", "miou": "mean IoU"}
WORDS |= {"fps": "images per second", "images_per_s": "images per second", "samples_per_s": "samples per second"}
WORDS |= {"peak_mb": "peak MB", "max_difference": "difference of logits", "images_seen": "scored images trained on"}


def main(arguments: list[str] | None = None) -> None:
    """The command: divides the minutes between the parts."""
    started = time.monotonic() - own_age()
    parser = argparse.ArgumentParser(prog="python -m s2fpn_lib.benchmark.gpu", description="Use a GPU for some minutes")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget of all parts together")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder that holds camvid/, or its archives; else RoadScenes")
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=NAMES, help="what to do; default: everything")
    parser.add_argument("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="of the training; default: the preset's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    options = parser.parse_args(arguments)
    stop = threading.Timer(60 * options.minutes - (time.monotonic() - started), os._exit, (1,))
    stop.daemon = True
    stop.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.splits:
        os.environ["S2FPN_GPU_SPLITS"] = "\n".join(options.splits)
    computing = [part for part in options.parts if part != "summary"]
    if computing:
        log = options.out / "tasks.jsonl"
        log.unlink(missing_ok=True)  # tasks that it names are not started again
        append_row(log, {"part": "", "task": "environment", "status": "done", **environment()})
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            os.environ["S2FPN_DATA"] = str(unpacked(options.data, Path(folder)).resolve())
        for number, part in enumerate(computing):
            left = 60 * options.minutes - RESERVE - (time.monotonic() - started)
            supervise(part, options.out, options.device, left * SHARES[part] / sum(map(SHARES.get, computing[number:])))
            if "summary" in options.parts:  # after each part, in case that something ends this process
                write_page(options.out)
    if not computing:
        write_page(options.out)
    stop.cancel()


def own_age() -> float:
    """Seconds since this process was started, importing included; 0 where there is no /proc."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def unpacked(data: Path, folder: Path) -> Path:
    """`data`, or `folder` with the contents of the archive, or of the archives in the folder, that it names."""
    archives = [data] if data.is_file() else sorted(data.glob("*.zip"))
    for path in archives:
        unpack(path, folder)
    return folder if archives else data


def supervise(part: str, out: Path, device: str, seconds: float) -> None:
    """Runs a part in a process, anew where that breaks, and ends it with all its children after `seconds`."""
    end, log, done = time.monotonic() + seconds, out / "tasks.jsonl", {"part": part, "task": ""}
    paths = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": paths, "S2FPN_TEST_DEVICE": device, "S2FPN_GPU_ROWS": str(out.resolve())}
    while (left := end - time.monotonic()) > 0:
        print(f"{part}: {left:.0f} s", flush=True)
        arguments = part, str(out.resolve()), device, time.time() + left
        # without waiting at the end for the threads of a backend
        code = f"import os; from s2fpn_lib.benchmark import gpu; gpu.run_part(*{arguments}); os._exit(0)"
        options = marked_tests() if part == "right" else ["-c", code]
        command = [sys.executable, *options]
        process = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **variables}, start_new_session=True)
        try:
            status = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            append_row(log, {**done, "status": "stopped: its share of the time was used"})
            return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        broken = status < 0 or status == BROKEN
        append_row(log, {**done, "status": "done" if status == 0 else f"exit status {status}" + ", again" * broken})
        if not broken:
            return


def marked_tests() -> list[str]:
    """Arguments of Python for the tests marked cuda; other test files may import what a GPU machine lacks."""
    first = PROJECT / "tests" / "test_cuda.py"
    rest = (path for path in sorted((PROJECT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text())
    files = dict.fromkeys(map(str, (first, *rest)))
    options = ["-m", "cuda", "-q", "--continue-on-collection-errors", "-p", "tests.gpu_rows", "-p", "no:cacheprovider"]
    return ["-m", "pytest", *options, *files]


def run_part(part: str, out: str | Path, device: str, until: float) -> None:
    """Runs the tasks of a part that tasks.jsonl does not name yet, until time.time() is `until`."""
    out, end = Path(out), time.monotonic() + until - time.time()
    log, target = out / "tasks.jsonl", torch.device(device)
    attempted = {row["task"] for row in read_rows(log) if row["part"] == part}
    for name, (needed, task) in TASKS[part](target, end, out).items():
        entry, start = {"part": part, "task": name}, time.monotonic()
        if name in attempted:
            continue
        if end - start < needed:
            append_row(log, {**entry, "status": f"left out: needs about {needed} s of {end - start:.0f}"})
            continue
        append_row(log, {**entry, "status": "started"})
        try:
            for file, row in task():
                append_row(out / file, row)
                print(f"  {name}: {' '.join(str(value) for value in row.values())[:150]}", flush=True)
            entry["status"] = "done"
        except Exception as error:
            entry |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:1000]}
            entry["where"] = traceback.format_exc(limit=-3)[-1500:]
            print(f"  {name}: {entry['error'][:300]}", flush=True)
        append_row(log, {**entry, "seconds": round(time.monotonic() - start, 1)})
        if entry["status"] == "failed":
            leave_if_broken()
        torch._dynamo.reset()  # otherwise it compiles the code of a module only a few times


def leave_if_broken() -> None:
    """Ends this process if its GPU no longer answers; an ordinary end would wait for it."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            os._exit(BROKEN)


def train_stage(stage: str, device: torch.device, end: float, out: Path) -> ways.Rows:
    """Trains one preset in a folder of its own, with its evaluation and a picture; yields its summary and scores."""
    ways.allow_tf32(True)
    began = time.monotonic()
    seconds = STAGES[stage] * (end - began)
    earlier = [out / each for each in STAGES if each != stage and (out / each / "result.json").exists()]
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    changes = {"dataset": "auto", "workers": workers} if device.type == "cuda" else SMALL
    splits = zip(("train_split", "val_split"), os.environ.get("S2FPN_GPU_SPLITS", "").splitlines(), strict=False)
    changes = {**changes, **dict(splits)}
    preset = partial(TrainConfig.preset, stage, **changes, device=str(device))
    start = {"init_from": str(earlier[-1])} if earlier else {"encoder_weights": encoder_weights(preset().model)}
    config, planned = fitted(preset(**start), seconds)
    left = seconds - (time.monotonic() - began)
    result = train(config.replace(max_minutes=left / 60), run_dir=out / stage, progress=False)
    _, val_set = open_splits(config)
    model = result.model.to(device)
    evaluation = evaluate(model, val_set, batch_size=8, limit=config.eval_images or None, progress=False)
    evaluation.provenance |= {"checkpoint": result.checkpoint.name, "model": config.model, "seed": config.seed}
    evaluation.save(result.run_dir / "evaluation.json")
    rows = [np.concatenate(prediction_views(model, val_set, i), axis=1) for i in evenly_spaced(len(val_set), 5)]
    with atomic_file(result.run_dir / "predictions.png") as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")
    save_weights(model, result.run_dir / "averaged-fp16.safetensors", model.metadata, half=True)
    if state := load_state(result.run_dir / "last.pt"):  # none where an earlier call has finished the run
        model.load_state_dict(state["model"])
        save_weights(model, result.run_dir / "last-fp16.safetensors", model.metadata, half=True)  # not averaged
    for path in result.run_dir.glob("*.pt"):
        path.unlink()
    yield "train.jsonl", {"preset": stage, **planned, **result.summary, **evaluation.row()}


def encoder_weights(model: str) -> str:
    """The first that fits of the .pth files in the data's folder and the installed package "imagenet"; else none."""
    for source in (*sorted(Path(os.environ.get("S2FPN_DATA", "data")).glob("*.pth")), "imagenet"):
        with contextlib.suppress(ImportError, RuntimeError, OSError):
            build_model(model, num_classes=2, encoder_weights=source)
            return str(source)
    return ""


def fitted(config: TrainConfig, seconds: float) -> tuple[TrainConfig, dict[str, float]]:
    """The configuration with as many epochs as fit into `seconds`, and the measured times; ValueError for none."""
    began = time.monotonic()
    short = config.replace(epochs=MEASURED, eval_every=1, max_minutes=seconds / 240)
    with tempfile.TemporaryDirectory() as folder:
        history = train(short, run_dir=folder, progress=False).history
    measuring = time.monotonic() - began
    later, images = history[1:] or history, config.batch_size * history[0]["step"]
    epoch = statistics.median(row["seconds"] for row in later)  # with its validation
    training = statistics.median(images / row["images_per_s"] for row in later)
    start_up, validation = measuring - epoch * len(history), epoch - training
    left = SLACK * (seconds - measuring - start_up) - 2 * validation
    epochs = int(left / (training + validation / config.eval_every))
    if epochs < 1:
        needed = (training + start_up + 3 * validation) / SLACK + measuring
        raise ValueError(f"{seconds:.0f} s are too few for an epoch of {training:.2f} s, which needs {needed:.0f} s")
    planned = {"seconds_given": seconds, "epoch": training, "start_up": start_up, "validation": validation}
    eval_every = min(config.eval_every, max(1, epochs // 4))
    return config.replace(epochs=epochs, eval_every=eval_every), {key: round(v, 3) for key, v in planned.items()}


TASKS = {  # of each part, one per way and one per stage
    "fast": ways.tasks,
    "train": lambda *given: {stage: (5.0, partial(train_stage, stage, *given)) for stage in STAGES},
}


def write_page(out: Path) -> None:
    """Writes summary.html, a chart and tables of the rows that are in `out`; files of rows may be missing."""
    import pandas as pd

    frames = (pd.DataFrame(read_rows(out / f"{name}.jsonl")) for name in FILES)
    log, right, speed, training, loader, stages, failed = frames
    about = log.iloc[0]
    parts = ["<h1>GPU results</h1>", ", ".join([*about["gpus"], escape(about["cpu"]), about["torch"], about["time"]])]
    if len(right):
        parts.append(f"<h2>Is it right?</h2>{right['ok'].sum()} of {len(right)} checks passed.")
        right["largest difference"] = right.get("relative")
        columns = {"passed": ("ok", "sum"), "of": ("ok", "size"), "largest difference": ("largest difference", "max")}
        parts.append(table("", right.groupby("check", sort=False).agg(**columns).reset_index()))
        parts.append(table("<h3>Not passed</h3>", right[~right["ok"]].dropna(axis=1, how="all")))
    for rows in filter(len, (speed, training)):
        rows["size"] = rows["height"].astype(str) + "x" + rows["width"].astype(str)
    if len(speed):
        size = speed["size"][0]  # the plan starts with the most telling one
        speed = speed.assign(network=speed["network"] + " " + speed["revision"])
        speed["way"] = speed["backend"] + " " + speed["precision"]
        speed = speed.sort_values([*PLACE, "stage", "ratio"]).drop_duplicates([*PLACE, "stage", "way"], keep="last")
        network = speed[speed["stage"] == "network"]
        parts.append("<h2>How fast is it?</h2>Ratios are to the published way in TF32." + chart(network, size))
        best = network.drop_duplicates(PLACE, keep="last")
        parts.append(table("<h3>The fastest ways</h3>", best, [*PLACE, "way", *TIMES, "fps", "peak_mb"]))
        parts.append(table("<h3>All ways</h3>", speed, ["stage", *PLACE, "way", *TIMES, "max_difference"]))
    parts.append(table("<h2>Training step</h2>", training, [*PLACE, "way", *TIMES, "images_per_s", "peak_mb"]))
    parts.append(table("<h3>Loader</h3>", loader, ["way", "workers", "batch", "p50_ms", "samples_per_s"]))
    known = ["preset", "dataset", "model", "epochs", "steps", "seconds", "images_per_s", "miou", "images_seen"]
    parts.append(table("<h2>Training</h2>", stages, known))
    parts += [f'<h3>{each}</h3><img src="{each}/predictions.png">' for each in stages.get("preset", ())]
    problems = log[~log["status"].isin(["started", "done"])].reindex(columns=["part", "task", "status", "error"])
    parts.append(table("<h2>What failed or was left out</h2>", problems) + table("", failed))
    css = Path(__file__).with_name("summary.css").read_text()
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>GPU results</title><style>{css}</style>"
    write_atomic(out / "summary.html", head + "\n".join(parts))


def table(title: str, rows: Any, columns: list[str] | None = None) -> str:
    """`title` and the rows' `columns` (None: all) in words; nothing where there are no rows."""
    if rows.empty:
        return ""
    rows = (rows.reindex(columns=columns) if columns else rows).rename(columns=WORDS)
    return title + rows.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}", na_rep="")


def chart(rows: Any, size: str) -> str:
    """Images per second of each way, one panel per network, at `size` and the smallest batch size, as SVG."""
    import matplotlib.pyplot as plt

    from s2fpn_lib.viz.style import COLORS, STYLE

    rows = rows[(rows["size"] == size) & (rows["batch"] == rows["batch"].min())]
    wide, file = rows.pivot(index="way", columns="network", values="fps"), io.StringIO()
    with plt.rc_context({**STYLE, "svg.fonttype": "none", "figure.constrained_layout.use": True}):
        options = {"subplots": True, "sharex": False, "legend": False, "color": COLORS[0], "width": 0.8, "ylabel": ""}
        size_in = (9, 0.9 + 0.3 * wide.size)
        for axis in wide.plot.barh(figsize=size_in, xlabel=f"images per second at {size}", **options):
            axis.bar_label(axis.containers[0], fmt="%.0f", padding=4)
            axis.margins(x=0.1)
        plt.gcf().savefig(file, format="svg")
        plt.close()
    return file.getvalue().partition("?>\n")[2]


if __name__ == "__main__":
    main()
