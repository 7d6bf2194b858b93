"""The report page: self-contained, without code, titled by its first heading."""

from html.parser import HTMLParser

import nbformat

from s2fpn_lib.workbench.parameters import TABLE
from s2fpn_lib.workbench.run_notebook import export_html


class Loaded(HTMLParser):
    """Everything that a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("src", "href") and not v.startswith(("data:", "#"))]
        self.found += [tag] if tag in ("script", "link", "iframe") else []


def test_the_page_shows_texts_and_outputs_and_loads_nothing(tmp_path):
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    shown = nbformat.v4.new_output("display_data", {"text/markdown": "# Runs & scores"})
    table = nbformat.v4.new_output("display_data", {"text/html": "<table>title</table>"}, metadata={TABLE: True})
    cells = [
        nbformat.v4.new_markdown_cell("# 90 · Report"),
        nbformat.v4.new_code_cell("checked_parameters()", outputs=[table]),
        nbformat.v4.new_code_cell("secret = 1", outputs=[shown, output]),
        nbformat.v4.new_markdown_cell("[Scores](#Scores)\n\n## Scores"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "90_report.ipynb")
    text = export_html(tmp_path / "90_report.ipynb", tmp_path / "report.html").read_text()
    loaded = Loaded()
    loaded.feed(text)
    assert loaded.found == []
    assert "url(" not in text
    assert "<title>Runs &amp; scores</title>" in text
    assert 'id="Scores"' in text
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert "secret" not in text
    assert "90 · Report" not in text
    assert "<table>" not in text, "the page begins with the report, not with the notebook's parameters"
