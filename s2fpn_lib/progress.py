"""Progress bars: tqdm's on a terminal and in a notebook; none elsewhere, and none where tqdm is not installed."""

import sys
from types import TracebackType
from typing import Any


def is_interactive() -> bool:
    """Whether a bar would be seen: on a terminal, and in the kernel of a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(total: int, *, enabled: bool | None = None, **options: Any) -> Any:
    """A context manager with tqdm's `update` and `write`.

    Args:
        total: number of units.
        enabled: whether to show the bar; None shows it if `is_interactive()`.
        options: tqdm's.
    """
    if is_interactive() if enabled is None else enabled:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            pass
        else:
            return tqdm(total=total, mininterval=0.5, file=sys.stdout, **options)
    return _NoBar()


class _NoBar:
    """The part of tqdm's interface that is used here, without a bar."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        pass

    def update(self, count: int = 1) -> None:
        pass

    def write(self, text: str) -> None:
        print(text, flush=True)
