"""The ``.data`` file: which images and labels a run uses, as Darknet and ultralytics users write it.

::

    classes = 80
    train   = datasets/coco/annotations/instances_train2017.json   # or an image list, a folder, a VOC ImageSets list
    valid   = datasets/coco/annotations/instances_val2017.json
    names   = cfg/coco.names

A relative path is looked for in the working directory, then beside the ``.data`` file, then in the repository.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from data.description import SPLITS, DataDescription
from utils.class_names import MAX_CLASSES, read_names
from utils.config import find_file
from utils.errors import UserError, suggestion

KEYS = ("classes", "names", "download", "draw", *SPLITS, *(f"{split}_images" for split in SPLITS))
DARKNET_KEYS = ("backup", "eval", "results", "top", "difficult", "map", "labels")  # of Darknet, without effect here
COMMENT = re.compile(r"(?:^|\s)#")  # a # within a path is part of it


def read_data_file(path: str | Path) -> DataDescription:
    """Read a ``.data`` file, looked up as given and then in ``cfg/``; it needs no key that the command does not read.

    Raises:
        UserError: no such file, a line without ``=``, an unknown key, a bad number, a names file that is missing or
            does not have ``classes`` lines; names file and line.
    """
    path = find_file(str(path), "data file")
    values, lines = _key_values(path)
    splits: dict[str, tuple[str, ...]] = {split: (values[split],) for split in SPLITS if split in values}
    if not splits:
        raise UserError(f"{path}: names no images; it needs a line such as 'train = …' or 'valid = …'")
    num_classes = _num_classes(values["classes"], f"{path}:{lines['classes']}") if "classes" in values else 0
    description = DataDescription(
        path,
        num_classes,
        (),
        splits,
        {split: values[f"{split}_images"] for split in SPLITS if f"{split}_images" in values},
        values.get("download", ""),
        values.get("draw", ""),
    )
    if "names" not in values:
        return description
    names_path = description.find(values["names"])
    if names_path is None or not names_path.is_file():
        raise UserError(f"{path}:{lines['names']}: names = {values['names']} does not exist")
    names = read_names(names_path)
    if num_classes and len(names) != num_classes:
        place = f"{path}:{lines['classes']}"
        raise UserError(f"{place}: classes = {num_classes}, but {names_path} has {len(names)} names")
    return replace(description, num_classes=len(names), names=names)


def _num_classes(text: str, place: str) -> int:
    if not (text.isdecimal() and len(text) < 10 and 0 < int(text) <= MAX_CLASSES):
        raise UserError(f"{place}: classes = {text[:40]} is not a usable number of classes (1 to {MAX_CLASSES})")
    return int(text)


def _key_values(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Return the value of each key and the number of its line, from 1.

    Raises:
        UserError: not a text file, a line without ``=``, an unknown key, or one that is given twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file") from error
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = COMMENT.split(line)[0].strip()
        if not line or line.startswith(";"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not value:
            raise UserError(f"{path}:{number}: expected 'key = value', found '{line}'")
        if key in DARKNET_KEYS:
            continue
        if key not in KEYS:
            raise UserError(f"{path}:{number}: unknown key '{key}'{suggestion(key, KEYS)}")
        if key in values:
            raise UserError(f"{path}:{number}: '{key}' is given twice (first in line {lines[key]})")
        values[key], lines[key] = value, number
    return values, lines
