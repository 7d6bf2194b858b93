"""A function in a process of its own, so that what it sets for its process (malloc, threads) touches no other."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import torch


class OwnProcess:
    """`call()` runs, in another process, one call of what `make(**options)` returned there; the result comes back.

    make: a function of a module, as the new process imports it. Use it as a context manager: the process ends with it.
    Raises RuntimeError with the other process's traceback where something goes wrong there.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, torch.get_num_threads(), make, options)
        self._process = context.Process(target=_serve, args=arguments, daemon=False)
        self._process.start()
        theirs.close()  # the process's own end alone keeps the pipe open: its death is noticed

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which ends the loop there
        self._process.join()

    def __call__(self) -> Any:
        try:
            self._pipe.send(True)
            failed, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the process died: out of memory?") from error
        if failed:
            raise RuntimeError(f"in the other process:\n{result}")
        return result


def _serve(pipe: Any, threads: int, make: Callable[..., Callable[[], Any]], options: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    call = None
    while True:
        try:
            pipe.recv()
        except (EOFError, OSError):  # the caller has ended, in one way or another
            return
        try:
            call = call or make(**options)
            answer = False, call()
        except Exception:
            answer = True, traceback.format_exc()
        pipe.send(answer)
