"""The one way a user's mistake is reported: a single line on stderr and exit status 2."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable

from utils import interrupts


class UserError(Exception):
    """Something the user can fix; the message names the file, the line where there is one, and the remedy."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a known word that is near in spelling, or an empty string.

    Near is what a slip of the finger makes: one edit, two in words of more than five letters; else a word of which the
    other is the beginning. Case and leading hyphens do not count.
    """
    typed = word.lstrip("-").casefold()
    close: list[tuple[int, bool, str]] = []  # (edits, whether it begins with another letter, known word)
    for candidate in known:
        name = candidate.lstrip("-").casefold()
        shorter, longer = sorted((typed, name), key=len)
        allowed = min(2, (len(typed) + 2) // 4)
        if len(longer) - len(shorter) <= allowed and (edits := count_edits(typed, name)) <= allowed:
            close.append((edits, typed[:1] != name[:1], candidate))
        elif len(shorter) >= 3 and longer.startswith(shorter):
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
    printed instead.
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
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail("out of memory; lower --batch-size, --img-size or the number of --workers")
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(interrupts.exit_status())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or torch (on a GPU or on the CPU) found no memory; torch has no common class for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
