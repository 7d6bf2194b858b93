"""31_inspector in JupyterLab, the exported page, and the saved notebook in a real browser.

Pictures, clicks, keys, and announced text are compared with the pure functions of `s2fpn_lib.inspector`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import psutil
import pytest
import torch
from ipywidgets import Widget
from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import Locator, Page, TimeoutError, expect

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.inspector import State, inspect, readout, render, render_level, widget
from s2fpn_lib.inspector.export import export_html
from s2fpn_lib.inspector.numbers import Readout
from s2fpn_lib.inspector.state import Inspection, NamedModel, Picture
from s2fpn_lib.inspector.widget import Inspector
from s2fpn_lib.runs import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "31_inspector.ipynb"
RELEASED, INDEX = "s2fpn_lite-camvid-train", 1  # what the notebook shows first
SECOND = "s2fpn_lite-camvid-v1"
PROTOCOL = get_protocol("camvid-segnet-360x480")
START, COMPUTE, ANSWER = 90, 200_000, 60_000  # timeouts: s for the server, ms for the kernel's work and for a click

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def inspected(name: str, index: int) -> Inspection:
    picture = Picture.of_dataset(open_dataset("roadscenes", split="val"), index, "protocol", PROTOCOL)
    return inspect(NamedModel.load(name), picture, PROTOCOL)


@pytest.fixture(scope="module")
def inspection():
    """What the notebook shows first if CamVid is not found."""
    return inspected(RELEASED, INDEX)


class Lab(NamedTuple):
    """A running JupyterLab: its process, its port, its token, and the URL of the notebook in it."""

    process: subprocess.Popen
    port: int
    token: str
    url: str


def make_lab(options: str = "") -> list[str]:
    """The words of the command with which `make lab LAB=options` starts JupyterLab."""
    command = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "lab", f"LAB={options}"]
    printed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return shlex.split(printed)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab as `make lab` starts it, with its own port, token, and folders, which ends with its kernels.

    The user's settings of Jupyter there would open the server to all machines.
    """
    folder = tmp_path_factory.mktemp("lab")
    work = folder / "work"
    work.mkdir()
    shutil.copy(NOTEBOOK, work)
    # no dialog about news, and cells below the window stay in the page
    for extension, file, settings in (
        ("apputils-extension", "notification", {"fetchNews": "false"}),
        ("notebook-extension", "tracker", {"windowingMode": "none"}),
    ):
        path = folder / "settings" / "@jupyterlab" / extension / f"{file}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))
    (folder / "config").mkdir()
    (folder / "config" / "jupyter_server_config.py").write_text('c.ServerApp.ip = "0.0.0.0"\n')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    variables = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
        "S2FPN_RESULTS": "results", "S2FPN_DATA": "no-data",
    }  # fmt: skip
    options = [
        "--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={work}",
        "--ServerApp.allow_root=True", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures as pictures
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, *make_lab(shlex.join(options))[1:]],
            env={
                **inherited,
                **{name: str(folder / value) for name, value in variables.items()},
                "JUPYTER_TOKEN": token,
            },
            cwd=work,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, log)
        yield Lab(server, port, token, f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token={token}")
    finally:
        server.terminate()  # also ends its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)


def click(canvas: Locator, y: int, x: int, size: tuple[int, int]) -> None:
    """Clicks the center of the image's pixel (y, x)."""
    box = canvas.bounding_box()
    canvas.click(position={"x": (x + 0.5) / size[1] * box["width"], "y": (y + 0.5) / size[0] * box["height"]})


def picture(canvas: Locator) -> np.ndarray:
    """Pixels of the canvas, (h, w, 3)."""
    url = canvas.evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def drawn_as(canvas: Locator, expected: np.ndarray) -> None:
    """Waits until the canvas shows `expected`, apart from what JPEG changes."""
    deadline = time.monotonic() + ANSWER / 1000
    while True:
        found = picture(canvas)
        difference = np.abs(found.astype(int) - expected).mean() if found.shape == expected.shape else np.inf
        if difference < 3:
            return
        assert time.monotonic() < deadline, f"the picture differs from the expected one by {difference:.1f}"
        time.sleep(0.2)


def run_all(page: Page, address: str) -> Locator:
    """Opens the notebook, chooses Run All from the menu, and waits for the inspector's picture."""
    dialogs = []

    def accept(dialog: Locator) -> None:
        """Accepts the default, for example of the dialog that asks on a busy machine which kernel to start."""
        dialogs.append(dialog.inner_text())
        page.keyboard.press("Enter")

    page.add_locator_handler(page.locator("dialog.jp-Dialog"), accept)
    page.goto(address, timeout=COMPUTE)
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for(
        timeout=COMPUTE
    )  # "No Kernel" also counts as idle
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=COMPUTE)
    started = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(3):  # JupyterLab ignores requests between the kernel's first reply and the end of its setup
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        with contextlib.suppress(TimeoutError):
            started.wait_for(timeout=15_000)
            break
    assert not any("died" in text for text in dialogs), f"the notebook's kernel: {dialogs}"
    canvas = page.locator("canvas.s2fpn-interactive")
    canvas.wait_for(timeout=COMPUTE)
    return canvas


