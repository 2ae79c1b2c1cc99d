"""Decoded images on the disk: one file with the pixels of all images of a training, for ``--cache disk``.

A line that says what it was made from, the pixels of the images one after the other, and for each image a byte that
says whether its pixels are there.

Column letter: N images.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from utils.files import atomic_path, remove_unfinished

MAGIC = "decoded images of data/decoded_file.py, 1"  # change the number when images are decoded in another way
MARK = ".decoded-"  # in the names of these files
HEADER_BYTES = 128


class DecodedFile:
    """Where the pixels of N images are, or will be; nothing stays open, so that it can be sent to other processes.

    Args:
        paths: of the image files.
        sizes_wh: [N 2] of the images as they are decoded, pixels.
        ways: [N] of decoding: whatever else the pixels depend on, as numbers.
    """

    def __init__(self, paths: Sequence[str], sizes_wh: np.ndarray, ways: Sequence[tuple[int, ...]]) -> None:
        self.sizes_wh = sizes_wh.astype(np.int64)
        lengths = self.sizes_wh.prod(axis=1) * 3
        self.starts = np.concatenate(([0], np.cumsum(lengths))) + HEADER_BYTES  # [N + 1]
        self.has = np.zeros(len(paths), bool)
        self.header = f"{MAGIC} {_hash(paths, ways, _stamp)}\n".encode().ljust(HEADER_BYTES)
        common = Path(_common_folder(paths))
        self.path = common.parent / f"{common.name}{MARK}{_hash(paths, ways, lambda _path: '')[:8]}.cache"

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return int(self.starts[-1]) + len(self.has)

    def others(self) -> list[Path]:
        """Return the files beside this one that hold other images of the folder, or other sizes of them."""
        beginning = self.path.name.rpartition(MARK)[0] + MARK
        return [path for path in _listed(self.path.parent, beginning) if path != self.path and _is_ours(path)]

    def recall(self) -> bool:
        """Whether the file is there already, whole, and none of the images has changed since."""
        try:
            if self.path.stat().st_size != self.num_bytes:
                return False
            with self.path.open("rb") as file:
                if file.read(HEADER_BYTES) != self.header:
                    return False
            self.has = np.fromfile(self.path, bool, offset=int(self.starts[-1]))
        except OSError:
            return False
        return True

    def write(self, decode: Callable[[int], np.ndarray | None], threads: int) -> Iterator[None]:
        """Decode all images into the file; yield after each. The file has its name when all are there.

        Args:
            decode: returns an image [h w 3] uint8; None where it is to be read from its own file whenever it is needed.
            threads: that decode at the same time.

        Raises:
            UserError: from ``decode``.
            OSError: the disk is full, the folder cannot be written to, or a file of another kind has the name.
        """
        if self.path.exists() and not _is_ours(self.path):
            raise FileExistsError(0, "another file has this name", str(self.path))
        remove_unfinished(_listed(self.path.parent, f".{self.path.stem}."))
        lock = threading.Lock()
        has = np.zeros(len(self.has), bool)
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:

            def write_one(index: int) -> None:
                image = decode(index)
                # A header may promise a size that a reduced image misses by a pixel.
                if image is None or image.shape[1::-1] != tuple(self.sizes_wh[index]):
                    return
                with lock:
                    file.seek(self.starts[index])
                    file.write(np.ascontiguousarray(image).data)
                has[index] = True

            file.write(self.header)
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(write_one, range(len(has)))
            file.seek(self.starts[-1])
            file.write(has.data)
        self.has = has

    def read(self, index: int) -> np.ndarray | None:
        """Return an image [h w 3] uint8; None where the file does not have it, or is gone."""
        if not self.has[index]:
            return None
        start, end = self.starts[index : index + 2].tolist()
        try:
            pixels = np.fromfile(self.path, np.uint8, end - start, offset=start)
        except OSError:
            return None
        width, height = self.sizes_wh[index].tolist()
        return pixels.reshape(height, width, 3) if len(pixels) == end - start else None


def _hash(paths: Sequence[str], ways: Sequence[tuple[int, ...]], stamp: Callable[[str], str]) -> str:
    digest = hashlib.blake2b(cv2.__version__.encode(), digest_size=16)
    for path, way in zip(paths, ways, strict=True):
        digest.update(f"{os.path.abspath(path)}\0{stamp(path)}\0{way}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stamp(path: str) -> str:
    """Return size and time of change of a file, in words."""
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder below which all images are, that of the first one where there is none with a name."""
    folders = sorted({os.path.dirname(os.path.abspath(path)) for path in paths})
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # on several drives
        common = ""
    return common if os.path.basename(common) else folders[0]


def _listed(folder: Path, beginning: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(beginning)]


def _is_ours(path: Path) -> bool:
    """Whether a file begins as one of any version, however it goes on."""
    beginning = MAGIC[:-1].encode()
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning
