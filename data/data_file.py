"""The ``.data`` file: which images and labels a run uses, as Darknet and ultralytics users write it.

::

    classes = 80
    train   = datasets/coco/annotations/instances_train2017.json   # or an image list, a folder, a VOC ImageSets list
    valid   = datasets/coco/annotations/instances_val2017.json
    names   = cfg/coco.names

A relative path is looked for in the working directory, then beside the ``.data`` file, then in the repository.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.class_names import read_names
from utils.config import REPOSITORY, find_file
from utils.errors import UserError, suggestion

SPLITS = ("train", "valid", "test")
KEYS = ("classes", "names", "download", "draw", *SPLITS, *(f"{split}_images" for split in SPLITS))
DARKNET_KEYS = ("backup", "eval", "results", "top", "difficult", "map", "labels")  # of Darknet, without effect here


@dataclass(frozen=True)
class DataDescription:
    """What a ``.data`` file says; nothing but the names file has been opened yet."""

    path: Path  # the .data file, or what stands in for one
    num_classes: int  # 0: as the COCO JSON says
    names: tuple[str, ...]  # empty: as the COCO JSON says
    splits: dict[str, str]  # "train", "valid", "test" -> the value as written
    image_folders: dict[str, str] = field(default_factory=dict)  # split -> explicit image folder of a COCO JSON
    download: str = ""  # the command that fetches the data
    draw: str = ""  # the built-in set that is drawn on first use
    keypoint_shape: tuple[int, int] | None = None  # of YOLO pose rows: points, numbers of each; (0, 0): there are none

    def find(self, text: str) -> Path | None:
        """Return the existing file or folder that a value of the ``.data`` file names, or None."""
        text = str(Path(text).expanduser())
        for root in (Path(), self.path.parent, REPOSITORY):
            if (root / text).exists():
                return root / text
        return None

    def source(self, split: str) -> Path:
        """Return the existing list, folder or JSON of a split.

        Raises:
            UserError: the file has no such split, or it is not on the disk; says how to get it.
        """
        if split not in self.splits:
            raise UserError(f"{self.path}: has no '{split}' (it has {', '.join(self.splits) or 'no split at all'})")
        text = self.splits[split]
        found = self.find(text)
        if found is None:
            remedy = f"; fetch it with: {self.download}" if self.download else f"; correct '{split}' in {self.path}"
            raise UserError(f"{self.path}: {split} = {text} is not on the disk{remedy}")
        return found

    def image_folder(self, split: str) -> Path | None:
        """Return the folder that ``<split>_images`` names, or None where the file does not say."""
        text = self.image_folders.get(split)
        if text is None:
            return None
        found = self.find(text)
        if found is None:
            raise UserError(f"{self.path}: {split}_images = {text} does not exist")
        return found


def open_data(name: str) -> DataDescription:
    """Describe whatever a user may name: a ``.data`` file, a COCO JSON, an image list or a folder.

    Anything but a ``.data`` file serves as all three splits.

    Raises:
        UserError: it does not exist, or the ``.data`` file is wrong.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix in (".json", ".txt") and path.is_file()):
        return DataDescription(path, 0, (), dict.fromkeys(SPLITS, str(path.absolute())))
    return read_data_file(name)


def split_shown(data: str, split: str) -> str:
    """Return how to call a split: ``all`` where the data set, not being a ``.data`` file, has a single one."""
    return split if data.endswith(".data") else "all"


def read_data_file(path: str | Path) -> DataDescription:
    """Read a ``.data`` file, looked up as given and then in ``cfg/``.

    Raises:
        UserError: no such file, a line without ``=``, an unknown or missing key, a bad number, a names file that is
            missing or does not have ``classes`` lines; names file and line.
    """
    path = find_file(str(path), "data file")
    values, lines = _key_values(path)
    for key in ("classes", "train"):
        if key not in values:
            raise UserError(f"{path}: the key '{key}' is missing")
    place = f"{path}:{lines['classes']}"
    if not values["classes"].isdigit() or int(values["classes"]) < 1:
        raise UserError(f"{place}: classes = {values['classes']} is not a positive whole number")
    num_classes = int(values["classes"])

    description = DataDescription(
        path,
        num_classes,
        (),
        {split: values[split] for split in SPLITS if split in values},
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
    if len(names) != num_classes:
        raise UserError(f"{place}: classes = {num_classes}, but {names_path} has {len(names)} names")
    return replace(description, names=names)


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
        line = line.split("#")[0].strip()
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