def says(page: Page, *found: Readout) -> None:
    """Waits until the live region has the sentences of the readouts."""
    expect(page.locator(".s2fpn-live")).to_have_text(" ".join(each.sentence() for each in found), timeout=ANSWER)


def test_make_lab_listens_on_this_machine_alone_and_wants_its_token(lab):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(lab.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == lab.port
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}
    address = f"http://127.0.0.1:{lab.port}/api/contents"
    for wrong in ("", "?token=", "?token=wrong"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address + wrong, timeout=20)
    with urllib.request.urlopen(f"{address}?token={lab.token}", timeout=20) as answer:
        assert NOTEBOOK.name in {entry["name"] for entry in json.load(answer)["content"]}


def test_make_lab_sets_no_token_and_takes_another_address_only_from_its_user():
    assert "--ServerApp.ip=localhost" in make_lab()
    assert [word for word in make_lab() if "token" in word or "password" in word] == []
    for options in ("--ip 0.0.0.0", "--ServerApp.ip=0.0.0.0"):
        assert "--ServerApp.ip=localhost" not in make_lab(options)
    assert make_lab("--no-browser --port 8890")[-3:] == ["--no-browser", "--port", "8890"]


def test_notebook_in_jupyterlab(page, lab, inspection, capsys):
    page.set_viewport_size({"width": 1440, "height": 900})
    canvas = run_all(page, lab.url)
    size = inspection.size
    opening = State(y=int(0.58 * size[0]), x=int(0.35 * size[1]))
    says(page, readout(opening, inspection))
    drawn_as(canvas, render(opening, inspection))
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=COMPUTE)
    page.wait_for_timeout(1500)  # the last scrolling
    for part in (".s2fpn-strip", ".s2fpn-main-frame", ".s2fpn-readout", ".s2fpn-legend", ".s2fpn-note"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 60, f"{part} is above the notebook's area"
        assert box["y"] + box["height"] <= 900, f"{part} is below the window"

    check_clicks(page, canvas, inspection)
    check_views(page, canvas, inspection)
    with capsys.disabled():
        print(f"\na click repaints everything in {median_repaint(page, canvas, size):.0f} ms (median of 20)")
    check_requests(page, inspection)
    assert page.locator(".s2fpn-error").count() == 0
    page.get_by_role("button", name="Own files").click()
    page.get_by_placeholder("path of an image").fill("nowhere.png")
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator(".s2fpn-error")).to_contain_text("Opening the image failed. nowhere.png", timeout=COMPUTE)
    expect(page.locator(".s2fpn-error")).to_contain_text("What to do: Check the path of the image")
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0


def check_clicks(page: Page, canvas: Locator, inspection: Inspection) -> None:
    """Clicks, keys, hidden classes, and the numeric fields; the column attention is that of the chosen pixel."""
    shown = []
    for y, x in ((60, 420), (100, 240)):
        click(canvas, y, x, inspection.size)
        state = State(y=y, x=x)
        found = readout(state, inspection)
        says(page, found)
        levels = page.locator(".s2fpn-level canvas.s2fpn-picture").all()
        for index, (level, picture) in enumerate(zip(found.levels, levels, strict=True)):
            assert picture.get_attribute("aria-label") == level.sentence()
            drawn_as(picture, render_level(state, inspection, index))
        shown.append([level.top for level in found.levels])
    assert all(one != two for one, two in zip(*shown, strict=True)), "a click changes the column attention"
    expect(page.locator(".s2fpn-readout")).to_contain_text("row 100, column 240")
    drawn_as(canvas, render(state, inspection))

    assert canvas.evaluate("canvas => canvas === document.activeElement"), "a click gives the keyboard to the picture"
    frame = page.locator(".s2fpn-main-frame")
    assert frame.evaluate("frame => getComputedStyle(frame).outlineStyle") == "solid", "focus is visible"
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    state = State(y=110, x=242)
    says(page, readout(state, inspection))

    without_sky = replace(state, hidden=frozenset({PROTOCOL.classes.index("Sky")}))
    page.get_by_role("checkbox", name="Sky", exact=True).uncheck()
    drawn_as(canvas, render(without_sky, inspection))
    assert np.abs(render(state, inspection).astype(int) - render(without_sky, inspection)).mean() > 3
    page.get_by_role("button", name="all", exact=True).click()

    row = page.get_by_label("row y")
    row.fill("20")
    row.press("Enter")
    expect(page.locator(".s2fpn-live")).to_have_text(re.compile("^Row 20, column 242: "), timeout=ANSWER)


