"""A pytest plugin for `make gpu`: each test that ends has a row in right.jsonl of the folder S2FPN_GPU_ROWS.

A row holds what the test records with `record_property`. A test that tasks.jsonl names is not started again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s2fpn_lib.benchmark.gpu import leave_if_broken
from s2fpn_lib.runs import append_row, read_rows

FOLDER = Path(os.environ.get("S2FPN_GPU_ROWS", "."))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    attempted = {row["task"] for row in read_rows(FOLDER / "tasks.jsonl")}
    items[:] = [item for item in items if item.nodeid not in attempted]


def pytest_runtest_logstart(nodeid: str) -> None:
    append_row(FOLDER / "tasks.jsonl", {"part": "right", "task": nodeid, "status": "started"})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped or (report.passed and report.when != "call"):
        return
    check, _, case = report.nodeid.rstrip("]").partition("[")
    row = {"check": check, "case": case, **dict(report.user_properties), "ok": report.passed}
    append_row(FOLDER / "right.jsonl", row if report.passed else {**row, "error": report.longreprtext[-1500:]})
    if report.failed:
        leave_if_broken()
