"""The report page: the executed notebook 90_report as one HTML file, without its code."""

import html
import re
from pathlib import Path
from string import Template

import nbformat
from nbconvert import HTMLExporter

from s2fpn_lib.runs import write_atomic
from s2fpn_lib.workbench import parameters

CSS = Path(__file__).with_name("report_page.css")
# nbconvert's full templates load scripts from other servers; this page has none and works offline.
PAGE = Path(__file__).with_name("report_page.html")


def export_html(notebook: str | Path, target: str | Path) -> Path:
    """Writes the texts and outputs of an executed notebook as one self-contained page, atomically; returns its path.

    The first cell, which introduces the notebook, and the table of parameters are left out. The page's title is the
    first heading of what remains.
    """
    executed = nbformat.read(notebook, as_version=4)
    executed.cells = executed.cells[1:]
    for cell in executed.cells:
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if parameters.TABLE not in each.get("metadata", {})]
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        anchor_link_text="",  # headings keep their ids for the links of the contents
    )
    body, _ = exporter.from_notebook_node(executed)
    heading = re.search(r"<h1[^>]*>(.*?)<(?:a |/h1)", body)
    title = heading[1] if heading else html.escape(Path(notebook).stem)
    page = Template(PAGE.read_text()).substitute(title=title, css=CSS.read_text(), body=body)
    write_atomic(target, page)
    return Path(target)
