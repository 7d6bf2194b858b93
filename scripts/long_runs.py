"""Measures the memory of long runs and exits with status 1 if one of them grows. Linux only, not part of the tests.

    python scripts/long_runs.py --out results/reliability
    python scripts/long_runs.py training predict          # some of the parts

Each part runs in a process of its own with one thread. Times are minutes of one CPU core:

    training             2,000 steps, 10 epochs, each with a validation and saved states; no loader workers: 5
    training-2-workers   the same with two loader workers: 5
    evaluation           1,000 images of RoadScenes: 3
    inspector-page       500 clicks in the exported page, in the system's Chromium: 1
    inspector-kernel     500 images opened in the widget, without a browser: 2
    predict              a folder of 1,000 pictures: 3

The memory of a part is the proportional set size of its anonymous and shared pages (`Pss_Anon` and `Pss_Shmem` of
`/proc/PID/smaps_rollup`), summed over the process and its children: a page that a loader worker shares with its parent
counts once. Pages of files, such as those of libraries and of mapped weights, don't count, because the kernel drops
them when it needs memory. `inspector-page` is the JavaScript heap after a garbage collection, with the numbers of DOM
nodes and event listeners, and `inspector-browser` the memory of all processes of the browser, where its pictures are.

`memory.csv` gets one row per part and 20 steps, and `memory.png` one panel per part. Growth is the median of the last
tenth of a run minus the median of the tenth that follows its first fifth, in which buffers reach their size. It may be
`LIMIT_MB` or `LIMIT_PERCENT` of the memory, whichever is larger. 10 MB in the remaining 1,600 steps are 6 KB per step;
the smallest tensor of image size in the training, the labels of a batch of two crops of 64 x 96 pixels, takes 12 KB.
In the other parts the limit is 12 KB per image and 25 KB per click, and their smallest picture takes 19 KB. A part that
keeps one image, label, or prediction per step therefore exceeds the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from s2fpn_lib.runs import PROJECT, results_root

SMALL = (120, 160)  # height, width of the pictures in the inspector and in the predicted folder
STRIDE = 20  # steps between two measurements
LIMIT_MB, LIMIT_PERCENT = 10.0, 3.0
COLUMNS = ("part", "step", "mb", "dom_nodes", "listeners")


def process_tree() -> list[Path]:
    """The folders in /proc of this process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parents[stat.parent] = Path("/proc") / stat.read_text().rpartition(")")[2].split()[1]
    found = new = [Path("/proc/self").resolve()]
    while new := [child for child, parent in parents.items() if parent in new]:
        found = found + new
    return found


def memory_mb() -> float:
    """Memory of this process and its descendants in MB; see the top of this file."""
    return sum(map(own_memory_mb, process_tree()))


def browser_mb() -> float:
    """Memory of the descendants of this process in MB."""
    return memory_mb() - own_memory_mb(Path("/proc/self"))


def own_memory_mb(process: Path) -> float:
    """Memory of one process, by its folder in /proc."""
    try:
        lines = [line.split() for line in (process / "smaps_rollup").read_text().splitlines()]
    except OSError:  # ended meanwhile
        return 0.0
    return sum(int(words[1]) for words in lines if words[0] in ("Pss_Anon:", "Pss_Shmem:")) / 1024


class Recorder:
    """Appends a row per `STRIDE` steps to the file of its part."""

    def __init__(self, part: str, path: Path) -> None:
        self.part, self.path, self.steps = part, path, 0

    def step(self, *_: Any) -> None:
        """Counts one step, and measures after every `STRIDE`-th."""
        self.steps += 1
        if self.steps % STRIDE == 0:
            gc.collect()  # garbage that waits for the collector is not a leak
            self.row(self.steps, memory_mb())

    def row(self, *values: float, part: str = "") -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([part or self.part, *values])


