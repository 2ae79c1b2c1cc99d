"""What the image files of a split say about themselves, compared with what their annotations say.

Headers of many images are kept on the disk, under a hash of each file's path, size and time of change.

Column letter: N images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.image_files import ImageHeader, image_header, other_size
from data.labels.annotations import Problem
from data.labels.progress import with_progress
from utils.errors import UserError
from utils.files import atomic_path

MAGIC = "header cache of data/labels/headers.py, 1"  # change the number when something else is read from a header
MIN_IMAGES = 1000  # with fewer, reading takes less than a second, and no file is left in the user's folder
MAX_CACHE_BYTES = 1 << 28  # ten million images need no more
MAX_SIDE = 1 << 31  # pixels

UNREADABLE = "image that cannot be read, left out"
OTHER_SIZE = "image of another size than its annotation says, left out"
BAD_IMAGES = (UNREADABLE, OTHER_SIZE)
AS_STORED = "image that is to be turned by its EXIF orientation, but whose annotation says the size before; not turned"
DEEP = "image of more than 8 bits per value, which are scaled by the bits that its largest value needs"


@dataclass(frozen=True)
class CheckedImages:
    """The images of a split, as columns, and what is wrong with them."""

    image_wh: np.ndarray  # [N 2] int64, as the annotation says, else of the upright picture; 0 where neither is known
    orientation: np.ndarray  # [N] int8, the EXIF orientation to undo when reading pixels
    is_bad: np.ndarray  # [N] bool: cannot be read, or is of another size than its annotation says
    problems: list[Problem]


def check_images(paths: Sequence[str], said_wh: np.ndarray, cache_file: Path | None = None) -> CheckedImages:
    """Read the headers and decide, image by image, whether its annotation speaks of the upright picture.

    It does unless it says a size that only the picture as it is stored has.

    Args:
        paths: of N images; "" for those that are not looked at.
        said_wh: [N 2] sizes that the annotations say, 0 where they do not.
        cache_file: keeps the headers of many images; None: they are read in any case.

    Raises:
        UserError: all images are bad.
    """
    headers, reasons = _headers(paths, cache_file)
    columns = np.array(headers, dtype=np.int64).reshape(-1, len(ImageHeader._fields))
    upright_wh, orientation = columns[:, :2], columns[:, 2]
    stored_wh = np.where(orientation[:, None] >= 5, upright_wh[:, ::-1], upright_wh)
    is_read = upright_wh.all(axis=1)
    is_said = (said_wh > 0).all(axis=1)
    fits_upright = (said_wh == upright_wh).all(axis=1)
    as_stored = is_read & is_said & ~fits_upright & (said_wh == stored_wh).all(axis=1)
    is_other = is_read & is_said & ~fits_upright & ~as_stored
    is_bad = is_other | np.isin(np.arange(len(paths)), list(reasons))

    problems = [Problem(paths[i], 0, UNREADABLE, reason) for i, reason in reasons.items()]
    for i in np.flatnonzero(is_other).tolist():
        said = (int(said_wh[i, 0]), int(said_wh[i, 1]))
        problems.append(Problem(paths[i], 0, OTHER_SIZE, other_size((headers[i][0], headers[i][1]), said)))
    for rows, kind in ((as_stored, AS_STORED), ((columns[:, 3] > 0) & ~is_bad, DEEP)):
        problems += [Problem(paths[i], 0, kind, "") for i in np.flatnonzero(rows).tolist()]
    if len(paths) and is_bad.all():
        raise UserError(f"{problems[0].file}: {problems[0].what} (of {len(paths)} images none can be used)")
    return CheckedImages(
        image_wh=np.where(np.expand_dims(is_said, 1), said_wh, upright_wh).astype(np.int64),
        orientation=np.where(as_stored, 1, orientation).astype(np.int8),
        is_bad=is_bad,
        problems=problems,
    )


def _headers(paths: Sequence[str], cache_file: Path | None) -> tuple[list[list[int]], dict[int, str]]:
    """Return the header of each image as numbers, with sizes of 0 where there is none, and why, by index."""
    if cache_file is None or sum(map(bool, paths)) < MIN_IMAGES:
        return _read_headers(paths)
    key = _key(paths)
    recalled = _load(cache_file, key, len(paths))
    if recalled is not None:
        return recalled
    headers, reasons = _read_headers(paths)
    content = {"magic": MAGIC, "key": key, "headers": headers, "reasons": list(reasons.items())}
    if not cache_file.exists() or _is_ours(cache_file):  # a file of another kind is never overwritten
        with contextlib.suppress(OSError), atomic_path(cache_file) as temporary:
            temporary.write_text(json.dumps(content), encoding="ascii")
    return headers, reasons


def _read_headers(paths: Sequence[str]) -> tuple[list[list[int]], dict[int, str]]:
    headers, reasons = [], {}
    for index, path in enumerate(with_progress(paths, "reading image sizes")):
        header = ImageHeader(0, 0)
        try:
            header = image_header(path) if path else header
        except UserError as error:
            reasons[index] = str(error).removeprefix(f"{path}: ")
        headers.append([int(value) for value in header])
    return headers, reasons


def _key(paths: Sequence[str]) -> str:
    """Return the hash of everything that the headers depend on."""
    digest = hashlib.blake2b(MAGIC.encode(), digest_size=16)
    for path in paths:
        stamp = "not looked at"
        if path:
            try:
                status = os.stat(path)
                stamp = f"{status.st_size}\0{status.st_mtime_ns}"
            except OSError:
                stamp = "missing"
        digest.update(f"{path}\0{stamp}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load(path: Path, key: str, count: int) -> tuple[list[list[int]], dict[int, str]] | None:
    """Return what was stored under the key for so many images; None where nothing was, or the file is damaged."""
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            return None
        content = json.loads(path.read_bytes())
        if content["magic"] != MAGIC or content["key"] != key:
            return None
        headers, reasons = content["headers"], {int(index): str(reason) for index, reason in content["reasons"]}
        columns = np.array(headers, dtype=np.int64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if columns.shape != (count, len(ImageHeader._fields)) or not all(0 <= index < count for index in reasons):
        return None
    is_sound = (columns >= (0, 0, 1, 0)).all() and (columns <= (MAX_SIDE, MAX_SIDE, 8, 1)).all()
    return (headers, reasons) if is_sound else None


def _is_ours(path: Path) -> bool:
    """Whether a file begins as a header cache of any version, however it goes on."""
    beginning = json.dumps({"magic": MAGIC})[: -len('1"}')].encode()
    with open(path, "rb") as file:
        return file.read(len(beginning)) == beginning
