"""``data.yaml`` as ultralytics/yolov5 v7.0, ultralytics 8 and Roboflow write it.

::

    path: ../datasets/coco128        # optional; relative to the yaml, the working directory or a folder `datasets`
    train: images/train2017          # a folder, a list of images, or a YAML list of these
    val: images/val2017
    nc: 3                            # optional
    names: [cat, dog, bird]          # or a mapping from numbers to names

Every scalar is read as text, so that a class called ``no``, ``1e3`` or ``2020-01-01`` keeps its name.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.description import DataDescription
from utils.class_names import MAX_CLASSES, read_names
from utils.config import REPOSITORY, find_file
from utils.errors import UserError, suggestion
from utils.yaml_file import read_yaml

SPLIT_KEYS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
KEYS = ("path", "nc", "names", "kpt_shape", "flip_idx", "download", *SPLIT_KEYS)


def read_data_yaml(name: str | Path) -> DataDescription:
    """Read a ``data.yaml``, looked up as given and then in ``cfg/``.

    Raises:
        UserError: no such file, not YAML, no mapping, or a value that is not what its key needs; names file and line.
    """
    path = find_file(str(name), "data file")
    file = DataYaml(path, *read_yaml(path, as_text=True))
    splits: dict[str, tuple[str, ...]] = {}
    for key, split in SPLIT_KEYS.items():
        texts = file.texts(key)
        if texts and split in splits:
            raise UserError(f"{file.place(key)}: '{key}' and another key both name the split '{split}'")
        if texts:
            splits[split] = texts
    if not splits:
        found = f" (it has {', '.join(file.values)})" if file.values else ""
        raise UserError(f"{file.path}: names no images; a data.yaml has the keys 'train' and 'val'{found}")
    names = _names(file)
    return DataDescription(
        file.path,
        _num_classes(file, names),
        names,
        splits,
        download=textwrap.shorten(file.text("download"), 200),  # it may be a program
        roots=_roots(file),
        notes=_notes(file),
        keypoint_shape=(shape := _keypoint_shape(file)),
        keypoint_mirror=_keypoint_mirror(file, shape[0] if shape else 0),
    )


@dataclass(frozen=True)
class DataYaml:
    """The keys of a file with their values: texts, lists and mappings."""

    path: Path
    values: dict[str, Any]
    lines: dict[str, int]

    def place(self, key: str) -> str:
        """Return file and line of a key, for messages."""
        return f"{self.path}:{self.lines[key]}"

    def text(self, key: str) -> str:
        """Return a single value; "" where the key is missing or empty."""
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise UserError(f"{self.place(key)}: '{key}' must be a single value")
        return "" if value in ("null", "~") else value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a value or a list of values; () where the key is missing or empty."""
        values = self.values.get(key, "")
        if not isinstance(values, list):
            return (self.text(key),) if self.text(key) else ()
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{self.place(key)}: '{key}' must be a list of single values")
        return tuple(values)


def _keypoint_shape(file: DataYaml) -> tuple[int, int] | None:
    """Return how many key points follow a box and how many numbers each has, 2 or 3; None where the file is silent."""
    texts = file.texts("kpt_shape")
    if not texts:
        return None
    if (
        len(texts) != 2
        or not all(text.isdecimal() and len(text) < 5 for text in texts)
        or not _is_shape(*map(int, texts))
    ):
        wanted = "[points, numbers of each, 2 or 3], such as [17, 3]"
        raise UserError(f"{file.place('kpt_shape')}: 'kpt_shape' must be {wanted}")
    return int(texts[0]), int(texts[1])


def _keypoint_mirror(file: DataYaml, count: int) -> tuple[int, ...]:
    """Return the key point that takes the place of each in a mirror; () where the file is silent."""
    texts = file.texts("flip_idx")
    if texts and not count:
        missing = f"the key points of 'kpt_shape', which {file.path} does not have"
        raise UserError(f"{file.place('flip_idx')}: 'flip_idx' is about {missing}")
    if texts and sorted(texts, key=lambda text: (len(text), text)) != [str(number) for number in range(count)]:
        wanted = f"the numbers 0 to {count - 1}, the point on the other side for each of kpt_shape's {count}"
        raise UserError(f"{file.place('flip_idx')}: 'flip_idx' must be {wanted}")
    mirror = tuple(map(int, texts))
    for point, other in enumerate(mirror):
        if mirror[other] != point:
            sides = f"{other} beside {point}, but {mirror[other]} beside {other}"
            raise UserError(f"{file.place('flip_idx')}: 'flip_idx' must say of two points the same, not {sides}")
    return mirror


def _is_shape(points: int, numbers: int) -> bool:
    return (points, numbers) == (0, 0) or (points > 0 and numbers in (2, 3))


def _roots(file: DataYaml) -> tuple[Path, ...]:
    """Return the folders to which the paths of the splits may be relative, the likeliest first."""
    near = (file.path.parent, Path(), REPOSITORY)
    text = file.text("path").replace("\\", "/")
    if not text:
        return near
    written = Path(os.path.expanduser(text))
    plain = Path(*(part for part in written.parts if part != ".."))  # "../datasets/x" of a folder beside the datasets
    folders = [root / path for path in (written, plain) for root in near]
    folders += [root / "datasets" / written for root in near]
    return (*(folder for folder in dict.fromkeys(folders) if folder.is_dir()), *near)


def _names(file: DataYaml) -> tuple[str, ...]:
    """Return the class names of a list, of a mapping from numbers, or of the names file that is named instead."""
    value = file.values.get("names")
    if isinstance(value, str) and file.text("names"):
        path = file.path.parent / value
        return read_names(path if path.is_file() else find_file(value, "names file"))
    if not isinstance(value, dict):
        return _checked(file.texts("names"), file)
    numbers = [str(number) for number in range(len(value))]
    missing = next((number for number in numbers if number not in value), None)
    if missing is not None:
        raise UserError(f"{file.place('names')}: 'names' must number the classes from 0 on; {missing} is missing")
    names = [value[number] for number in numbers]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{file.place('names')}: each of 'names' must be a single value")
    return _checked(names, file)


def _checked(names: Sequence[str], file: DataYaml) -> tuple[str, ...]:
    """Return the names, stripped.

    Raises:
        UserError: one is empty or stands there twice.
    """
    stripped = tuple(name.strip() for name in names)
    for number, name in enumerate(stripped):
        if not name:
            raise UserError(f"{file.place('names')}: the name of class {number} is empty")
    if len(set(stripped)) < len(stripped):
        twice = next(name for name in stripped if stripped.count(name) > 1)
        raise UserError(f"{file.place('names')}: duplicate class name '{twice}'")
    return stripped


def _num_classes(file: DataYaml, names: Sequence[str]) -> int:
    """Return ``nc``, or the number of names where it is missing."""
    count = file.text("nc").strip()
    if not count:
        return len(names)
    if not (count.isdecimal() and len(count) < 8 and 0 < int(count) <= MAX_CLASSES):
        raise UserError(f"{file.place('nc')}: nc: {count[:40]} is not a usable number of classes")
    if names and int(count) != len(names):
        raise UserError(f"{file.place('nc')}: nc: {count}, but 'names' has {len(names)} names")
    return int(count)


def _notes(file: DataYaml) -> tuple[str, ...]:
    """Return the line that names the keys without a meaning here."""
    unused = [key for key in file.values if key not in KEYS]
    if not unused:
        return ()
    meant = next((text for key in unused if (text := suggestion(key, KEYS))), "")
    return (f"{file.path}: not used here: {', '.join(unused)}{meant}",)
