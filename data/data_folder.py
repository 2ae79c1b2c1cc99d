"""What an unzipped folder is: its ``data.yaml`` or ``.data`` file, its splits by their names, or one set of images.

============================================  ======================================================================
VOC, CVAT, LabelImg                           ``ImageSets/Main/train.txt`` and ``val.txt``
COCO                                          ``annotations/instances_train2017.json``, ``images/train2017``
Roboflow, FiftyOne, ultralytics               ``train/``, ``valid/``, ``test/``; ``images/train``, ``images/val``
Darknet, YOLO                                 ``train.txt``, ``val.txt``: lists of images
============================================  ======================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from data.data_file import read_data_file
from data.data_yaml import read_data_yaml
from data.description import SPLITS, DataDescription
from data.image_files import IMAGE_SUFFIXES
from utils.errors import UserError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES_IMAGES = re.compile(rb"^(train|val|valid|test)\s*:", re.MULTILINE)  # the keys of a data.yaml
# A folder called after a split: "train", "val2017", "validation"; a file may have words around it, "instances_val2017".
SPLIT_NAME = re.compile(r"(train|val|test)(?:id|idation|ing)?(?:\d{4})?")
OTHER_ANNOTATIONS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")  # of COCO


def describe_folder(folder: Path) -> DataDescription:
    """Describe the data set in a folder.

    Raises:
        UserError: it has a ``data.yaml`` or ``.data`` file that is wrong, or two things called after the same split.
    """
    for place in (folder, _only_folder(folder)):  # an archive may hold one folder that holds everything
        if place and (found := _data_yaml(place)):
            return read_data_yaml(found)
        if place and (found := _only(path for path in place.glob("*.data") if path.is_file())):
            return read_data_file(found)
    splits = (
        _voc_lists(folder)
        or _by_split(_annotation_files(folder / "annotations"))
        or _split_folders(folder)
        or _split_folders(folder / "images")
        or _by_split(_annotation_files(folder))
        or _image_lists(folder)
    )
    if splits:
        return DataDescription(folder, 0, (), {split: (str(path.absolute()),) for split, path in splits.items()})
    whole = _only(folder.glob("ImageSets/Main/*.txt")) or _annotations_of(folder) or folder
    return DataDescription(folder, 0, (), dict.fromkeys(SPLITS, (str(whole.absolute()),)), is_one_set=True)


def _only(paths: Iterable[Path]) -> Path | None:
    """Return the path where there is exactly one."""
    found = list(paths)
    return found[0] if len(found) == 1 else None


def _only_folder(folder: Path) -> Path | None:
    """Return the one sub-folder of a folder that holds nothing else that is visible."""
    inner = _only(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    return inner if inner and inner.is_dir() else None


def _data_yaml(folder: Path) -> Path | None:
    """Return the ``data.yaml`` of a folder, or its only YAML file that names images, whatever it is called."""
    usual = next((folder / name for name in YAML_NAMES if (folder / name).is_file()), None)
    return usual or _only(path for path in folder.glob("*.yaml") if NAMES_IMAGES.search(path.read_bytes()))


def _by_split(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the path of each split that a word of a path's name is.

    Raises:
        UserError: two paths are called after the same split.
    """
    splits: dict[str, Path] = {}
    for path in paths:
        words = [] if path.is_dir() else re.split(r"[_\-. ]", path.stem.lower())
        named = next((found[1] for word in (path.name.lower(), *words) if (found := SPLIT_NAME.fullmatch(word))), "")
        split = "valid" if named == "val" else named
        if split in splits:
            remedy = "name the one that is meant in a .data file or data.yaml"
            raise UserError(
                f"{path.parent}: '{splits[split].name}' and '{path.name}' both look like '{split}'; {remedy}"
            )
        if split:
            splits[split] = path
    return {split: splits[split] for split in SPLITS if split in splits}


def _voc_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of VOC's splits; those of single classes, such as ``cat_train.txt``, are none."""
    lists = folder / "ImageSets" / "Main"
    found = {name: path for name in ("train", "trainval", "val", "test") if (path := lists / f"{name}.txt").is_file()}
    if "train" not in found and "val" not in found and "trainval" in found:  # VOC 2007 has a list of both
        return {"train": found["trainval"], **_by_split(path for path in (found.get("test"),) if path)}
    return _by_split(path for name, path in found.items() if name != "trainval")


def _annotation_files(folder: Path) -> list[Path]:
    """Return the COCO JSON files of objects in a folder, by their names."""
    return sorted(path for path in folder.glob("*.json") if not path.stem.startswith(OTHER_ANNOTATIONS))


def _annotations_of(folder: Path) -> Path | None:
    """Return the COCO JSON that describes the images of a folder, None where label files do."""
    known = ("_annotations.coco.json", "labels.json", "annotations.json")
    named = next((folder / name for name in known if (folder / name).is_file()), None)
    return named or _only(_annotation_files(folder / "annotations")) or _only(folder.glob("instances*.json"))


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return what describes each split where sub-folders have the names of splits: a COCO JSON, or the folder."""
    if not folder.is_dir():
        return {}
    # Among many images there are few folders: they are told apart before they are sorted.
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    splits = _by_split(folder / name for name in names)
    return {split: _annotations_of(path) or path for split, path in splits.items()}


def _image_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of images beside the images; a label file has no image's name in its first line."""
    return _by_split(sorted(path for path in folder.glob("*.txt") if _is_list_of_images(path)))


def _is_list_of_images(path: Path) -> bool:
    with open(path, "rb") as file:
        first_line = file.readline(4096).decode(errors="replace").strip()
    return Path(first_line).suffix.lower() in IMAGE_SUFFIXES
