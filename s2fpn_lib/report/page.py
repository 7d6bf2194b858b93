"""One self-contained HTML page: text, tables and figures, no script and no file beside it."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from s2fpn_lib.runs import write_atomic

CSS = """
:root { --ink: #1f2933; --muted: #66727f; --rule: #dde3e9; --accent: #0072b2; --soft: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--soft); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.4rem 2.6rem 4rem; background: white; min-height: 100vh;
  box-shadow: 0 0 30px rgb(31 41 51 / 7%); }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; padding-top: 1.1rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
p { max-width: 75ch; margin: .5rem 0; }
.subtitle { max-width: none; }
.subtitle, figcaption, .provenance { color: var(--muted); font-size: .87rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.1rem 0; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 .2rem; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; vertical-align: bottom; border-bottom: 1.5px solid var(--ink); padding: .3rem .9rem .3rem 0;
  font-weight: 600; max-width: 15rem; }
.columns td { white-space: nowrap; }
td { border-bottom: 1px solid var(--rule); padding: .28rem .9rem .28rem 0; vertical-align: top; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
tbody tr:hover { background: var(--soft); }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; display: block; }
.provenance { max-width: none; margin: .1rem 0 1.1rem; }
.note { border-left: 3px solid var(--accent); background: var(--soft); padding: .6rem 1rem; margin: 1rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 0 2.2rem; }
@media print { body { background: white; } main { box-shadow: none; padding: 0; } h2 { break-after: avoid; }
  figure, table { break-inside: avoid; } }
"""


class Report:
    """A page under construction; every method adds to its end. Text is plain and gets escaped."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []
        self._body: list[str] = []

    def section(self, title: str) -> None:
        """A heading that the table of contents links to."""
        self._sections.append(title)
        self._body.append(f'<h2 id="s{len(self._sections)}">{html.escape(title)}</h2>')

    def heading(self, text: str) -> None:
        """A smaller heading."""
        self._body.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._body.append(f"<p>{html.escape(text)}</p>")

    def note(self, text: str) -> None:
        """A paragraph that stands out: what is missing, what to be careful with."""
        self._body.append(f'<p class="note">{html.escape(text)}</p>')

    def table(self, table: pd.DataFrame, provenance: str) -> None:
        """A table and, under it, where its numbers come from. The index is not shown."""
        self._body.append(table_html(table, provenance))

    def tables(self, tables: dict[str, tuple[pd.DataFrame, str]]) -> None:
        """Several small tables {title: (table, provenance)} side by side where the page is wide enough."""
        cells = (f"<div><h3>{html.escape(title)}</h3>{table_html(*pair)}</div>" for title, pair in tables.items())
        self._body.append(f'<div class="columns">{"".join(cells)}</div>')

    def figure(self, figure: Figure, caption: str, *, dpi: int = 150) -> None:
        """A picture inside the page (PNG), with its caption as alternative text."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        self._png(buffer.getvalue(), caption, f' width="{round(figure.get_size_inches()[0] * 100)}"')

    def picture(self, path: str | Path, caption: str) -> None:
        """A PNG file, taken into the page."""
        self._png(Path(path).read_bytes(), caption)

    def _png(self, png: bytes, caption: str, attributes: str = "") -> None:
        data, caption = base64.b64encode(png).decode(), html.escape(caption)
        self._body.append(
            f'<figure><img{attributes} alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def html(self) -> str:
        """The whole page."""
        links = "".join(f'<a href="#s{i}">{html.escape(s)}</a>' for i, s in enumerate(self._sections, 1))
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{CSS}</style></head>\n<body><main><h1>{html.escape(self.title)}</h1>"
            f'<p class="subtitle">{html.escape(self.subtitle)}</p><nav>{links}</nav>\n'
            + "\n".join(self._body)
            + "\n</main></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page, whole or not at all."""
        write_atomic(path, self.html())
        return Path(path)


def table_html(table: pd.DataFrame, provenance: str) -> str:
    """The table with numbers flush right, empty cells for NaN, and its provenance beneath."""
    numeric = {c: _is_numeric(table[c]) for c in table.columns}
    head = "".join(
        f"<th{_class(numeric[c])}>{html.escape(str(c)).replace('_', ' ').replace(' %', '&nbsp;%')}</th>"
        for c in table.columns
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(numeric[c])}>{_cell(v)}</td>" for c, v in zip(table.columns, row, strict=True))
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="provenance">{html.escape(provenance)}</p>'
    )


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _cell(value: object) -> str:
    if pd.isna(value):
        return ""
    return html.escape(f"{value:g}" if isinstance(value, float) else str(value))


def _is_numeric(column: pd.Series) -> bool:
    """Whether every filled cell begins as a number does: also "71.2 ± 0.4" and "+1.3"; "–" counts as not filled."""
    if column.dtype == bool:
        return False
    first = [str(v).split(" ")[0] for v in column if str(v) and not pd.isna(v) and v != "–"]
    return bool(first) and all(f.lstrip("+-").replace(".", "", 1).replace("e-", "", 1).isdigit() for f in first)
