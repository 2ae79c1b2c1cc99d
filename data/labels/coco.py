"""COCO JSON -> Annotations, in columns: an annotation never exists as a Python object longer than its own parsing.

The rows are kept as the file has them: duplicate boxes stay (COCO's evaluation counts both), boxes over the
edge stay; what cannot be learned (no area, wholly outside) is set aside for the evaluation, which counts it, too; only
what is no box (not finite) or of an unknown image or class is dropped.
"""

from __future__ import annotations

import gc
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from data.description import DataDescription
from data.labels.annotations import Annotations, Problem
from data.labels.coco_shapes import CocoShapes
from data.labels.find import find_images
from data.labels.headers import CheckedImages, check_images
from data.labels.row_table import RowTable
from utils.class_names import first_moved, is_class_name
from utils.errors import UserError
from utils.words import how_many

INTEGERS, REALS = 4, 5  # per annotation: id, image_id, category_id, iscrowd; x, y, w, h, area
# Polygons are two thirds of COCO's files and of no use here. A quoted key cannot occur inside a JSON string, where the
# quotes would be escaped.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[\[\]\d\s.,eE+-]*\]\s*,')
FIRST_TEXT_ID = 1 << 61
LARGEST_SIDE = 2**31  # pixels of an image
CONSUMED = object()  # stands in the parsed JSON for an annotation whose numbers are kept


class _Columns:
    """Collects annotations while the JSON is parsed; used as ``object_hook``."""

    def __init__(self, shapes: CocoShapes | None) -> None:
        self.shapes = shapes
        self.integers = array("q")  # INTEGERS for each annotation so far
        self.reals = array("d")  # REALS for each
        self.count = 0  # annotations so far
        self.text_ids: dict[str, int] = {}  # image ids that are words -> the numbers that stand for them

    def __call__(self, item: dict) -> dict | tuple | object:
        """Consume an annotation, return an image as a tuple and anything else unchanged."""
        if "bbox" in item:
            try:
                x, y, w, h = item["bbox"]
                area = item.get("area")
                image, category = self.image_id(item["image_id"]), item["category_id"]
                category = int(category) if isinstance(category, str) else category
                # Without a number of its own (0), it gets one later, with all others.
                id_ = item["id"] if type(item.get("id")) is int else 0
                self.integers.extend((id_, image, category, item.get("iscrowd") or 0))
                self.reals.extend((x, y, w, h, w * h if area is None else area))
            except (KeyError, TypeError, ValueError, OverflowError):
                # Take back what was appended of it; what is returned tells the message which one it is.
                del self.integers[INTEGERS * self.count :], self.reals[REALS * self.count :]
                return {key: item.get(key) for key in ("id", "bbox")}
            self.count += 1
            if self.shapes:
                self.shapes.add(item)
            return CONSUMED
        if "file_name" in item and "id" in item:
            return (self.image_id(item["id"]), item.get("width"), item.get("height"), item["file_name"])
        return item

    def image_id(self, given: Any) -> Any:
        """Return an image id that is a text as a number: the one that it spells, else one that no file uses."""
        if not isinstance(given, str):
            return given
        if given.isdecimal() and len(given) < 18:
            return int(given)
        return self.text_ids.setdefault(given, FIRST_TEXT_ID + len(self.text_ids))


