"""Work of one order on several threads: results computed ahead of their use, and work that is left to a thread.

Both keep the order and hold a bounded number of results and bytes. An exception of a thread is raised where its result
would have been used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_BYTES = 256 * 2**20  # that wait to be used; a single result may be larger


def computed_ahead(
    call: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
    num_bytes: Callable[[Result], int],
    threads: int = 1,
) -> Generator[Result, None, None]:
    """Yield ``call(item)`` of each item, in order, while threads compute the next ones.

    Args:
        call: with one thread it is never called twice at a time.
        items: any number of them; they are taken as they are needed.
        depth: results at most that wait or are computed.
        num_bytes: size of a result; so many may wait that results of the size of the last one fill MOST_BYTES.
        threads: how many compute at once.
    """
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    pool = ThreadPoolExecutor(threads)

    def begin(allowed: int) -> None:
        while len(waiting) < allowed:
            try:
                waiting.append(pool.submit(call, next(rest)))
            except StopIteration:
                return

    try:
        begin(min(threads, depth))  # the first one tells how large they are
        while waiting:
            result = waiting.popleft().result()
            begin(min(depth, max(1, MOST_BYTES // max(1, num_bytes(result)))))
            yield result
            del result  # the caller alone decides how long it is kept
    finally:
        pool.shutdown(cancel_futures=True)  # waits for what is being computed


class LeftToThread:
    """Work that one thread does in the order in which it is given, a context manager: leaving it waits for all of it.

    An exception of the thread is raised by a later :meth:`submit`, or on leaving.
    """

    def __init__(self, depth: int) -> None:
        """Start without work; ``depth`` pieces of it may wait before :meth:`submit` waits, too."""
        self._depth = depth
        self._waiting: deque[tuple[Future, int]] = deque()
        self._pool = ThreadPoolExecutor(1)

    def submit(self, num_bytes: int, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Leave ``call(*arguments)`` to the thread.

        Args:
            num_bytes: what waits for it in memory; beyond MOST_BYTES this waits until older work is done.
            call: what to do.
            arguments: of the call.
        """
        while len(self._waiting) >= self._depth or sum(size for _, size in self._waiting) > MOST_BYTES:
            self._waiting.popleft()[0].result()
        future = self._pool.submit(call, *arguments)
        self._waiting.append((future, num_bytes))
        return future

    def __enter__(self) -> LeftToThread:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting:
                future = self._waiting.popleft()[0]
                if kind is None or not future.exception():  # of two exceptions the first counts
                    future.result()
        finally:
            self._pool.shutdown(cancel_futures=True)