def training(recorder: Recorder, work: Path, steps: int, workers: int = 0) -> None:
    """Trains S²-FPN-Lite on crops of RoadScenes with the recipe `quick`."""
    from s2fpn_lib import train as module
    from s2fpn_lib.config import TrainConfig

    original = module.train_step

    def measured_step(*arguments: Any) -> None:
        original(*arguments)
        recorder.step()

    module.train_step = measured_step
    config = TrainConfig.preset(
        "quick",
        dataset="roadscenes",
        device="cpu",
        crop=(64, 96),
        batch_size=2,  # of 400 images: 200 steps per epoch
        epochs=max(1, steps // 200),
        workers=workers,
        eval_every=1,
        eval_images=20,
        checkpoint_minutes=0.2,
        encoder_weights="",
        encoder_lr=0.0,
    )
    module.train(config, run_dir=work / "run", progress=False)


def evaluation(recorder: Recorder, work: Path, steps: int) -> None:
    """Evaluates an untrained network on test scenes that are read from the cache."""
    from s2fpn_lib.data.cache import cached
    from s2fpn_lib.data.roadscenes.dataset import RoadScenes
    from s2fpn_lib.evaluate import evaluate
    from s2fpn_lib.model import build_model

    dataset = cached(RoadScenes("test", count=steps), work / "cache")
    model = build_model("s2fpn_lite", num_classes=dataset.protocol.num_classes).eval()
    evaluate(model, dataset, observer=recorder.step)


def predict(recorder: Recorder, work: Path, steps: int) -> None:
    """Predicts a folder of PNG files with a released network."""
    from PIL import Image

    from s2fpn_lib.checkpoint import load_model
    from s2fpn_lib.data import get_protocol
    from s2fpn_lib.data.roadscenes.dataset import RoadScenes
    from s2fpn_lib.workbench import predict as module

    scenes, pictures = RoadScenes("test", SMALL, count=steps), work / "pictures"
    pictures.mkdir()
    for index, name in enumerate(scenes.names):
        Image.fromarray(scenes.arrays(index)[0]).save(pictures / f"{name}.png", compress_level=1)

    class Bar(contextlib.ExitStack):
        update = staticmethod(recorder.step)

    module.progress_bar = lambda *_, **__: Bar()
    protocol = get_protocol("camvid-segnet-360x480")
    module.predict(load_model("s2fpn_lite-camvid"), pictures, work / "out", protocol, size="own")


def inspector_kernel(recorder: Recorder, work: Path, steps: int) -> None:
    """Opens images of RoadScenes in the widget by their index, as the browser asks for it, and changes the state."""
    from s2fpn_lib.inspector.widget import Inspector

    model, picture, protocol, dataset = shown_in_inspector()
    inspector = Inspector([model], dataset, picture, protocol, size="own", results=work / "31_inspector")
    for step in range(steps):
        errors = []
        send, inspector.send = inspector.send, lambda content, buffers=(): errors.append(content)  # noqa: B023
        inspector._handle_custom_msg({"do": "index", "index": step % len(dataset)}, [])
        inspector.send = send
        assert errors[0]["kind"] == "data", errors
        inspector.shown = {**inspector.shown, "y": 7 * step % SMALL[0], "x": 11 * step % SMALL[1]}
        recorder.step()


def inspector_page(recorder: Recorder, work: Path, steps: int) -> None:
    """Clicks in the exported page; every tenth click also changes the view, and every fifth sets or removes a pin."""
    from playwright.sync_api import sync_playwright

    from s2fpn_lib.inspector import State, inspect
    from s2fpn_lib.inspector.export import export_html

    model, picture, protocol, _ = shown_in_inspector()
    inspection = inspect(model, picture, protocol)
    height, width = inspection.size
    path = export_html(work / "page.html", State(y=height // 2, x=width // 2), [inspection])
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    views = ("prediction", "confidence", "entropy", "margin", "errors", "class probability")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        page = browser.new_page(viewport={"width": 1500, "height": 1500})
        page.goto(path.as_uri())
        canvas = page.locator("canvas.s2fpn-interactive").first
        canvas.wait_for()
        developer = page.context.new_cdp_session(page)
        for command in ("Performance.enable", "HeapProfiler.enable"):
            developer.send(command)
        viewer, random = page.locator(".s2fpn-viewer").first, np.random.default_rng(0)
        for step in range(1, steps + 1):
            drawn = viewer.get_attribute("data-drawn") or "0"
            box = canvas.bounding_box()
            canvas.click(position={"x": random.uniform(1, box["width"] - 1), "y": random.uniform(1, box["height"] - 1)})
            if step % 10 == 0:
                page.get_by_label("view", exact=True).select_option(views[step // 10 % len(views)])
            if step % 5 == 0:
                page.evaluate("viewer.scene.state.pins.length < 4 ? viewer.pin() : viewer.change({ pins: [] })")
            drawn_again = page.wait_for_function("before => viewer.root.dataset.drawn > before", arg=int(drawn))
            drawn_again.dispose()  # else the page keeps the answer for playwright
            if step % STRIDE == 0:
                developer.send("HeapProfiler.collectGarbage")
                found = {each["name"]: each["value"] for each in developer.send("Performance.getMetrics")["metrics"]}
                recorder.row(step, found["JSHeapUsedSize"] / 2**20, found["Nodes"], found["JSEventListeners"])
                recorder.row(step, browser_mb(), part="inspector-browser")
        browser.close()


def shown_in_inspector() -> tuple[Any, Any, Any, Any]:
    """A released network, a picture of RoadScenes, its protocol, and its dataset."""
    from s2fpn_lib.data import get_protocol
    from s2fpn_lib.data.roadscenes.dataset import RoadScenes
    from s2fpn_lib.inspector.state import NamedModel, Picture

    protocol, dataset = get_protocol("camvid-segnet-360x480"), RoadScenes("val", SMALL, count=50)
    picture = Picture.of_dataset(dataset, 0, "own", protocol)
    return NamedModel.load("s2fpn_lite-camvid"), picture, protocol, dataset


def training_2_workers(recorder: Recorder, work: Path, steps: int) -> None:
    training(recorder, work, steps, workers=2)


PARTS = {
    "training": (training, 2000),
    "training-2-workers": (training_2_workers, 2000),
    "evaluation": (evaluation, 1000),
    "inspector-page": (inspector_page, 500),
    "inspector-kernel": (inspector_kernel, 500),
    "predict": (predict, 1000),
}

# What a step is, of each part in the table
UNITS = {
    "training": "steps",
    "training-2-workers": "steps",
    "evaluation": "images",
    "predict": "pictures",
    "inspector-kernel": "images opened",
    "inspector-page": "clicks",
    "inspector-browser": "clicks",
}
TITLES = {"inspector-page": "inspector: JavaScript heap", "inspector-browser": "inspector: browser"}


def growth(steps: list[int], values: list[float]) -> tuple[float, float, float]:
    """Growth of a run after its first fifth, and the slope of its second half.

    steps, values: of N measurements. Returns the growth in the unit of the values, in percent, and the slope of the
    least-squares line per 100 steps.
    """
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    share = steps / steps[-1]
    early, late = np.median(values[(share >= 0.2) & (share <= 0.3)]), np.median(values[share >= 0.9])
    half = share >= 0.5
    slope = np.polyfit(steps[half], values[half], 1)[0]
    return float(late - early), float(100 * (late - early) / early), float(100 * slope)


def judge(part: str, rows: list[dict[str, str]]) -> tuple[str, bool]:
    """A line about the rows of a part, and whether its memory stays within the limit."""
    steps = [int(row["step"]) for row in rows]
    mb, percent, slope = growth(steps, [float(row["mb"]) for row in rows])
    flat = mb <= LIMIT_MB or percent <= LIMIT_PERCENT
    line = f"{part}: {steps[-1]} steps, {float(rows[-1]['mb']):.1f} MB, growth {mb:+.2f} MB ({percent:+.2f} %), "
    line += f"slope of the second half {1024 * slope:+.1f} KB per 100 steps"
    for name in ("dom_nodes", "listeners"):
        if rows[0][name]:
            more, _, _ = growth(steps, [float(row[name]) for row in rows])
            line += f", {float(rows[-1][name]):.0f} {name.replace('_', ' ')} ({more:+.0f})"
            flat = flat and more <= 50
    return f"{line}: {'flat' if flat else 'GROWS'}", flat


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Writes the picture with one panel per part."""
    import matplotlib.pyplot as plt

    from s2fpn_lib.runs import atomic_file
    from s2fpn_lib.viz.style import COLORS, MUTED, STYLE

    parts = [part for part in UNITS if any(row["part"] == part for row in rows)]
    with plt.rc_context(STYLE):
        count = -(-len(parts) // 4)
        figure, axes = plt.subplots(count, 4, figsize=(13, 2.9 * count), layout="constrained", squeeze=False)
        for axis, part in zip(axes.flat, parts, strict=False):
            own = [row for row in rows if row["part"] == part]
            steps, values = [int(row["step"]) for row in own], [float(row["mb"]) for row in own]
            mb, percent, _ = growth(steps, values)
            axis.plot(steps, values, color=COLORS[0])
            axis.axvspan(0, 0.2 * steps[-1], color=MUTED, alpha=0.12, linewidth=0)
            axis.set(
                title=TITLES.get(part, part.replace("-", " ")),
                ylim=(0, 1.25 * max(values)),
                xlim=(0, steps[-1]),
                xlabel=UNITS[part],
                ylabel="MB",
            )
            axis.text(0.97, 0.06, f"growth {mb:+.1f} MB ({percent:+.1f} %)", transform=axis.transAxes, ha="right")
        for axis in axes.flat[len(parts) :]:
            axis.set_axis_off()
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=100)
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("parts", nargs="*", help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=results_root() / "reliability", help="folder of the results")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, to try the script")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # file of rows: run the one part here
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if arguments.child:
        (part,) = arguments.parts
        run, steps = PARTS[part]
        with tempfile.TemporaryDirectory() as work:
            run(Recorder(part, arguments.child), Path(work), int(steps * arguments.share))
        return 0

    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "memory.csv"
    chosen = arguments.parts or list(PARTS)
    renewed = {*chosen, *(["inspector-browser"] if "inspector-page" in chosen else [])}
    kept = [row for row in read_rows(table) if row["part"] not in renewed] if table.exists() else []
    all_flat = True
    for part in chosen:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.csv"
            file.write_text(",".join(COLUMNS) + "\n")
            command = [sys.executable, __file__, part, "--child", file, "--share", str(arguments.share)]
            variables = {**os.environ, "OMP_NUM_THREADS": "1"}
            status = subprocess.run(command, cwd=PROJECT, env=variables, stdout=subprocess.DEVNULL).returncode
            rows = read_rows(file)
        if status:
            print(f"{part}: failed with exit status {status}")
            all_flat = False
            continue
        for name in dict.fromkeys(row["part"] for row in rows):
            line, flat = judge(name, [row for row in rows if row["part"] == name])
            print(line, flush=True)
            all_flat &= flat
        print(f"{part} took {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        kept += rows
        order = list(UNITS)
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(kept, key=lambda row: (order.index(row["part"]), int(row["step"]))))
        draw(kept, arguments.out / "memory.png")
    return 0 if all_flat else 1


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, restval=""))


if __name__ == "__main__":
    sys.exit(main())
