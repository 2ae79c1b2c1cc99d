"""Which files belong together: the images of a list, folder or annotation file, and the label file of each image."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from data.description import DataDescription, ends_of
from data.image_files import IMAGE_SUFFIXES, describe_unknown, list_files
from data.labels.annotations import Problem
from data.labels.formats import FORMATS
from data.labels.label_format import IMAGE_FOLDERS
from utils.class_names import read_names
from utils.config import REPOSITORY
from utils.errors import UserError
from utils.files import MAX_LIST_BYTES, read_text

LIST_OF_ONE_CLASS = re.compile(r".+_(train|val|trainval|test)")  # in VOC's ImageSets/Main
NAMES_FILES = ("classes.txt", "obj.names", "classes.names")  # of LabelImg, CVAT and others


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
            paths = _in_folder(candidate, file_names)
            if any(paths):
                return paths
    if need_images:
        places = ", ".join(str(candidate) for candidate in folders)
        raise UserError(
            f"{json_path}: none of its {len(file_names)} images is on the disk (looked in {places}); "
            "name their folder with train_images=, valid_images= or test_images= in the .data file"
        )
    return [""] * len(file_names)


def _in_folder(folder: Path, file_names: list[str]) -> list[str]:
    """Return the path of each image in a folder, "" where it is not there.

    Names with backslashes are paths of Windows. Where not a single image is found, folders in the names are left out:
    tools write those of the machine on which the annotations were made.
    """
    directories = DirectoryCache()

    def paths_of(names: list[str]) -> list[str]:
        return [directories.first([os.path.join(folder, name)]) if name else "" for name in names]

    written = paths_of(file_names)
    if any(written) and all(written):
        return written
    slashed = [name.replace("\\", "/") for name in file_names]
    found = [one or other for one, other in zip(written, paths_of(slashed), strict=True)]
    bare = [name.rsplit("/", 1)[-1] for name in slashed]
    return found if any(found) or len(set(bare)) < len(bare) else paths_of(bare)


def image_folder_candidates(json_path: Path) -> list[Path]:
    """Return where COCO's layout, and other usual ones, keep the images of an annotation file."""
    split = json_path.stem.removeprefix("instances_")
    near = json_path.parent
    root = near.parent if near.name == "annotations" else near
    folders = [root / "images" / split, root / split, root / "images", near / "images", near / "data", root, near]
    return list(dict.fromkeys(folders))


def label_candidates(image_path: str) -> list[str]:
    """Return where the label of an image may lie, in the order of preference."""
    folder, name = os.path.split(os.path.splitext(image_path)[0])
    return [os.path.join(place, name) + suffix for place, suffix in _label_places(folder)]


@lru_cache(maxsize=1000)
def _label_places(folder: str) -> list[tuple[str, str]]:
    """Return the folders in which labels of a folder's images may lie, each with the ending that they have there."""
    parts = Path(folder).parts
    last = max((i for i, part in enumerate(parts) if part in IMAGE_FOLDERS), default=None)
    found = []
    for label_format in FORMATS.values():
        if last is not None:
            place = os.path.join(*parts[:last], label_format.folder, *parts[last + 1 :])
            found.append((place, label_format.suffix))
        found.append((folder, label_format.suffix))
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
        images, unknown = list_files(source)
        if not images:
            others = f"; it has {describe_unknown(unknown)}, which must be converted" if unknown else ""
            raise UserError(f"{source}: has no image ({', '.join(sorted(IMAGE_SUFFIXES))}){others}")
        if unknown:
            kind = "files of a kind that is not read, passed over; images among them must be converted"
            problems.append(Problem(str(source), 0, kind, describe_unknown(unknown)))
        return images, [directories.first(label_candidates(image)) for image in images]
    # Names of files may be in any encoding: Python opens them by their bytes.
    lines = read_text(source, MAX_LIST_BYTES, keep_bytes=True).splitlines()
    if "\0" in "".join(lines):
        raise UserError(f"{source}: is not a list of images (a text file, one path per line)")
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UserError(f"{source}: the list of images is empty")
    if source.parent.parts[-2:] == ("ImageSets", "Main"):
        entries = _without_flags(entries, source, problems)
        resolve = _voc_files
    else:
        resolve = _listed_files
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


def _without_flags(entries: list[tuple[int, str]], source: Path, problems: list[Problem]) -> list[tuple[int, str]]:
    """Return the lines of a VOC list without the flags that each may have, of a single class only those with a 1.

    The flags of ``cat_train.txt`` say where a cat is: 1, where it is difficult to see: 0, and where none is: -1.
    """
    flagged = [(number, text.rsplit(maxsplit=1)) for number, text in entries]
    if not all(len(words) == 2 and words[1] in ("1", "0", "-1") for _, words in flagged):
        return entries
    if not LIST_OF_ONE_CLASS.fullmatch(source.stem):
        return [(number, words[0]) for number, words in flagged]
    kept = [(number, words[0]) for number, words in flagged if words[1] == "1"]
    if len(kept) < len(entries):
        kind = "lines of a list of one class whose flag is 0 or -1, left out"
        problems.append(Problem(str(source), 0, kind, f"{len(entries) - len(kept)} of {len(entries)}"))
    if not kept:
        raise UserError(f"{source}: no image has the class of the list (every flag is 0 or -1)")
    return kept


def _voc_files(text: str, source: Path, description: DataDescription, directories: DirectoryCache) -> tuple[str, str]:
    """Return image and label path for a line of a VOC ``ImageSets/Main`` list: the name of an image."""
    root = source.parents[2]
    stem = str(root / "JPEGImages" / text)
    image = directories.first([stem + suffix for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".bmp")]) or stem + ".jpg"
    return image, directories.first([str(root / "Annotations" / f"{text}.xml")])


def _listed_files(
    text: str, source: Path, description: DataDescription, directories: DirectoryCache
) -> tuple[str, str]:
    """Return image and label path for a line of an image list.

    A path is looked for from the working directory, the list's folder, those of the data file and the repository; then
    without its first folders beside the list and the data file.
    """
    near = (source.parent, description.folder)
    roots = (Path(), *near, *description.roots, REPOSITORY)
    slashed = text.replace("\\", "/")
    places = [root / spelling for spelling in dict.fromkeys((text, slashed)) for root in roots]
    image = directories.first([os.path.normpath(place) for place in places])
    if not image:
        image = directories.first([os.path.normpath(root / end) for end in ends_of(text) for root in near])
    return image or text, directories.first(label_candidates(image or text))


def names_beside(source: Path, image: str, label: str, num_classes: int) -> Path | None:
    """Return the names file that an annotation tool left beside YOLO labels, None where there is none.

    Args:
        source: the list or folder of images.
        image: one of them.
        label: its label file.
        num_classes: as the data file says, 0 where it does not; then a file with another number of names is not meant.
    """
    if not label.endswith(".txt"):
        return None
    near, root = Path(label).parent, source if source.is_dir() else source.parent
    folders = (near, near.parent, Path(image).parent, root)
    found = next((path for folder in folders for name in NAMES_FILES if (path := folder / name).is_file()), None)
    return found if found and num_classes in (0, len(read_names(found))) else None
