"""Parsed labels kept on the disk, keyed by what they were parsed from.

The key is a hash of every label file's content, of each image's path, size and time of change, and of the class names;
so an edited label is never missed. A damaged cache is as good as none, a file of another kind that has the cache's name
is never overwritten, and a folder that cannot be written to only means that the labels are parsed again next time.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.labels.annotations import Annotations, KeyPoints, Problem
from data.labels.polygons import Polygons
from utils.array_files import read_arrays, write_arrays
from utils.files import remove_unfinished

MAGIC = "label cache of data/labels/cache.py, 4"  # change the number when the parsing changes
MIN_IMAGES = 1000  # with fewer, parsing takes less than a second, and no file is left in the user's folder


def cache_path(source: Path, wants: frozenset[str] = frozenset()) -> Path:
    """Return the cache file of an image list or folder: beside it, ``<name>.cache.npz``; with shapes, of its own."""
    return source.with_name(source.name + (".shapes" if wants else "") + ".cache.npz")


def content_key(
    images: Sequence[str], labels: Sequence[str], names: Sequence[str], keypoint_shape: Sequence[int] | None
) -> str:
    """Return the hash of everything that the parsed annotations depend on; "" in ``labels`` means no label file.

    Raises:
        OSError: a label file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps((MAGIC, list(names), keypoint_shape)).encode())
    for image, label in zip(images, labels, strict=True):
        try:
            status = os.stat(image)
            stamp = f"{image}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\0"
        except OSError:
            stamp = f"{image}\0missing\0{label}\0"
        digest.update(stamp.encode(errors="surrogateescape"))
        if label:
            with open(label, "rb") as file:
                content = file.read()
            digest.update(f"{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def load(path: Path, key: str) -> Annotations | None:
    """Return the annotations that were stored under the key, or None."""
    try:
        columns: dict[str, Any] = dict(read_arrays(path))
    except (OSError, ValueError):
        return None
    header = json.loads(columns.pop("header").tobytes()) if "header" in columns else {}
    if header.get("key") != key:
        return None
    of_unlearnable = [name for name in columns if name.startswith(UNLEARNABLE)]
    unlearnable = {name.removeprefix(UNLEARNABLE): columns.pop(name) for name in of_unlearnable}
    values = {
        "image_paths": header["image_paths"],
        "names": tuple(header["names"]),
        "category_ids": tuple(header["category_ids"]),
        "problems": tuple(Problem(*problem) for problem in header["problems"]),
    }
    annotations = Annotations(**values, **_with_shapes(columns))
    if not unlearnable:
        return annotations
    boxes_alone = replace(annotations, problems=(), polygons=None, key_points=None)
    return replace(annotations, unlearnable=replace(boxes_alone, **_with_shapes(unlearnable)))


def store(path: Path, key: str, annotations: Annotations) -> bool:
    """Write the annotations; return False where the folder cannot be written to or another file has the name."""
    if path.exists() and not _is_cache(path):
        return False
    header = {"magic": MAGIC, "key": key, **{name: getattr(annotations, name) for name in _PLAIN}}
    columns = _arrays(annotations)
    if annotations.unlearnable is not None:
        columns |= {f"{UNLEARNABLE}{name}": array for name, array in _arrays(annotations.unlearnable).items()}
    remove_unfinished(path.parent.glob(f".{glob.escape(path.stem)}.*"))
    text = np.frombuffer(json.dumps(header).encode(errors="surrogateescape"), dtype=np.uint8)
    with contextlib.suppress(OSError):
        write_arrays(path, {"header": text, **columns})  # the header first: _is_cache looks at the start of the file
        return True
    return False


_PLAIN = ("image_paths", "names", "category_ids", "problems")  # stored as JSON; the other fields are arrays
SHAPES = {"polygons": Polygons, "key_points": KeyPoints}  # columns that are several arrays
UNLEARNABLE = "unlearnable."  # before the names of the arrays of the boxes that cannot be learned


def _arrays(annotations: Annotations) -> dict[str, Any]:
    """Return the columns by their names."""
    values = {item.name: getattr(annotations, item.name) for item in fields(Annotations)}
    for name in SHAPES:
        if (shapes := values[name]) is not None:
            values |= {f"{name}.{item.name}": np.asarray(getattr(shapes, item.name)) for item in fields(shapes)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _with_shapes(columns: dict[str, Any]) -> dict[str, Any]:
    """Return the columns with the arrays of each of ``SHAPES`` put together."""
    joined = {name: value for name, value in columns.items() if "." not in name}
    for name, kind in SHAPES.items():
        parts = {key.partition(".")[2]: value for key, value in columns.items() if key.startswith(f"{name}.")}
        if parts:
            joined[name] = kind(**parts)
    return joined


def _is_cache(path: Path) -> bool:
    """Whether a file begins like a cache of any version, however damaged the rest of it may be."""
    try:
        with open(path, "rb") as file:
            return MAGIC[:-1].encode() in file.read(1000)
    except OSError:
        return False
