"""The processes that load images: how they start, and what their end means to the process that waits for them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby, zip_longest
from types import TracebackType

import cv2
from torch._C import _error_if_any_worker_fails

from utils import interrupts

MOST_EARLY = 64  # batches that wait for their turn: each takes memory, and torch keeps some files open for it


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


def dealt(pools: Sequence[Hashable], workers: int) -> list[int | None]:
    """Return the order in which tasks are given out in turn, so that those of one pool come to one worker.

    A worker then decodes the images of its own pools only, instead of almost all images of every pool.

    Args:
        pools: of the tasks in the order in which their results are wanted; tasks of one pool follow each other.
        workers: that take one task each in turn.

    Returns:
        Numbers of tasks; None where the worker whose turn it is gets nothing. No more than MOST_EARLY results arrive
        before their turn: many workers share the tasks of a pool. So do all workers with the last pools, where there
        are fewer pools than workers.
    """
    longest = max(1, MOST_EARLY // workers)
    runs: list[list[int]] = []
    for _, group in groupby(enumerate(pools), key=lambda task: task[1]):
        numbers = [number for number, _ in group]
        runs += [numbers[start : start + longest] for start in range(0, len(numbers), longest)]
    even = len(runs) // workers * workers
    order: list[int | None] = []
    for start in range(0, even, workers):
        order += chain.from_iterable(zip_longest(*runs[start : start + workers]))
    while order and order[-1] is None:
        order.pop()
    return order + list(chain.from_iterable(runs[even:]))


def start_worker(_worker: int) -> None:
    """Set up a worker process: one thread, and Ctrl-C and its like left to the main process."""
    cv2.setNumThreads(0)
    interrupts.leave_to_parent()
    sys.excepthook = _without_lost_connections


def _without_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an error as Python does, but be silent where the main process ended while a batch was on its way to it."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
