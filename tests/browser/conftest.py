"""A real browser for the tests: the system's chromium, driven by playwright. Failed tests leave a screenshot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# Screenshots, named after the tests that failed
FAILURES = Path(__file__).resolve().parents[2] / "results" / "browser-failures"
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
    return report


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest):
    """A new page; if the test fails, a screenshot goes to `FAILURES`."""
    opened: Page = browser.new_page(viewport={"width": 1500, "height": 1500})
    yield opened
    report = request.node.stash.get(REPORT, None)
    if report is not None and report.failed:
        FAILURES.mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=FAILURES / f"{request.node.name}.png", timeout=60_000)
    opened.close()
