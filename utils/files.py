"""Files are written whole or not at all, under a temporary name in the same folder, and text is read up to a limit."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well, remove it otherwise.

    The temporary name keeps the suffix, because OpenCV and matplotlib choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # the content must reach the disk before the name does
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write a text file that is never seen half written."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file that is never seen half written; NaN is refused, because JSON has none."""
    write_text_atomically(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_text(path: str | Path, max_bytes: int) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

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
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: is not a UTF-8 text file; save it as UTF-8") from error