def read_coco(
    json_path: Path, description: DataDescription, split: str, need_images: bool, wants: frozenset[str] = frozenset()
) -> Annotations:
    """Read a COCO JSON: parse it into columns, find the images, drop what cannot be an object, sort by image.

    Args:
        json_path: the file.
        description: gives class names and count to compare with, and perhaps the folder of images.
        split: which split it serves.
        need_images: look for the image files; images that are missing are left out and recorded.
        wants: MASKS, KEY_POINTS, both or nothing besides boxes.

    Raises:
        UserError: not a COCO JSON, cut off, without categories, categories that are not the data file's, no images.
    """
    shapes = CocoShapes(wants) if wants else None
    top, columns = _parse(json_path, shapes)
    problems = shapes.name_points(json_path, top["categories"]) if shapes else []
    names, category_ids = _categories(top["categories"], columns, json_path, description, problems)
    image_ids, image_wh, file_names = _images(top["images"], json_path, problems)

    image_paths = find_images(json_path, file_names, description.image_folder(split), need_images)
    images = _check_images(image_paths, image_wh, json_path, need_images)
    image_wh = images.image_wh
    table = _table(top["annotations"], columns, json_path, problems)
    _keep_known(table, image_ids, category_ids, columns.text_ids)
    unlearnable = table.drop_bad_boxes(image_wh)
    for rows in (table, unlearnable):
        _fix_areas(rows)
    kind = "duplicate box (kept, as COCO's evaluation does)"
    table.note(table.duplicates(), kind, lambda row: f"annotation {table['id'][row]}")
    if (image_ids >= FIRST_TEXT_ID).any():
        first = next(iter(columns.text_ids))
        problems.append(Problem(str(json_path), 0, "image ids are words, images counted from 1 instead", f"'{first}'"))
        image_ids = np.arange(1, len(image_ids) + 1)
    ids = np.concatenate((table["id"], unlearnable["id"]))
    if len(ids) and (ids.min() < 1 or len(np.unique(ids)) < len(ids)):
        problems.append(Problem(str(json_path), 0, "annotation ids are not unique and positive", "counted anew from 1"))
        ids = np.arange(1, len(ids) + 1)
    table.columns["id"], unlearnable.columns["id"] = np.split(ids, [len(table)])

    shared = Annotations(
        image_paths=image_paths,
        image_ids=image_ids,
        image_wh=image_wh.astype(np.int32),
        names=names,
        category_ids=category_ids,
        orientation=images.orientation if need_images else None,
        **_columns_of(table, shapes, image_wh),
    )
    annotations = replace(
        shared,
        problems=(*problems, *images.problems, *table.problems),
        unlearnable=replace(shared, **_columns_of(unlearnable, shapes, image_wh)) if len(unlearnable) else None,
    )
    return _without_lost_images(annotations, images.is_bad, file_names, json_path, need_images)


def _columns_of(table: RowTable, shapes: CocoShapes | None, image_wh: np.ndarray) -> dict[str, Any]:
    """Return the columns of boxes for :class:`Annotations`: those of an image together, in the order of the file."""
    order = np.argsort(table["image"], kind="stable")
    return {
        "box_image": table["image"][order].astype(np.int32),
        "boxes_xyxy": table["xyxy"][order],
        "labels": table["label"][order].astype(np.int32),
        "crowd": table["crowd"][order],
        "areas": table["area"][order],
        "annotation_ids": table["id"][order],
        "boxes_xywh": table["xywh"][order],
        **(shapes.columns(table, order, image_wh) if shapes else {}),
    }


