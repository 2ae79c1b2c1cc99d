"""The processes that load images: how they start, and what their end means to the process that waits for them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import cv2
from torch._C import _error_if_any_worker_fails

from utils import interrupts


@contextmanager
def watched_workers() -> Iterator[None]:
    """Within this block, it is torch's RuntimeError that a loading process dies, or has died."""
    with own_handler(lambda _number, _frame: _error_if_any_worker_fails()):
        _error_if_any_worker_fails()
        yield


@contextmanager
def own_handler(handler: Callable | signal.Handlers) -> Iterator[None]:
    """Within this block, a handler of ours is told of processes that end; afterwards, that of before.

    torch installs one as it starts the first loading processes, and would then raise its error for good, wherever the
    main process happens to be: while it writes a checkpoint or frees a loader.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # and torch looks every five seconds
        return
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def is_lost_worker(error: Exception) -> bool:
    """Whether an error while a batch is fetched means that the process, or the thread, that was to give it has gone."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith(("DataLoader worker", "Pin memory thread exited"))
    return not text.startswith("Caught ")  # else it happened in the worker, which lives


def report_thread(ended: threading.ExceptHookArgs) -> None:
    """Report an error in a thread as Python does, but be silent where the one that pins memory has lost a worker.

    The main thread, which waits for it, says so.
    """
    is_pinning = ended.thread is not None and "_pin_memory_loop" in ended.thread.name
    if not (is_pinning and issubclass(ended.exc_type, (EOFError, OSError))):
        threading.__excepthook__(ended)


def start_worker(_worker: int) -> None:
    """Set up a worker process: one thread, and Ctrl-C and its like left to the main process."""
    cv2.setNumThreads(0)
    interrupts.leave_to_parent()
    sys.excepthook = _without_lost_connections


def _without_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an error as Python does, but be silent where the main process ended while a batch was on its way to it."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
