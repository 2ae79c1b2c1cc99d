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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data.description import DataDescription
from utils.class_names import read_names
from utils.config import REPOSITORY, find_file
from utils.errors import UserError, suggestion

SPLIT_KEYS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
KEYS = ("path", "nc", "names", "download", *SPLIT_KEYS)
LARGEST_FILE = 10 << 20  # bytes: the names of a million classes


def read_data_yaml(name: str | Path) -> DataDescription:
    """Read a ``data.yaml``, looked up as given and then in ``cfg/``.

    Raises:
        UserError: no such file, not YAML, no mapping, or a value that is not what its key needs; names file and line.
    """
    file = YamlMapping.read(find_file(str(name), "data file"))
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
        download=" ".join(file.text("download").split()),
        roots=_roots(file),
        notes=_notes(file),
    )


@dataclass(frozen=True)
class YamlMapping:
    """The top level of a YAML file: its keys in order, with the nodes of their values, which know their lines."""

    path: Path
    values: dict[str, yaml.Node]

    @classmethod
    def read(cls, path: Path) -> YamlMapping:
        """Parse a file.

        Raises:
            UserError: it is too large, no YAML, no mapping, or has a key twice.
        """
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE >> 20} MiB, which no data.yaml is")
        try:
            root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or "is not a UTF-8 text file"
            raise UserError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {reason}") from error
        except RecursionError as error:
            raise UserError(f"{path}: not a data.yaml: nested too deep") from error
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: not a data.yaml: expected 'key: value' lines")
        values: dict[str, yaml.Node] = {}
        for key, value in root.value:
            text = str(key.value)
            if text in values:
                raise UserError(f"{path}:{key.start_mark.line + 1}: '{text}' is given twice")
            values[text] = value
        return cls(path, values)

    def place(self, key: str) -> str:
        """Return file and line of a value, for messages."""
        return f"{self.path}:{self.values[key].start_mark.line + 1}"

    def text(self, key: str) -> str:
        """Return a single value; "" where the key is missing or empty."""
        node = self.values.get(key)
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode):
            raise UserError(f"{self.place(key)}: '{key}' must be a single value")
        return "" if node.value in ("null", "~") and not node.style else node.value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a value or a list of values; () where the key is missing or empty."""
        node = self.values.get(key)
        if not isinstance(node, yaml.SequenceNode):
            return (self.text(key),) if self.text(key) else ()
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise UserError(f"{self.place(key)}: '{key}' must be a list of single values")
        return tuple(item.value for item in node.value)


def _roots(file: YamlMapping) -> tuple[Path, ...]:
    """Return the folders to which the paths of the splits may be relative, the likeliest first."""
    near = (file.path.parent, Path(), REPOSITORY)
    text = file.text("path").replace("\\", "/")
    if not text:
        return near
    written = Path(text).expanduser()
    plain = Path(*(part for part in written.parts if part != ".."))  # "../datasets/x" of a folder beside the datasets
    folders = [root / path for path in (written, plain) for root in near]
    folders += [root / "datasets" / written for root in near]
    return (*(folder for folder in dict.fromkeys(folders) if folder.is_dir()), *near)


def _names(file: YamlMapping) -> tuple[str, ...]:
    """Return the class names of a list, of a mapping from numbers, or of the names file that is named instead."""
    node = file.values.get("names")
    if not isinstance(node, yaml.MappingNode):
        names = file.texts("names")
        if isinstance(node, yaml.ScalarNode) and names:
            path = file.path.parent / names[0]
            return read_names(path if path.is_file() else find_file(names[0], "names file"))
        return _checked(names, file)
    by_number: dict[str, str] = {}
    for key, value in node.value:
        if not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{file.path}:{value.start_mark.line + 1}: a class name must be a single value")
        by_number[str(key.value).strip()] = value.value
    numbers = [str(number) for number in range(len(node.value))]
    missing = next((number for number in numbers if number not in by_number), None)
    if missing is not None:
        raise UserError(f"{file.place('names')}: 'names' must number the classes from 0 on; {missing} is missing")
    return _checked([by_number[number] for number in numbers], file)


def _checked(names: Sequence[str], file: YamlMapping) -> tuple[str, ...]:
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


def _num_classes(file: YamlMapping, names: Sequence[str]) -> int:
    """Return ``nc``, or the number of names where it is missing."""
    count = file.text("nc").strip()
    if not count:
        return len(names)
    if not (count.isdecimal() and len(count) < 8 and int(count) > 0):
        raise UserError(f"{file.place('nc')}: nc: {count[:40]} is not a usable number of classes")
    if names and int(count) != len(names):
        raise UserError(f"{file.place('nc')}: nc: {count}, but 'names' has {len(names)} names")
    return int(count)


def _notes(file: YamlMapping) -> tuple[str, ...]:
    """Return the line that names the keys without a meaning here."""
    unused = [key for key in file.values if key not in KEYS]
    if not unused:
        return ()
    meant = next((text for key in unused if (text := suggestion(key, KEYS))), "")
    return (f"{file.path}: not used here: {', '.join(unused)}{meant}",)