def _parse(path: Path, shapes: CocoShapes | None) -> tuple[dict, _Columns]:
    """Return the top level of the JSON, with CONSUMED for each good annotation, and the numbers of these."""
    columns = _Columns(shapes)
    collecting = gc.isenabled()
    gc.disable()  # the parser makes a million short-lived containers and no cycles
    try:
        top = json.loads(path.read_bytes() if shapes else POLYGONS.sub(b"", path.read_bytes()), object_hook=columns)
    except json.JSONDecodeError as error:
        line = _line_of_error(path) or error.lineno
        raise UserError(f"{path}:{line}: not valid JSON, perhaps cut off ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # no text, a number of a million digits, lists in one another
        raise UserError(f"{path}: not a JSON text file ({error!s:.80})") from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(top, dict):
        raise UserError(f"{path}: not a COCO annotation file (it is a {type(top).__name__}, not an object)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(top.get(key), list):
            raise UserError(f"{path}: not a COCO annotation file (it has no list '{key}')")
    if not top["images"]:
        raise UserError(f"{path}: has no images")
    return top, columns


def _line_of_error(path: Path) -> int:
    """Return the line at which the whole file stops being JSON, 0 where it does not.

    The text that was parsed lacks the polygons, so that its line numbers may be too small.
    """
    try:
        json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        return error.lineno
    except (ValueError, RecursionError):
        return 0
    return 0


@dataclass(frozen=True, order=True)
class Category:
    """One entry of ``categories``."""

    id: int
    name: str
    parent: str  # its supercategory, "" where it has none


def _categories(
    items: list, columns: _Columns, path: Path, description: DataDescription, problems: list[Problem]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and ids by ascending id, which for COCO is the usual order of the 80 classes."""
    try:
        listed = sorted(
            Category(int(item["id"]), str(item["name"]), str(item.get("supercategory") or "")) for item in items
        )
        ids = np.array([category.id for category in listed], dtype=np.int64)  # refuses numbers beyond 64 bits
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: each of 'categories' needs an id and a name") from error
    if not listed:
        raise UserError(f"{path}: 'categories' is empty")
    for one in listed:
        if not is_class_name(one.name):
            raise UserError(f"{path}: the name of category {one.id} is no text: it has half of a surrogate pair")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise UserError(f"{path}: duplicate category id {unique[counts > 1][0]}")
    kept = _without_unused(listed, set(columns.integers[2::INTEGERS]), description)
    problems += [
        Problem(str(path), 0, "category that no annotation uses, not taken as a class", f"'{one.name}', id {one.id}")
        for one in listed
        if one not in kept
    ]
    names, category_ids = tuple(one.name for one in kept), tuple(one.id for one in kept)
    return _compared_with_description(names, category_ids, path, description, problems), category_ids


def _without_unused(listed: list[Category], used: set[int], description: DataDescription) -> list[Category]:
    """Return the categories that are classes.

    Those that no annotation uses are left out where the data file then has as many classes; where it does not say, only
    those that are but the supercategory of others, as Roboflow's category 0 is.
    """
    unused = [one for one in listed if one.id not in used]
    if description.num_classes:
        if len(listed) - len(unused) != description.num_classes:
            return listed
    else:
        parents = {one.parent for one in listed}
        unused = [one for one in unused if one.name in parents and one.parent != one.name]
    return [one for one in listed if one not in unused] or listed


def _compared_with_description(
    names: tuple[str, ...], ids: tuple[int, ...], path: Path, description: DataDescription, problems: list[Problem]
) -> tuple[str, ...]:
    """Return the data file's names for the categories where it gives any, else the categories' own.

    Raises:
        UserError: there are more or fewer, or a name stands at another place.
    """
    if description.num_classes and description.num_classes != len(ids):
        said = f"{description.path} says classes = {description.num_classes}"
        raise UserError(f"{path}: has {len(ids)} categories, but {said}")
    if not description.names:
        return names
    moved = first_moved(names, description.names)
    if moved is not None:
        raise UserError(
            f"{path}: class {moved} is '{names[moved]}' (category id {ids[moved]}), "
            f"but {description.path} gives class {moved} the name '{description.names[moved]}'"
        )
    other = [f"'{ours}' is '{theirs}'" for ours, theirs in zip(description.names, names, strict=True) if ours != theirs]
    if other:
        kind = f"classes in the same order, but in other words than {description.path}'s"
        problems.append(Problem(str(path), 0, kind, f"{', '.join(other[:3])}{', …' if len(other) > 3 else ''}"))
    return description.names


def _images(items: list, path: Path, problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return ids [N] int64, sizes [N 2] (0: not given) and file names; each id once."""
    kept, seen = [], set()
    for position, item in enumerate(items):
        if isinstance(item, dict):  # without a file name: enough where no picture is needed
            item = (item.get("id"), item.get("width"), item.get("height"), "")
        if isinstance(item, tuple):
            item = (item[0], *_size_of(item), item[3])
        if not isinstance(item, tuple) or not _good_image(item):
            problems.append(Problem(str(path), 0, "image entry without a usable id or size", f"images[{position}]"))
        elif item[0] in seen:
            problems.append(Problem(str(path), 0, "duplicate image id", f"images[{position}], id {item[0]}"))
        else:
            seen.add(item[0])
            kept.append(item)
    if not kept:
        raise UserError(f"{path}: none of its {len(items)} images has a usable id")
    ids = np.array([item[0] for item in kept], dtype=np.int64)
    sizes = np.array([item[1:3] for item in kept], dtype=np.int64)
    return ids, sizes, [item[3] for item in kept]


def _size_of(item: tuple) -> tuple[int, int]:
    """Return width and height of (id, width, height, file name); 0 0, read from the image later, if one is unusable."""
    good = all(type(side) in (int, float) and 0 < side < 2**31 for side in item[1:3])
    return (int(item[1]), int(item[2])) if good else (0, 0)


def _good_image(item: tuple) -> bool:
    """Whether (id, width, height, file name) can be an image."""
    return type(item[0]) is int and 0 <= item[0] < 2**62 and isinstance(item[3], str)


def _table(items: list, columns: _Columns, path: Path, problems: list[Problem]) -> RowTable:
    """Turn the collected numbers into columns; ``line`` holds the position in the list of annotations."""
    position = np.array([i for i, item in enumerate(items) if item is CONSUMED], dtype=np.int64)
    integers = np.frombuffer(columns.integers, dtype=np.int64).reshape(-1, INTEGERS)  # M: id, image, category, crowd
    reals = np.frombuffer(columns.reals, dtype=np.float64).reshape(-1, REALS)  # M: x, y, w, h, area
    # Anything with a bbox was consumed, wherever it stood; row i is annotation position[i] if all stood in this list.
    if len(position) != len(integers):
        raise UserError(f"{path}: has a 'bbox' outside of 'annotations'; not a COCO annotation file")
    problems += [
        Problem(str(path), 0, "annotation without usable ids or bbox", f"annotations[{i}] {str(item)[:80]}")
        for i, item in enumerate(items)
        if item is not CONSUMED
    ]
    xywh = reals[:, :4].copy()
    with np.errstate(over="ignore", invalid="ignore"):  # such rows are dropped next
        corners = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
    return RowTable(
        lambda image, line: (str(path), 0),
        image=integers[:, 1].copy(),
        line=position,
        row=np.arange(len(position)),
        id=integers[:, 0].copy(),
        label=integers[:, 2].copy(),
        crowd=integers[:, 3] != 0,
        area=reals[:, 4].copy(),
        xywh=xywh,
        xyxy=corners,
    )


def _keep_known(
    table: RowTable, image_ids: np.ndarray, category_ids: Sequence[int], text_ids: Mapping[str, int]
) -> None:
    """Replace image and category ids by indices; drop the rows whose ids are unknown."""
    words = {number: word for word, number in text_ids.items()}
    _replace_ids(table, "image", image_ids, "annotation of an unknown image id", words)
    _replace_ids(table, "label", np.array(category_ids, dtype=np.int64), "annotation of an unknown category id")


def _replace_ids(
    table: RowTable, name: str, ids: np.ndarray, kind: str, words: Mapping[int, str] = MappingProxyType({})
) -> None:
    """Replace a column of ids by their places in ``ids``; drop the rows whose id is not among them.

    ``words`` are what the file has where a number stands for a word.
    """
    order = np.argsort(ids)
    values = table[name]
    found = np.clip(np.searchsorted(ids, values, sorter=order), 0, len(ids) - 1)  # place among the sorted ids
    index = order[found]  # place among the ids as given; wrong where the id is unknown
    unknown = ids[index] != values
    table.drop(unknown, kind, lambda row: f"annotation {table['id'][row]}: {words.get(int(values[row]), values[row])}")
    table.columns[name] = index[~unknown]


def _fix_areas(table: RowTable) -> None:
    """Replace each area that is negative or not a finite number by that of its box."""
    bad = ~(np.isfinite(table["area"]) & (table["area"] >= 0))
    table.note(bad, "area is not a number, that of the box is taken", lambda row: f"annotation {table['id'][row]}")
    table["area"][bad] = table["xywh"][bad, 2:].clip(0, LARGEST_SIDE).prod(axis=1)


def _check_images(image_paths: list[str], image_wh: np.ndarray, json_path: Path, need_images: bool) -> CheckedImages:
    """Look at the image files that are needed, and at those whose size [2] the JSON does not say."""
    sizeless = (image_wh <= 0).any(axis=1)
    paths = [
        path if need_images or lacks else "" for path, lacks in zip(image_paths, np.asarray(sizeless), strict=True)
    ]
    return check_images(paths, image_wh, json_path.with_name(f"{json_path.name}.headers.cache"))


def _without_lost_images(
    annotations: Annotations, is_bad: np.ndarray, file_names: list[str], json_path: Path, need_images: bool
) -> Annotations:
    """Leave out the images that are bad [N]; record those that are needed but missing, or whose size is not known."""
    lost = np.array([not path for path in annotations.image_paths]) & need_images
    unknown = (lost | (annotations.image_wh <= 0).any(1)) & ~is_bad
    if not (unknown | is_bad).any():
        return annotations
    counts = np.diff(annotations.first_box)
    problems = [
        Problem(
            str(json_path),
            0,
            "image is not on the disk, left out" if lost[i] else "image without width and height, left out",
            f"{file_names[i] or annotations.image_ids[i]}, {how_many(counts[i], 'object')}",
        )
        for i in np.flatnonzero(unknown)
    ]
    kept = annotations.select_images(~(unknown | is_bad))
    return replace(kept, problems=(*annotations.problems, *problems))
