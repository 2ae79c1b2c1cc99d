"""How a command ends that cannot go on: a single line on stderr, and exit status 2 where the user can mend it."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from utils import interrupts


class UserError(Exception):
    """Something the user can fix; the message names the file, the line where there is one, and the remedy."""


class LostProcessError(UserError):
    """A process that the run needs has died: one that loads images, or another one of ``torchrun``."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a known word that is near in spelling, or an empty string.

    Near is what a slip of the finger makes: one edit, two in words of more than five letters; else a word that begins
    with the typed one, or that is the first half of it. Case and leading hyphens do not count.
    """
    typed = word.lstrip("-").casefold()
    close: list[tuple[int, bool, str]] = []  # (edits, whether it begins with another letter, known word)
    for candidate in known:
        name = candidate.lstrip("-").casefold()
        shorter, longer = sorted((typed, name), key=len)
        allowed = min(2, (len(typed) + 2) // 4)
        if len(longer) - len(shorter) <= allowed and (edits := count_edits(typed, name)) <= allowed:
            close.append((edits, typed[:1] != name[:1], candidate))
        elif len(shorter) >= 3 and longer.startswith(shorter) and (longer == name or len(longer) <= 2 * len(shorter)):
            close.append((len(longer), False, candidate))  # after all that are one or two edits away
    return f"; did you mean '{min(close)[-1]}'?" if close else ""


def count_edits(first: str, second: str) -> int:
    """Return how many letters must be put in, left out, replaced or swapped with their neighbour to change a word."""
    before_last: list[int] = []
    last = list(range(len(second) + 1))  # edits from the letters of first so far to the first j letters of second
    for i, letter in enumerate(first):
        row = [i + 1]
        for j, other in enumerate(second):
            edits = min(last[j + 1] + 1, row[j] + 1, last[j] + (letter != other))
            if i and j and letter == second[j - 1] and first[i - 1] == other:
                edits = min(edits, before_last[j - 1] + 1)
            row.append(edits)
        before_last, last = last, row
    return last[-1]


@interrupts.as_exceptions()
def run_command(main: Callable[[], None]) -> None:
    """Run a script's ``main`` and turn a :class:`UserError` or a file-system error into one line and exit status 2.

    Where a reader of the output has gone (``| head``), the program ends quietly; Ctrl-C, SIGTERM and SIGHUP end it with
    one line and status 130, 143 and 129, as shells expect. Where the console cannot show a letter, a question mark is
    printed instead. Any other exception is a mistake of ours: its traceback goes into a file, one line says where that
    is, and the exit status is 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a notebook it is not
            stream.reconfigure(errors="replace")
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(describe_os_error(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            _report(error)
        _fail(OUT_OF_MEMORY)
    except Exception as error:
        _report(error)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(interrupts.exit_status())


OUT_OF_MEMORY = "out of memory; lower --batch-size, --img-size or the number of --workers"


def describe_os_error(error: OSError) -> str:
    """Return the file, where there is one, and what was wrong with it."""
    return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or torch (on a GPU or on the CPU) found no memory; torch has no common class for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def _fail(message: str, status: int = 2) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


def _report(error: Exception) -> NoReturn:
    """Write the traceback and the command into a file, say where it is, and end with status 1."""
    text = "".join(
        (
            f"{shlex.join(sys.argv)}\nin {Path.cwd()}, Python {platform.python_version()} on {platform.platform()}\n\n",
            *traceback.format_exception(error),
        )
    )
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path("runs"), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
            what = f"{type(error).__name__}: {error!s:.200}"
            _fail(f"a fault of this program ({what}); please report it with {folder / name}", status=1)
    raise error