def check_views(page: Page, canvas: Locator, inspection: Inspection) -> None:
    """The views with a scale, the threshold, and the wipe."""
    state = State(y=20, x=242)
    choose = page.get_by_label("view", exact=True).select_option
    for view in ("entropy", "margin", "errors"):
        choose(view)
        drawn_as(canvas, render(replace(state, view=view), inspection))
        expect(page.locator(".s2fpn-scale")).to_contain_text({"errors": "wrong"}.get(view, view))
    choose("class probability")
    page.get_by_label("class", exact=True).select_option(label="Road")
    threshold = page.get_by_label("threshold")
    for value in (0.0, 0.9):
        threshold.fill(str(value))
        state = replace(state, view="class probability", shown_class=PROTOCOL.classes.index("Road"), threshold=value)
        drawn_as(canvas, render(state, inspection))
    share = float((inspection.probabilities[state.shown_class] >= 0.9).float().mean())
    found = re.search(r"([\d.]+)% of the pixels have at least 90%", page.locator(".s2fpn-scale").inner_text())
    assert float(found[1]) == pytest.approx(100 * share, abs=0.5)

    page.get_by_label("wipe from").select_option("image")
    divider = page.get_by_role("slider", name="Divider of the wipe")
    divider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    drawn_as(canvas, render(replace(state, before="image", wipe=0.4), inspection))
    box = page.locator(".s2fpn-main-frame").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 30, steps=4)
    page.mouse.up()
    drawn_as(canvas, render(replace(state, before="image", wipe=0.8), inspection))
    page.get_by_label("wipe from").select_option("")
    choose("prediction")


def median_repaint(page: Page, canvas: Locator, size: tuple[int, int]) -> float:
    """ms from a click until the browser has painted all pictures and the readout, median of 20 clicks."""
    viewer, times = page.locator(".s2fpn-viewer"), []
    for y, x in zip(range(10, 350, 17), range(5, 475, 23), strict=False):
        drawn = viewer.get_attribute("data-drawn")
        click(canvas, y, x, size)
        expect(viewer).not_to_have_attribute("data-drawn", drawn, timeout=ANSWER)
        expect(page.locator(".s2fpn-live")).to_have_text(re.compile(f"^Row {y}, column {x}: "), timeout=ANSWER)
        times.append(float(viewer.get_attribute("data-repaint-ms")))
    assert len(times) == 20
    return float(np.median(times))


def check_requests(page: Page, inspection: Inspection) -> None:
    """What the kernel does: another image by its thumbnail, scores, the second model, export with a download."""
    page.locator(".s2fpn-strip img").nth(1).wait_for(timeout=COMPUTE)
    other = next(
        int(re.match(r"image (\d+), ", thumb.get_attribute("title"))[1])
        for thumb in page.locator(".s2fpn-thumb").all()
        if not thumb.get_attribute("title").startswith(f"image {INDEX}, ")
    )
    page.locator(f'.s2fpn-thumb[title^="image {other}, "]').click()
    expect(page.get_by_label("image", exact=True)).to_have_value(str(other), timeout=COMPUTE)
    pixel = {name: int(page.get_by_label(label).input_value()) for name, label in (("y", "row y"), ("x", "column x"))}
    one, two = inspected(RELEASED, other), inspected(SECOND, other)
    says(page, readout(State(**pixel), one))

    page.get_by_label("second model").select_option(SECOND)
    expect(page.locator(".s2fpn-model")).to_have_count(2, timeout=COMPUTE)
    says(page, readout(State(**pixel), one), readout(State(**pixel), two))
    for view in ("disagreement", "total variation"):
        page.get_by_label("view", exact=True).select_option(view)
        drawn_as(page.locator("canvas.s2fpn-interactive").first, render(State(**pixel, view=view), one, two))
    expect(page.locator(".s2fpn-thumb span").first).to_have_text(re.compile(r"^\d+\.\d%$"), timeout=COMPUTE)
    scores = [text for text in page.locator(".s2fpn-thumb span").all_inner_texts() if text.endswith("%")]
    assert scores == sorted(scores, key=lambda text: float(text[:-1])), "the worst image is first"

    page.get_by_role("button", name="Export").click()
    link = page.get_by_role("link", name="Download")
    link.wait_for(timeout=COMPUTE)
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename.endswith(".html")
    assert "<!doctype html>" in Path(download.value.path()).read_text()[:100]


