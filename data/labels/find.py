"""Which files belong together: the images of a list, folder or annotation file, and the label file of each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data.data_file import DataDescription
from data.image_files import IMAGE_SUFFIXES, list_images
from data.labels.annotations import Problem
from data.labels.formats import FORMATS
from data.labels.label_format import IMAGE_FOLDERS
from utils.config import REPOSITORY
from utils.errors import UserError
from utils.files import MAX_LIST_BYTES, read_text


class DirectoryCache:
    """Answers whether a file exists, reading each folder once."""

    def __init__(self) -> None:
        self.names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        """Whether the file or folder exists."""
        folder, name = os.path.split(path)
        if folder not in self.names:
            try:
                self.names[folder] = frozenset(os.listdir(folder or "."))
            except (OSError, ValueError):  # a name with a zero byte, or with half of a surrogate pair
                self.names[folder] = frozenset()
        return name in self.names[folder]

    def first(self, paths: Sequence[str]) -> str:
        """Return the first path that exists, or ""."""
        return next((path for path in paths if self.has(path)), "")


def find_images(json_path: Path, file_names: list[str], folder: Path | None, need_images: bool) -> list[str]:
    """Return the path of each image of a COCO JSON; "" for those that are not on the disk.

    Args:
        json_path: the annotation file.
        file_names: of the images, relative to their folder.
        folder: that folder; None: the first of :func:`image_folder_candidates` that holds any of them.
        need_images: refuse a file of whose images none is found.

    Raises:
        UserError: none is found.
    """
    folders = [folder] if folder else image_folder_candidates(json_path)
    for candidate in folders:
        if candidate.is_dir():
            directories = DirectoryCache()
            paths = [directories.first([f"{candidate}/{name}"]) if name else "" for name in file_names]
            if any(paths):
                return paths
    if need_images:
        places = ", ".join(str(candidate) for candidate in folders)
        raise UserError(
            f"{json_path}: none of its {len(file_names)} images is on the disk (looked in {places}); "
            "name their folder with train_images=, valid_images= or test_images= in the .data file"
        )
    return [""] * len(file_names)


def image_folder_candidates(json_path: Path) -> list[Path]:
    """Return where COCO's layout, and other usual ones, keep the images of an annotation file."""
    split = json_path.stem.removeprefix("instances_")
    near = json_path.parent
    root = near.parent if near.name == "annotations" else near
    return [root / "images" / split, root / split, root / "images", near / "images", root, near]


def label_candidates(image_path: str) -> list[str]:
    """Return where the label of an image may lie, in the order of preference."""
    stem = os.path.splitext(image_path)[0]
    parts = Path(stem).parts
    last = max((i for i, part in enumerate(parts[:-1]) if part in IMAGE_FOLDERS), default=None)
    found = []
    for label_format in FORMATS.values():
        if last is not None:
            folder = (*parts[:last], label_format.folder, *parts[last + 1 :])
            found.append(os.path.join(*folder) + label_format.suffix)
        found.append(stem + label_format.suffix)
    return found


def image_and_label_files(
    source: Path, description: DataDescription, problems: list[Problem], need_images: bool
) -> tuple[list[str], list[str]]:
    """Return the images of a list or folder and the label file of each ("" where there is none).

    Args:
        source: the folder, the image list or the VOC list.
        description: its ``.data`` file; paths of a list may be relative to it.
        problems: gets a problem for each listed image that is not on the disk and is left out.
        need_images: False keeps images that are not on the disk, as "", where a VOC label describes them.

    Raises:
        UserError: the folder has no image, or the list is not text, is empty, or names no image that exists.
    """
    directories = DirectoryCache()
    if source.is_dir():
        images = list_images(source)
        if not images:
            raise UserError(f"{source}: has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return images, [directories.first(label_candidates(image)) for image in images]
    lines = read_text(source, MAX_LIST_BYTES).splitlines()
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UserError(f"{source}: the list of images is empty")
    is_voc = source.parent.parts[-2:] == ("ImageSets", "Main")
    resolve = _voc_files if is_voc else _listed_files
    images, labels = [], []
    for number, text in entries:
        image, label = resolve(text, source, description, directories)
        if directories.has(image) or (label.endswith(".xml") and not need_images):
            images.append(image if directories.has(image) else "")
            labels.append(label)
        else:
            problems.append(Problem(str(source), number, "image is not on the disk, left out", text))
    if not images:
        raise UserError(f"{source}: none of its {len(entries)} images is on the disk (first: {entries[0][1]})")
    return images, labels


def _voc_files(text: str, source: Path, description: DataDescription, directories: DirectoryCache) -> tuple[str, str]:
    """Return image and label path for a line of a VOC ``ImageSets/Main`` list: a name, perhaps followed by a flag."""
    name, root = text.split()[0], source.parents[2]
    stem = str(root / "JPEGImages" / name)
    image = directories.first([stem + suffix for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".bmp")]) or stem + ".jpg"
    return image, directories.first([str(root / "Annotations" / f"{name}.xml")])


def _listed_files(
    text: str, source: Path, description: DataDescription, directories: DirectoryCache
) -> tuple[str, str]:
    """Return image and label path for a line of an image list: a path from one of four folders, the first that fits."""
    roots = (Path(), source.parent, description.path.parent, REPOSITORY)
    image = directories.first([os.path.normpath(root / text) for root in roots]) or text
    return image, directories.first(label_candidates(image))
