"""From what a user names to the annotations of a split; what is wrong with the data is said once, up front."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data.data_file import read_data_file
from data.data_folder import describe_folder
from data.data_yaml import read_data_yaml
from data.description import SPLITS, DataDescription
from data.image_checks import ImageCheckOptions, bad_images, refuse_too_many, report_lines, verify_images
from data.labels.annotations import Annotations, summarise_problems
from data.labels.read import read_dataset
from utils import distributed
from utils.class_names import first_moved, places_in
from utils.config import find_file
from utils.errors import UserError
from utils.structures import KEY_POINTS, MASKS
from utils.words import how_many

MOST_NAMES_SHOWN = 12


def open_data(name: str, val_fraction: float = 0.0) -> DataDescription:
    """Describe whatever a user may name: a ``.data`` file, ``data.yaml``, COCO JSON, image list or folder.

    Args:
        name: looked up as given and then, for the first two, in ``cfg/``.
        val_fraction: the share of the training images to hold out for validation, where the data set has none.

    Raises:
        UserError: it does not exist, a file is wrong, or it has images for validation and no share is to be held out.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        description = describe_folder(path)
    elif path.suffix in (".json", ".txt") and path.is_file():
        description = DataDescription(path, 0, (), dict.fromkeys(SPLITS, (str(path.absolute()),)), is_one_set=True)
    else:
        path = find_file(name, "data file")
        description = read_data_yaml(path) if path.suffix in (".yaml", ".yml") else read_data_file(path)
    return description.holding_out(val_fraction)


def split_shown(data: str, split: str, val_fraction: float = 0.0) -> str:
    """Return how to call a split: ``all`` where the data set is a single set of images."""
    return "all" if open_data(data, val_fraction).is_one_set else split


def open_split(
    data: str,
    split: str,
    single_cls: bool = False,
    need_images: bool = True,
    val_fraction: float = 0.0,
    checks: ImageCheckOptions = ImageCheckOptions(),  # noqa: B008 frozen
    wants: frozenset[str] = frozenset(),
) -> Annotations:
    """Read a split of a data set and print what the user should know of it.

    Args:
        data: as for :func:`open_data`.
        split: "train", "valid" or "test".
        single_cls: treat all objects as one class.
        need_images: False where annotations are enough.
        val_fraction: as for :func:`open_data`.
        checks: of the images.
        wants: MASKS, KEY_POINTS, both or nothing besides boxes.

    Raises:
        UserError: as :func:`open_data` and :func:`data.labels.read.read_dataset`; too many images cannot be used.
    """
    description = open_data(data, val_fraction)
    annotations = _read_verified(description, split, checks, need_images, wants)
    print_notes([*description.notes, *description.found_elsewhere(split)])
    print_problems(data, split, annotations)
    refuse_too_many(annotations, checks.max_bad, f"{data} ({split})")
    return annotations.as_single_class() if single_cls else annotations


def open_training_splits(
    data: str,
    val_fraction: float = 0.0,
    single_cls: bool = False,
    checks: ImageCheckOptions = ImageCheckOptions(),  # noqa: B008 frozen
    wants: frozenset[str] = frozenset(),
) -> tuple[Annotations, Annotations]:
    """Read the images to train on and those to validate on, with the same classes, and print what they are.

    Args:
        data: as for :func:`open_data`.
        val_fraction: likewise.
        single_cls: treat all objects as one class.
        checks: of the images.
        wants: MASKS, KEY_POINTS, both or nothing besides boxes, which the images to train on must have.

    Raises:
        UserError: as :func:`open_split`; there are no masks or key points to learn.
    """
    description = open_data(data, val_fraction)
    train = _read_verified(description, "train", checks, wants=wants)
    for what, column in ((MASKS, train.polygons), (KEY_POINTS, train.key_points)):
        if what in wants and column is None:
            print_problems(data, "train", train)  # one of them may be the reason
            raise UserError(f"{data}: its labels have no {what} to learn; take a network that finds boxes (--cfg help)")
    valid = train if description.is_one_set else _read_verified(description, "valid", checks, wants=wants)
    if 0 != train.num_key_points != valid.num_key_points != 0:
        points = f"{how_many(train.num_key_points, 'key point')} to learn and {valid.num_key_points} to validate"
        raise UserError(f"{data}: an object has {points}; a network finds as many of every object: correct the labels")
    names = united(train.names, valid.names)
    moved = first_moved(valid.names, train.names)
    train, valid = train.with_names(names), valid.with_names(names)
    if distributed.is_main():
        shown = ", ".join(names[:MOST_NAMES_SHOWN]) + (", …" if len(names) > MOST_NAMES_SHOWN else "")
        print(f"{data}: {how_many(len(names), 'class')} ({shown})")
        for annotations, split, kind in ((train, "train", "training"), (valid, "valid", "validation")):
            files = ", ".join(map(str, description.sources(split)))
            share = "" if not description.val_fraction else " (the rest)" if split == "train" else " (held out)"
            objects = int((~annotations.crowd).sum())
            print(f"  {how_many(len(annotations), f'{kind} image')}, {how_many(objects, 'object')}: {files}{share}")
    elsewhere = dict.fromkeys((*description.found_elsewhere("train"), *description.found_elsewhere("valid")))
    notes = [*description.notes, *elsewhere]
    if moved is not None:
        notes.append("the validation images number the classes differently: mapped by name")
    if description.is_one_set:
        notes.append(
            "one set of images: validates on its training images; --val-fraction 0.2 holds a fifth of them out"
        )
    print_notes(notes)
    for split, annotations in (("train", train), *([] if description.is_one_set else [("valid", valid)])):
        print_problems(data, split, annotations)
        refuse_too_many(annotations, checks.max_bad, f"{data} ({split})")
    return (train.as_single_class(), valid.as_single_class()) if single_cls else (train, valid)


def _read_verified(
    description: DataDescription,
    split: str,
    checks: ImageCheckOptions,
    need_images: bool = True,
    wants: frozenset[str] = frozenset(),
) -> Annotations:
    """Read a split and, where that is wanted, every image of it whole."""
    annotations = read_dataset(description, split, need_images, wants)
    return verify_images(annotations) if need_images and checks.verify_images else annotations


def united(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return the names of two lists of classes, those that only the second has at the end."""
    known = places_in(others, names)
    return (*names, *(name for name, place in zip(others, known, strict=True) if place is None))


def print_notes(notes: Sequence[str]) -> None:
    """Print a line for each note, in the main process."""
    if distributed.is_main():
        for note in notes:
            print(f"  note: {note}")


def print_problems(data: str, split: str, annotations: Annotations) -> None:
    """Print the kinds of problems of a split's labels and the images that were left out, in the main process."""
    if distributed.is_main():
        bad = set(bad_images(annotations))
        others = [problem for problem in annotations.problems if problem not in bad]
        for line in (*summarise_problems(others), *report_lines(annotations)):
            print(f"{data} ({split}): {line}")
