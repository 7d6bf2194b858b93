"""A table as files: CSV to compute with, LaTeX to print, HTML to read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from s2fpn_lib.report.page import Report
from s2fpn_lib.report.tables import to_latex
from s2fpn_lib.runs import write_atomic


def export_table(table: pd.DataFrame, folder: str | Path, name: str, caption: str) -> None:
    """Writes `folder`/<name>.csv, .tex and .html, each whole or not at all. caption: where the numbers are from.

    Characters that make no file name become "-".
    """
    name = re.sub(r"[^\w.-]+", "-", name)
    write_atomic(Path(folder) / f"{name}.csv", table.to_csv(index=False))
    write_atomic(Path(folder) / f"{name}.tex", to_latex(table, caption, f"tab:{name}"))
    page = Report(name)
    page.table(table, caption)
    page.write(Path(folder) / f"{name}.html")


@contextmanager
def only_new_files(folder: str | Path) -> Iterator[None]:
    """Removes afterwards what was in `folder` before and was not written again: tables of things that are gone."""
    folder = Path(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*") if path.is_file()}
    yield
    for path, written in before.items():
        if path.exists() and path.stat().st_mtime_ns == written:
            path.unlink()
