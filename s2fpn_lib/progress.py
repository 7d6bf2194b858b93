"""Progress bars: tqdm's on a terminal and in a notebook; none elsewhere, and none where tqdm is not installed."""

import contextlib
import sys
from typing import Any


def is_interactive() -> bool:
    """Whether a bar would be seen: on a terminal, and in the kernel of a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(total: int, *, enabled: bool | None = None, **options: Any) -> Any:
    """A context manager with tqdm's `update` and `write`, and its options; enabled: None for `is_interactive()`."""
    with contextlib.suppress(ImportError):
        if is_interactive() if enabled is None else enabled:
            from tqdm.auto import tqdm

            return tqdm(total=total, mininterval=0.5, file=sys.stdout, **options)
    return _NoBar()


class _NoBar(contextlib.ExitStack):
    """The part of tqdm's interface that is used here, without a bar."""

    def update(self, count: int = 1) -> None:
        pass

    def write(self, text: str) -> None:
        print(text, flush=True)