@pytest.mark.parametrize("state_saved", [True, False])
def test_saved_notebook_shows_the_still_figure(page, inspection, state_saved, tmp_path, monkeypatch):
    """Converted to HTML, with and without the state of the widget, which a browser cannot draw without a kernel."""
    outputs = []
    monkeypatch.setattr(widget, "display", lambda value, **_: outputs.append(value))
    dataset, _ = inspection.picture.sample
    shown = Inspector([inspection.model], dataset, inspection.picture, PROTOCOL, results=tmp_path)
    shown._ipython_display_()
    cell = nbformat.v4.new_code_cell("inspector")
    bundles = (outputs[0], {"text/html": outputs[1].data, "text/plain": "<HTML>"})
    cell.outputs = [nbformat.v4.new_output("display_data", bundle) for bundle in bundles]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    if state_saved:
        notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": Widget.get_manager_state()}
    path = tmp_path / "saved.html"
    path.write_text(HTMLExporter().from_notebook_node(notebook)[0])
    page.context.set_offline(True)
    page.goto(path.as_uri(), wait_until="domcontentloaded")
    pictures = page.locator(".jp-OutputArea img:visible")
    expect(pictures).to_have_count(1)
    assert pictures.bounding_box()["width"] > 500
    assert "Inspector(" not in page.locator(".jp-OutputArea").first.inner_text()


@pytest.fixture(scope="module")
def exported(inspection, tmp_path_factory: pytest.TempPathFactory):
    """A page with a v1 and a v2 network, and both inspections."""
    second = replace(inspection, model=replace(inspection.model, name="second <v2>"))
    both = inspected(SECOND, INDEX), second
    path = tmp_path_factory.mktemp("export") / "page.html"
    state = State(y=208, x=168, pins=((208, 168),))
    return export_html(path, state, both), both


def test_names_in_an_exported_page_are_text(page, inspection, tmp_path):
    """Names of classes, image, and model with markup are shown as they are: no element, no script."""
    harm = '<img src=x onerror="harm=1"></script><script>harm=1</script><svg onload="harm=1">'
    classes = tuple(f"{harm}{number}" for number in range(PROTOCOL.num_classes))
    hostile = replace(
        inspection,
        protocol=replace(PROTOCOL, name="own-360x480-0000", classes=classes),
        picture=replace(inspection.picture, name=f"{harm}\u2028$&`"),
        model=replace(inspection.model, name=harm, provenance={"checkpoint": harm}),
        warning=harm,
    )
    path = export_html(tmp_path / "hostile.html", State(pins=((5, 5),)), [hostile])
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    canvas = page.locator("canvas.s2fpn-interactive").first
    canvas.wait_for(timeout=ANSWER)
    click(canvas, 100, 240, inspection.size)
    says(page, readout(State(y=100, x=240), hostile))
    assert page.locator(".s2fpn-legend label").all_inner_texts() == [f" {name}" for name in classes]
    assert page.evaluate("typeof harm") == "undefined"
    assert page.locator("script").count() == 2, "the data and the viewer"
    assert page.locator("svg, img:not([src^='data:image/jpeg'])").count() == 0
    assert harm in page.title()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def test_exported_page_works_without_kernel_and_network(page, exported):
    path, inspections = exported
    assert path.stat().st_size < 10e6, "9.5 MB are measured with two networks and the still pictures of a pin"
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(path.as_uri())
    canvas = page.locator("canvas.s2fpn-interactive").first
    canvas.wait_for(timeout=ANSWER)
    size = inspections[0].size
    for y, x in ((208, 168), (0, 0), (359, 479), (100, 240)):
        click(canvas, y, x, size)
        found = [readout(State(y=y, x=x), inspection) for inspection in inspections]
        says(page, *found)
        for model, expected in enumerate(found):
            section = page.locator(".s2fpn-model").nth(model)
            for level, shown in zip(expected.levels, section.locator(".s2fpn-level .s2fpn-picture").all(), strict=True):
                spoken = shown.get_attribute("aria-label")
                assert spoken.startswith(f"{level.name}, {level.size[0]}x{level.size[1]}: {level.weight()}; ")
                assert spoken.endswith(f"auxiliary head: {level.decides}.")
                assert spoken == level.sentence()
    spoken = page.locator(".s2fpn-live")
    page.keyboard.press("ArrowLeft")
    expect(spoken).to_have_text(re.compile("^Row 100, column 239: "))

    state = State(y=100, x=239, pins=((208, 168),))
    drawn_as(canvas, render(state, *inspections))
    page.get_by_label("wipe from").select_option("other model")
    drawn_as(canvas, render(replace(state, before="other model"), *inspections))
    page.get_by_label("wipe from").select_option("")
    page.get_by_role("button", name="only Car").click()
    others = frozenset(range(PROTOCOL.num_classes)) - {PROTOCOL.classes.index("Car")}
    drawn_as(canvas, render(replace(state, hidden=others), inspections[0]))
    page.get_by_role("button", name="208, 168").click()
    expect(spoken).to_have_text(re.compile("^Row 208, column 168: "))
    expect(page.locator("h3").nth(1)).to_contain_text("second <v2>")
    assert requests == [path.as_uri()]
    assert errors == []


