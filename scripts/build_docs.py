"""Executes every notebook without data and writes readable copies to docs/notebooks/: `make docs`.

    python scripts/build_docs.py [NOTEBOOK ...]

A copy is one HTML file with texts, code, and outputs, which needs no kernel and no network. Its pictures are reduced to
`WIDTH` pixels and stored in the smaller one of two formats. The notebooks of `make run` come from one run of it, but
the inspector shows the released network: `inspector.html` is the page that it exports, which answers to clicks.
RoadScenes is used, because the license of CamVid does not allow copies of its images here.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from string import Template

import latex2mathml.converter
import nbformat
from nbconvert import HTMLExporter
from PIL import Image
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

PROJECT = Path(__file__).resolve().parent.parent
TARGET = PROJECT / "docs" / "notebooks"
WIDTH = 760  # pixels
LARGEST_MB = 10  # of all copies together
INSPECTOR, QUERIES = "31_inspector", 100_000
LOCAL = re.compile(r'<a\b[^>]*href="(?!https?:|#|\d\d_\w+\.html|inspector\.html)[^"]*\.html"[^>]*>(.*?)</a>', re.DOTALL)
EQUATION = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
STYLE = """
.jp-Cell, .cell { margin: .9rem 0; }
.highlight pre { color: inherit; background: var(--page); padding: .7rem .9rem; border-radius: 4px; overflow-x: auto;
  white-space: pre; }
.s2fpn-still { display: block !important; }  /* the inspector's, in place of its widget */
mtd { text-align: left; }
mtd:nth-child(odd) { text-align: right; }
"""
DARK = "@media (prefers-color-scheme: dark) {{ {} }}"


def main(names: list[str]) -> None:
    from s2fpn_lib.workbench import pipeline
    from s2fpn_lib.workbench.run_notebook import execute

    known = [path.stem for path in sorted((PROJECT / "notebooks").glob("*.ipynb"))]
    if unknown := set(names) - set(known):
        raise SystemExit(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if os.environ.pop("S2FPN_DATA", None) or (PROJECT / "data" / "camvid").exists():
        raise SystemExit(
            "CamVid is found, and its license allows no copies: unset S2FPN_DATA, and move data/camvid away"
        )
    TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        os.environ["S2FPN_RESULTS"] = str(results)
        if not names:
            pipeline.run()
        done = set() if names else set(pipeline.NOTEBOOKS) - {INSPECTOR}  # shown with the released network instead
        for name in names or known:
            start = time.monotonic()
            executed = results / "main" / f"{name}.ipynb"
            executed.parent.mkdir(parents=True, exist_ok=True)
            if name not in done:
                execute(PROJECT / "notebooks" / f"{name}.ipynb", executed, {})
            copy = TARGET / f"{name}.html"
            copy.write_text(page(executed, {folder: "", str(PROJECT): ""}))
            print(f"{copy}: {copy.stat().st_size / 1e6:.2f} MB, {time.monotonic() - start:.0f} s", flush=True)
        if not names or INSPECTOR in names:
            inspector_page(TARGET / "inspector.html")
    total = sum(path.stat().st_size for path in TARGET.glob("*.html")) / 1e6
    print(f"{TARGET}: {total:.1f} MB")
    if total > LARGEST_MB:
        raise SystemExit(f"the copies may have {LARGEST_MB} MB together: lower WIDTH, or show fewer pictures")


def inspector_page(target: Path) -> None:
    """The released network on a picture of RoadScenes, with fewer queries than usual to keep the page small."""
    from s2fpn_lib.checkpoint import DEFAULT
    from s2fpn_lib.data import open_dataset
    from s2fpn_lib.inspector import State, export, inspect
    from s2fpn_lib.inspector.state import NamedModel, Picture
    from s2fpn_lib.workbench.provenance import checkpoint_protocol

    protocol, data = checkpoint_protocol(DEFAULT), open_dataset("roadscenes", split="val")
    picture = Picture.of_dataset(data, 1, "protocol", protocol)
    export.MAX_QUERY_VALUES = QUERIES
    export.export_html(target, State(y=208, x=168), [inspect(NamedModel.load(DEFAULT), picture, protocol)])


def page(notebook: Path, paths: dict[str, str]) -> str:
    """An executed notebook as one HTML page; `paths` are replaced in its outputs."""
    from s2fpn_lib.workbench.run_notebook import CSS, PAGE

    read = nbformat.read(notebook, as_version=4)
    for cell in list(read.cells):
        if cell.cell_type == "markdown":
            cell.source = EQUATION.sub(mathml, cell.source)
        elif cell.metadata.get("jupyter", {}).get("source_hidden"):
            folded = f"<details><summary>code</summary>\n\n```python\n{cell.source}\n```\n\n</details>"
            read.cells.insert(read.cells.index(cell), nbformat.v4.new_markdown_cell(folded))
            cell.metadata["tags"] = ["folded"]
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = reduced(output.data)
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        anchor_link_text="",
        config=Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"folded"}}),
    )
    body, _ = exporter.from_notebook_node(read)
    for path, shown in paths.items():
        body = body.replace(path.rstrip("/") + "/", shown)
    body = re.sub(r'href="(?:\./)?(\d\d_\w+)\.ipynb', r'href="\1.html', body)
    body = re.sub(r'srcdoc="[^"]*"', 'src="inspector.html"', body)  # once, not in each page
    body = LOCAL.sub(r"\1", body)
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    css = "\n".join([CSS.read_text(), light, DARK.format(dark), STYLE])
    return Template(PAGE.read_text()).substitute(title=notebook.stem, css=css, body=body)


def mathml(equation: re.Match[str]) -> str:
    """An equation in LaTeX as MathML, which browsers draw themselves: no script has to be loaded."""
    block, inline = equation.groups()
    latex = (block or inline).replace("{aligned}", "{split}")  # latex2mathml knows no aligned
    return latex2mathml.converter.convert(latex, display="block" if block else "inline")


def reduced(data: dict[str, str]) -> dict[str, str]:
    """The output with its PNG picture at most `WIDTH` pixels wide, as PNG or as JPEG."""
    if "image/png" not in data:
        return data
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    chart, photograph = io.BytesIO(), io.BytesIO()
    picture.save(chart, "PNG", optimize=True)
    picture.save(photograph, "JPEG", quality=55, subsampling=0)  # full color resolution, for thin colored lines
    kind, smaller = min(("image/png", chart), ("image/jpeg", photograph), key=lambda each: each[1].tell())
    rest = {name: value for name, value in data.items() if name != "image/png"}
    return rest | {kind: base64.b64encode(smaller.getvalue()).decode()}


if __name__ == "__main__":
    main(sys.argv[1:])
