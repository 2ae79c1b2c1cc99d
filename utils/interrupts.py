"""What Ctrl-C, SIGTERM and SIGHUP do: they end a command with its status, without a traceback.

While a command imports what it needs, they end it at once; as soon as it runs, they are a KeyboardInterrupt, so that
what is done can be kept. Signals that the process was started to ignore (by ``nohup``, as a shell's background job)
stay ignored, and a program that only imports this toolkit keeps its own handlers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HAS_MASKS = hasattr(signal, "pthread_sigmask")  # not so on Windows, where nothing is forked
ONE_EVENT = 2.0  # seconds within which signals belong together: torchrun passes on what the terminal has sent already
_received: list[tuple[int, float]] = []  # the signals that were answered, and when
_process = os.getpid()  # a forked process, such as one that loads images, leaves the answer to this one


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within this block, the signals are a KeyboardInterrupt."""
    _received.clear()
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    before = _install(_interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _received.append((0, time.monotonic()))  # a signal that comes from now on finds a command that has said its end
        _put_back(before)


@contextmanager
def held_back() -> Iterator[None]:
    """Within this block, the signals wait; in a process that is forked in it, until :func:`leave_to_parent`."""
    waiting: list[int] = []
    before = _install(lambda number, _frame: waiting.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if HAS_MASKS else set()  # a forked process inherits it
    try:
        yield
    finally:
        if HAS_MASKS:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _put_back(before)
        if waiting:
            signal.raise_signal(waiting[0])


@contextmanager
def end_at_once() -> Iterator[None]:
    """Within this block, the signals end the process as they would any program: for calls that run no Python."""
    before = _install(signal.SIG_DFL)
    try:
        yield
    finally:
        _put_back(before)


@dataclass
class Postponed:
    """Whether a signal has come in a block of :func:`postponed`."""

    number: int = 0  # of the signal; 0: none


@contextmanager
def postponed(note: str = "") -> Iterator[Postponed]:
    """Within this block, the first signal is only noted; it is a KeyboardInterrupt when the block ends.

    A second one is a KeyboardInterrupt at once.

    Args:
        note: a line that the first signal writes to the error output.
    """
    noted = Postponed()

    def note_it(number: int, frame: FrameType | None) -> None:
        if noted.number or not _is_new_event():
            _interrupt(number, frame)
            return
        noted.number = number
        _received.append((number, time.monotonic()))
        if note:
            os.write(2, f"\n{note}\n".encode())

    before = _install(note_it)
    try:
        yield noted
    finally:
        _put_back(before)
    if noted.number:
        raise KeyboardInterrupt


def has_come() -> bool:
    """Whether a signal has come since the command began."""
    return bool(_received)


def exit_status() -> int:
    """Return what shells expect of a command that the first signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_received[0][0] if _received else signal.SIGINT)


def leave_to_parent() -> None:
    """Leave the signals to the process that started this one, and that will end it, by SIGTERM where need be."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if HAS_MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _install(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> dict[int, signal.Handlers | Callable | int]:
    """Let a handler answer the signals that are not ignored; return those it takes the place of."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, handler)
    return taken


def _put_back(handlers: dict[int, signal.Handlers | Callable | int]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if _is_new_event():
        _received.append((number, time.monotonic()))
        raise KeyboardInterrupt


def _is_new_event() -> bool:
    """Whether a signal that has just come is not one with those before it, and is this process's to answer."""
    return os.getpid() == _process and (not _received or time.monotonic() - _received[-1][1] > ONE_EVENT)


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """Let a signal come again, a moment later, whose KeyboardInterrupt Python has ignored.

    It does so in callbacks that cannot raise: while an object is freed, or a process is forked.
    """
    if lost.exc_type is not KeyboardInterrupt or not _received:
        sys.__unraisablehook__(lost)
        return
    number, _ = _received.pop()
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    if os.getpid() == _process:
        if not _received:  # else the command has said so already, and is about to end
            os.write(2, b"interrupted\n")
        os._exit(128 + number)


def _is_command() -> bool:
    """Whether a script of this toolkit was started, not another program that imports it."""
    started = getattr(sys.modules["__main__"], "__file__", None)
    return started is not None and Path(__file__).resolve().parents[1] in Path(started).resolve().parents


if _is_command():
    _install(_end_at_once)
