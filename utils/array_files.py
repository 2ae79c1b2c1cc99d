"""Arrays of this toolkit on the disk (``.npz``), with a checksum: what comes back is what was written, or refused."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.files import atomic_path

CHECKSUM = "checksum"  # of all other arrays, itself an array


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, whole or not at all."""
    with atomic_path(path) as temporary:
        # "file" is a name that numpy's own function keeps for itself, so the arrays go in by their names.
        np.savez(temporary, **arrays, **{CHECKSUM: _checksum(arrays)})  # type: ignore[arg-type]


def read_arrays(path: Path, *, needs_checksum: bool = True) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`write_arrays` wrote.

    Args:
        path: the file.
        needs_checksum: False also takes a file without a checksum, from before there was one.

    Raises:
        ValueError: no such archive, compressed, damaged, or not what was written.
        OSError: the file cannot be opened.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            # Nothing is compressed: an archive that grows when it is read could fill the memory.
            if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                raise ValueError("its entries claim more bytes than the file has")
            for name in archive.namelist():
                content = np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
                arrays[name.removesuffix(".npy")] = np.asarray(content)
    except OSError:
        raise
    except Exception as error:  # what zipfile and numpy raise on damaged bytes is open-ended: zlib.error, …
        raise ValueError(f"not an archive of arrays ({error!s:.80})") from error
    checksum = arrays.pop(CHECKSUM, None)
    if checksum is None and needs_checksum:
        raise ValueError("it has no checksum")
    if checksum is not None and not np.array_equal(checksum, _checksum(arrays)):
        raise ValueError("its checksum is another")
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a hash of names, types, shapes and content, [16] uint8."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{values.dtype.str}\0{arrays[name].shape}\0".encode(errors="surrogateescape"))
        digest.update(values.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)