def test_zoom_and_hover(page, exported):
    path, (first, _) = exported
    page.goto(path.as_uri())
    canvas, frame = page.locator("canvas.s2fpn-interactive").first, page.locator(".s2fpn-main-frame").first
    click(canvas, 100, 240, first.size)
    expect(page.locator(".s2fpn-live")).to_have_text(re.compile("^Row 100, column 240: "))
    drawn, box = picture(canvas), frame.bounding_box()
    for _ in range(4):
        page.mouse.wheel(0, -400)  # about the pixel below the pointer
    expect(page.get_by_label("Zoom").locator("output")).to_have_text("8.0x")
    widths = page.locator("canvas.s2fpn-picture").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().width / each.parentElement.clientWidth)"
    )
    assert widths == pytest.approx([8.0] * 10, rel=1e-2), "the pictures of both models and all levels"
    np.testing.assert_array_equal(picture(canvas), drawn)
    place = {"x": box["x"] + 240.5 / 480 * box["width"], "y": box["y"] + 100.5 / 360 * box["height"]}
    pixel = box["width"] / 480 * 8  # on the screen
    page.mouse.move(place["x"] + 3 * pixel, place["y"] - 2 * pixel)
    tip = page.locator(".s2fpn-tip").first
    expect(tip).to_be_visible()
    y, x = map(int, re.search(r"row (\d+), column (\d+)$", tip.inner_text()).groups())
    assert (y, x) == pytest.approx((98, 243), abs=1), "wheel events have whole numbers as coordinates"
    found = readout(State(y=y, x=x), first)
    assert tip.inner_text().startswith(f"{found.prediction} {found.confidence:.1%} · true {found.truth_words()} · ")
    page.mouse.click(place["x"] + 3 * pixel, place["y"] - 2 * pixel)
    expect(page.locator(".s2fpn-live")).to_have_text(re.compile(f"^Row {y}, column {x}: "))
    page.keyboard.press("0")
    expect(page.get_by_label("Zoom").locator("output")).to_have_text("1.0x")


def test_a_downloaded_picture_is_released(page, exported):
    """The browser would keep its content until the page is closed."""
    path, (first, _) = exported
    page.goto(path.as_uri())
    page.locator("canvas.s2fpn-interactive").first.wait_for(timeout=ANSWER)
    page.evaluate("""() => {
      const wait = window.setTimeout;
      window.setTimeout = (action, ms, ...rest) => wait(action, ms / 100, ...rest);
      window.kept = new Set();
      const { createObjectURL, revokeObjectURL } = URL;
      URL.createObjectURL = (blob) => { const url = createObjectURL(blob); kept.add(url); return url; };
      URL.revokeObjectURL = (url) => { kept.delete(url); revokeObjectURL(url); };
    }""")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the picture").click()
    assert Image.open(download.value.path()).size == first.size[::-1]
    page.wait_for_function("() => kept.size === 0", timeout=ANSWER)


def test_exported_distribution_is_that_of_the_pixel(page, exported):
    """The page's script computes it from int16 queries and keys."""
    path, (_, second) = exported
    page.goto(path.as_uri())
    page.locator("canvas.s2fpn-interactive").first.wait_for(timeout=ANSWER)
    for y, x in ((0, 0), (359, 479), (123, 321)):
        page.evaluate("([y, x]) => viewer.choose(y, x)", [y, x])
        for index, level in enumerate(second.levels):
            found = page.evaluate("index => viewer.attention(1, index)", index)
            step = page.evaluate("index => viewer.scene.data.models[1].levels[index].step", index)
            kept = (place // step * step for place in second.on_level(level, y, x))
            expected = level.column_attention(*kept)[0]
            torch.testing.assert_close(torch.tensor(found), expected, rtol=2e-2, atol=1e-4)
