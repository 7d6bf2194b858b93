"""31_inspector in JupyterLab and the exported page in a real browser: pictures, clicks, keys, and announced text."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Locator, Page, TimeoutError, expect
from torch.nn.modules.batchnorm import _BatchNorm

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.inspector import State, inspect, readout, render
from s2fpn_lib.inspector.export import export_html
from s2fpn_lib.inspector.state import NamedModel, Picture
from s2fpn_lib.model import build_model

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "31_inspector.ipynb"
RELEASED, INDEX = "s2fpn_lite-camvid", 1  # what the notebook shows first
PROTOCOL = get_protocol("camvid-segnet-360x480")
START, COMPUTE, ANSWER = 90, 200_000, 60_000  # timeouts: s for the server, ms for the kernel's work and for a click

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def inspection():
    """What the notebook shows first if CamVid is not found."""
    picture = Picture.of_dataset(open_dataset("roadscenes", split="val"), INDEX, "protocol", PROTOCOL)
    return inspect(NamedModel.load(RELEASED), picture, PROTOCOL)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the notebook in a JupyterLab with its own port, token, and folders, which ends with its kernels."""
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
        "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}", "--ServerApp.allow_root=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures as pictures
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env={**inherited, **{name: str(folder / value) for name, value in variables.items()}},
            cwd=work,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token={token}"
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
    script = """canvas => {
        const {width, height} = canvas;
        return [height, width, Array.from(canvas.getContext("2d").getImageData(0, 0, width, height).data)];
    }"""
    height, width, values = canvas.evaluate(script)
    return np.array(values).reshape(height, width, 4)[..., :3]


def drawn_as(canvas: Locator, expected: np.ndarray) -> None:
    """Waits until the canvas shows `expected`, apart from what JPEG changes."""
    deadline = time.monotonic() + ANSWER / 1000
    while True:
        found = picture(canvas)
        difference = np.abs(found - expected.astype(int)).mean() if found.shape == expected.shape else np.inf
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
    canvas = page.locator("canvas.s2fpn-interactive[data-drawn]")
    canvas.wait_for(timeout=COMPUTE)
    canvas.scroll_into_view_if_needed()
    return canvas


def test_notebook_in_jupyterlab(page, lab, inspection):
    canvas = run_all(page, lab)
    size = inspection.size
    spoken = page.locator(".s2fpn-live").first
    opening = State(y=int(0.58 * size[0]), x=int(0.35 * size[1]))
    expect(spoken).to_have_text(readout(opening, inspection).sentence(), timeout=ANSWER)
    drawn_as(canvas, render(opening, inspection))

    click(canvas, 100, 240, size)
    state = State(y=100, x=240)
    expect(spoken).to_have_text(readout(state, inspection).sentence(), timeout=ANSWER)
    expect(page.locator(".s2fpn-readout")).to_contain_text("row 100, column 240")
    drawn_as(canvas, render(state, inspection))

    assert canvas.evaluate("canvas => canvas === document.activeElement"), "a click gives the keyboard to the picture"
    assert canvas.evaluate("canvas => getComputedStyle(canvas).outlineStyle") == "solid", "focus is visible"
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    state = State(y=110, x=242)
    expect(spoken).to_have_text(readout(state, inspection).sentence(), timeout=ANSWER)

    without_sky = replace(state, hidden=frozenset({PROTOCOL.classes.index("Sky")}))
    page.get_by_role("checkbox", name="Sky", exact=True).uncheck()
    drawn_as(canvas, render(without_sky, inspection))
    assert np.abs(render(state, inspection).astype(int) - render(without_sky, inspection)).mean() > 3

    row = page.get_by_label("row y")
    row.fill("20")
    row.press("Enter")
    expect(spoken).to_have_text(re.compile("^Row 20, column 242: "), timeout=ANSWER)
    expect(page.locator(".jp-RenderedImage img").first).to_be_visible(timeout=COMPUTE)  # the still figure
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert page.locator(".s2fpn-error").count() == 0


@pytest.fixture(scope="module")
def exported(inspection, tmp_path_factory: pytest.TempPathFactory):
    """A page with two models, the second of revision v2, and both inspections."""
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision="v2", num_classes=PROTOCOL.num_classes)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(
            model.preprocess(inspection.picture.image[None])
        )  # its norms adapt to the image, which gives distributions with a peak
    both = inspection, inspect(NamedModel("second <v2>", model), inspection.picture, PROTOCOL)
    path = tmp_path_factory.mktemp("export") / "page.html"
    state = State(y=208, x=168).pinned()
    return export_html(path, state, both), both


def test_exported_page_works_without_kernel_and_network(page, exported):
    path, inspections = exported
    assert path.stat().st_size < 6e6
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
        expect(page.locator("#spoken")).to_have_text(" ".join(each.sentence() for each in found))
        for model, expected in enumerate(found):
            section = page.locator(".model").nth(model)
            for level, shown in zip(expected.levels, section.locator(".levels canvas").all(), strict=True):
                says = shown.get_attribute("aria-label")
                assert says.startswith(f"{level.name}: {level.weight()}; ")
                assert says.endswith(f"auxiliary head: {level.decides}")
                assert f"{level.entries} {level.top[0][0]}-{level.top[0][1]} (" in says or model == 1
    page.keyboard.press("ArrowLeft")
    assert page.locator("#spoken").inner_text().startswith("Row 100, column 239: ")

    state = State(y=100, x=239, pins=((208, 168),))
    drawn_as(canvas, render(state, inspections[0]))
    page.get_by_role("button", name="only Car").click()
    others = frozenset(range(PROTOCOL.num_classes)) - {PROTOCOL.classes.index("Car")}
    drawn_as(canvas, render(replace(state, hidden=others), inspections[0]))
    page.get_by_role("button", name="pin 208, 168").click()
    assert page.locator("#spoken").inner_text().startswith("Row 208, column 168: ")
    expect(page.locator("h2").nth(1)).to_have_text("second <v2>")
    assert requests == [path.as_uri()]
    assert errors == []


def test_exported_distribution_is_that_of_the_pixel(page, exported):
    """The page's script computes it from int16 queries and keys."""
    path, (_, second) = exported
    page.goto(path.as_uri())
    page.locator("canvas.s2fpn-interactive").first.wait_for(timeout=ANSWER)
    for y, x in ((0, 0), (359, 479), (123, 321)):
        page.evaluate("([y, x]) => choose(y, x)", [y, x])
        for index, level in enumerate(second.levels):
            found = page.evaluate("index => Array.from(attention(data.models[1].levels[index]))", index)
            expected = level.column_attention(*second.on_level(level, y, x))[0]
            torch.testing.assert_close(torch.tensor(found), expected, rtol=2e-2, atol=1e-4)
