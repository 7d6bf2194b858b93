"""The HTML page: self-contained, well-formed, escaped."""

import re
from html.parser import HTMLParser

import pandas as pd

from s2fpn_lib.data import get_protocol
from s2fpn_lib.report.page import Report
from s2fpn_lib.viz.images import class_legend


class _Outside(HTMLParser):
    """Everything a page would load from elsewhere, and how its tags balance."""

    def __init__(self):
        super().__init__()
        self.loads, self.depth = [], 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [v for k, v in values.items() if k in ("src", "href") and not v.startswith(("data:", "#"))]
        self.loads += [tag] if tag in ("script", "link", "iframe") else []
        self.depth += tag not in ("meta", "img")

    def handle_endtag(self, tag):
        self.depth -= 1


def test_the_page_needs_nothing_else_and_escapes_text(tmp_path):
    page = Report("Runs & <scores>", "today")
    page.section("A <b>")
    page.table(pd.DataFrame({"network": ["a<b", None], "mIoU %": ["70.1 ± 0.2", ""]}), "from <there>")
    page.figure(class_legend(get_protocol("roadscenes")), 'classes "of" roadscenes')
    text = page.write(tmp_path / "report.html").read_text()
    parser = _Outside()
    parser.feed(text)
    assert parser.loads == []
    assert parser.depth == 0
    assert "url(" not in text
    assert "a&lt;b" in text
    assert "Runs &amp; &lt;scores&gt;" in text
    assert '<td class="number">70.1 ± 0.2</td>' in text
    assert "None" not in re.sub(r"base64,[^\"]*", "", text)
