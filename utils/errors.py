"""The one way a user's mistake is reported: a single line on stderr and exit status 2."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable

from utils import interrupts


class UserError(Exception):
    """Something the user can fix; the message names the file, the line where there is one, and the remedy."""


class LostProcessError(UserError):
    """A process that the run needs has died: one that loads images, or another one of ``torchrun``."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


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
