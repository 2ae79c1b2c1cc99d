"""Parsed labels kept on the disk, keyed by what they were parsed from.

The key is a hash of every label file's content, of each image's path, size and time of change, and of the class names;
so an edited label is never missed. A file of another kind that has the cache's name is never overwritten, and a folder
that cannot be written to only means that the labels are parsed again next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from data.labels.annotations import Annotations, Problem
from utils.arrays import DAMAGE, read_arrays
from utils.files import atomic_path

MAGIC = "label cache of data/labels/cache.py, 2"  # change the number when the parsing changes
MAX_BYTES = 4 << 30  # of the arrays: 30 million boxes
MIN_IMAGES = 1000  # with fewer, parsing takes less than a second, and no file is left in the user's folder


def cache_path(source: Path) -> Path:
    """Return the cache file of an image list or folder: beside it, ``<name>.cache.npz``."""
    return source.with_name(source.name + ".cache.npz")


def content_key(images: Sequence[str], labels: Sequence[str], names: Sequence[str]) -> str:
    """Return the hash of everything that the parsed annotations depend on; "" in ``labels`` means no label file.

    Raises:
        OSError: a label file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps((MAGIC, list(names))).encode())
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
    """Return the annotations that were stored under the key; None where there are none, or the file is damaged."""
    try:
        columns = read_arrays(path, MAX_BYTES)
        header = json.loads(columns.pop("header").tobytes())
        if header["key"] != key or not str(header["magic"]).startswith(MAGIC[:-1]):
            return None
        annotations = Annotations(
            image_paths=header["image_paths"],
            names=tuple(header["names"]),
            category_ids=tuple(header["category_ids"]),
            problems=tuple(Problem(*problem) for problem in header["problems"]),
            **columns,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return annotations if _is_consistent(annotations) else None


def _is_consistent(annotations: Annotations) -> bool:
    """Whether the columns have the shapes and types of annotations, and name existing images and classes."""
    count, rows = len(annotations.image_paths), len(annotations.box_image)
    of_images = ("image_ids", "image_wh", "orientation")
    for name, kind, more in COLUMNS:
        values = getattr(annotations, name)
        if values is None:
            continue
        if values.dtype.kind != kind or values.shape != (count if name in of_images else rows, *more):
            return False
    image, labels = annotations.box_image, annotations.labels
    texts = (*annotations.image_paths, *annotations.names)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(id_, int) for id_ in annotations.category_ids)
        and len(annotations.names) == len(annotations.category_ids)
        and (not rows or bool(image[0] >= 0 and image[-1] < count and (np.diff(image) >= 0).all()))
        and (not rows or bool(labels.min() >= 0 and labels.max() < len(annotations.names)))
    )


def store(path: Path, key: str, annotations: Annotations) -> bool:
    """Write the annotations; return False where the folder cannot be written to or another file has the name."""
    if path.exists() and _header(path) is None:
        return False
    header = {"magic": MAGIC, "key": key, **{name: getattr(annotations, name) for name in _PLAIN}}
    columns = {
        item.name: getattr(annotations, item.name)
        for item in fields(Annotations)
        if item.name not in _PLAIN and getattr(annotations, item.name) is not None
    }
    text = np.frombuffer(json.dumps(header).encode(errors="surrogateescape"), dtype=np.uint8)
    with contextlib.suppress(OSError), atomic_path(path) as temporary:
        np.savez(temporary, header=text, **columns)
        return True
    return False


COLUMNS = (  # name, kind of its dtype, further dimensions
    ("image_ids", "i", ()),
    ("image_wh", "i", (2,)),
    ("orientation", "i", ()),
    ("box_image", "i", ()),
    ("boxes_xyxy", "f", (4,)),
    ("boxes_xywh", "f", (4,)),
    ("labels", "i", ()),
    ("crowd", "b", ()),
    ("areas", "f", ()),
    ("annotation_ids", "i", ()),
)
_PLAIN = ("image_paths", "names", "category_ids", "problems")  # stored as JSON; the other fields are arrays


def _header(path: Path) -> dict | None:
    """Return the JSON header of a cache file of any version, None for any other file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
    except (*DAMAGE, RecursionError):
        return None
    return header if isinstance(header, dict) and str(header.get("magic", "")).startswith(MAGIC[:-1]) else None
