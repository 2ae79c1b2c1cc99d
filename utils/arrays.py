"""Reading ``.npz`` files that may be damaged."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

# What zipfile and NumPy raise for archives of which bytes have changed.
DAMAGE = (
    OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, SyntaxError,
    OverflowError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip


def read_arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """Return the arrays of a ``.npz`` file by their names; nothing in it is unpickled.

    Args:
        path: the file.
        max_bytes: that its arrays may have; a small archive can stand for very large ones.

    Raises:
        ValueError: it is missing, damaged, or larger.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > max_bytes:
                raise ValueError(f"its arrays would need more than {max_bytes >> 20} MiB")
        with np.load(path, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files}
    except DAMAGE as error:
        raise ValueError(str(error)) from error
