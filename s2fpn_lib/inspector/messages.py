"""What the inspector says above and below its controls: errors with a remedy, warnings, what it is doing. HTML."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from html import escape


def error_html(doing: str, error: BaseException, remedy: str) -> str:
    """What failed, why, what to do, and under the fold the traceback."""
    trace = "".join(traceback.format_exception(error))
    return (
        f'<div role="alert" class="s2fpn-message s2fpn-error"><b>{escape(doing)} failed.</b> {escape(str(error))}'
        f"<br><b>What to do:</b> {escape(remedy)}"
        f"<details><summary>Details</summary><pre>{escape(trace)}</pre></details></div>"
    )


def warnings_html(texts: Iterable[str]) -> str:
    """One box a warning; empty without."""
    return "".join(f'<div role="alert" class="s2fpn-message s2fpn-warning">{escape(text)}</div>' for text in texts)


def status_html(text: str) -> str:
    """What is going on; empty for nothing."""
    return f'<div role="status" class="s2fpn-message">{escape(text)}</div>' if text else ""
