"""scripts/build_docs.py: what a page keeps of an executed notebook, and how pictures are reduced."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.loading import load_file

script = load_file(Path(__file__).resolve().parent.parent / "scripts" / "build_docs.py")


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_chart_stays_exact_and_large_photograph_shrinks():
    chart = np.full((40, 60, 3), 255, np.uint8)
    chart[10:20, 5:50] = (0, 114, 178)
    found = script.reduced({"image/png": png(chart), "text/plain": "<Figure>"})
    np.testing.assert_array_equal(decoded(found["image/png"]), chart)
    assert found["text/plain"] == "<Figure>"

    noise = np.random.default_rng(0).integers(256, size=(60, 2 * script.WIDTH, 3), dtype=np.uint8)
    found = script.reduced({"image/png": png(noise)})
    assert decoded(found["image/jpeg"]).shape == (30, script.WIDTH, 3)
    assert "image/png" not in found


def test_page_has_code_outputs_and_relative_links_but_no_path_of_the_machine(tmp_path):
    output = nbformat.v4.new_output("stream", text=f"written: {tmp_path}/results/train/run")
    cells = [
        nbformat.v4.new_markdown_cell("# 10 · Train\n\nThen open [11](11_evaluate.ipynb) or [it](results/a/b.html)."),
        nbformat.v4.new_code_cell("config = 1", execution_count=1, outputs=[output]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "10_train.ipynb")
    found = script.page(tmp_path / "10_train.ipynb", {str(tmp_path): ""})
    assert "config" in found
    assert "written: results/train/run" in found
    assert str(tmp_path) not in found
    assert 'href="11_evaluate.html"' in found
    assert "b.html" not in found, "a link to a file that is not among the copies"
    assert " or it." in found


def test_folded_code_stays_folded(tmp_path):
    output = nbformat.v4.new_output("stream", text="shown")
    cell = nbformat.v4.new_code_cell("plumbing = 1", execution_count=1, outputs=[output])
    cell.metadata["jupyter"] = {"source_hidden": True}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "00_a.ipynb")
    found = script.page(tmp_path / "00_a.ipynb", {})
    folded, shown = found.partition("<details>")[2].split("</details>")
    assert "plumbing" in folded
    assert "plumbing" not in shown
    assert "shown" in shown


def test_equations_become_mathml(tmp_path):
    text = "with $x_1$ pixels and\n\n$$y = \\frac{a}{b}$$\n\nend"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), tmp_path / "02_model.ipynb")
    found = script.page(tmp_path / "02_model.ipynb", {})
    assert found.count("<math") == 2
    assert 'display="block"' in found
    assert "<mfrac>" in found
    lines = script.EQUATION.match(r"$$\begin{aligned} a &= b \\ c &= d \end{aligned}$$")
    assert script.mathml(lines).count("<mtr>") == 2
    assert "$" not in found.partition("<body>")[2]


def test_unknown_notebook_is_an_error():
    with pytest.raises(SystemExit, match=r"no such notebook: 99_none; there are 00_quickstart, 01_data"):
        script.main(["99_none"])


def test_no_copies_of_camvid(monkeypatch, tmp_path):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"its license allows no copies: unset S2FPN_DATA"):
        script.main(["01_data"])
