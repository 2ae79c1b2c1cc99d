"""Files that are whole or absent: written under a temporary name in the same folder, then renamed; text of some size.

The temporary name says which process on which machine writes: ``.last.5e1f09c2-4711.pt``. What a process that was
killed has left can so be told from what another one is just writing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError


def printable(path: str) -> str:
    r"""Return a path as text that can be printed, drawn and encoded: a byte that is not UTF-8 as ``\xNN``.

    Python keeps such bytes of a file name as lone surrogates (PEP 383), which no encoder of text accepts.
    """
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", path)


@contextmanager
def utf8_path(path: str | Path) -> Iterator[str]:
    """Yield a name under which a library that knows only UTF-8 can open or make a file: the path itself, or a link."""
    if printable(str(path)) == str(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"link{Path(path).suffix}"
        link.symlink_to(Path(path).absolute())
        yield str(link)


MAX_LIST_BYTES = 500_000_000  # of a list of images: five million


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well, remove it otherwise.

    The temporary name keeps the suffix, because OpenCV and matplotlib choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # the content must reach the disk before the name does
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the name beside ``path`` under which this process writes it."""
    return path.with_name(f".{path.stem}.{this_machine()}-{os.getpid()}{path.suffix}")


def keep_previous(path: Path, count: int) -> None:
    """Let a file that is about to be replaced stay beside it: ``last.pt`` as ``last-1.pt``, that as ``last-2.pt``, …

    The file itself keeps its name until it is replaced, so that there is one at every moment.

    Args:
        path: the file; where there is none, nothing happens.
        count: how many stay; older ones are removed.
    """
    names = [path, *(previous_path(path, number) for number in range(1, count + 1))]
    if path.is_file():
        for newer, older in reversed(list(itertools.pairwise(names[1:]))):
            if newer.is_file():
                os.replace(newer, older)
        if count:
            _second_name(path, names[1])
    number = count + 1
    while previous_path(path, number).is_file():
        previous_path(path, number).unlink()
        number += 1


def previous_path(path: Path, number: int) -> Path:
    """Return the name of the file that was ``path`` so many replacements ago."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _second_name(path: Path, name: Path) -> None:
    """Give a file another name, too; where the file system has no links, copy it."""
    temporary = temporary_path(name)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove those of some files and folders that a process of this machine was writing when it was killed."""
    for path in paths:
        found = UNFINISHED.search(path.name)
        if found and found["machine"] == this_machine() and not _is_running(int(found["process"])):
            with contextlib.suppress(OSError):  # another run may have removed it, or the folder is read-only
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


UNFINISHED = re.compile(r"^\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]{1,10})(\.[^.]*)?$")


def this_machine() -> str:
    """Return eight letters for this machine, and for the container in which process numbers count, if in one."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        numbering = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {numbering}'.encode()):08x}"


def _is_running(process: int) -> bool:
    """Whether there is a process of this number; also True where that cannot be found out."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # there is one, of another user
        return True
    return True


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write a text file that is never seen half written.

    Letters that UTF-8 does not have, as in the name of a file of another encoding, are written as ``\\udcff``.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


class GrowingFile:
    """A UTF-8 text file that is written piece by piece, and that has its name only when it is closed."""

    def __init__(self, path: Path) -> None:
        """Prepare to write; there is no file before the first :meth:`add`."""
        self.path = path
        self._stack = contextlib.ExitStack()
        self._file: IO[str] | None = None

    def add(self, text: str) -> None:
        """Append text; letters that UTF-8 does not have are written as in :func:`write_text_atomically`."""
        if self._file is None:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._file = self._stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace"))
        self._file.write(text)

    def close(self) -> None:
        """Give the file its name, if anything was written."""
        self._stack.close()


def write_json_atomically(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file that is never seen half written; NaN is refused, because JSON has none."""
    write_text_atomically(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_text(path: str | Path, max_bytes: int, keep_bytes: bool = False) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        max_bytes: the most that is read.
        keep_bytes: bytes that are not UTF-8 become lone surrogates, as Python has them in the names of files.

    Raises:
        UserError: larger than ``max_bytes``, or not UTF-8; names the line.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)  # not by the size in its folder: a device or a pipe has none
    if len(data) > max_bytes:
        raise UserError(
            f"{path}: has more than {max_bytes:,} bytes, the most that is read; is it another kind of file?"
        )
    try:
        return data.decode("utf-8-sig", errors="surrogateescape" if keep_bytes else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: is not a UTF-8 text file; save it as UTF-8") from error
