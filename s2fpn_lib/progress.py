"""Progress of long work: a tqdm bar where somebody watches, nothing where nobody does or tqdm is not installed."""

import sys
from types import TracebackType
from typing import Any


def is_interactive() -> bool:
    """Whether somebody sees a bar move: on a terminal, and in the kernel of a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(total: int, *, enabled: bool | None = None, **options: Any) -> Any:
    """A context manager with tqdm's `update`, `set_postfix`, and `write`; `options` are tqdm's.

    Args:
        total: number of units.
        enabled: None shows the bar where `is_interactive()`.
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

    def set_postfix(self, *_: Any, **__: Any) -> None:
        pass

    def write(self, text: str, **_: Any) -> None:
        print(text, flush=True)
