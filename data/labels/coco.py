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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.data_file import DataDescription
from data.image_files import image_header
from data.labels.annotations import Annotations, Problem
from data.labels.find import find_images
from data.labels.row_table import RowTable
from utils.errors import UserError

INTEGERS, REALS = 4, 5  # per annotation: id, image_id, category_id, iscrowd; x, y, w, h, area
# Polygons are two thirds of COCO's files and of no use here. A quoted key cannot occur inside a JSON string, where the
# quotes would be escaped.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[\[\]\d\s.,eE+-]*\]\s*,')
LARGEST_SIDE = 2**31  # pixels of an image
CONSUMED = object()  # stands in the parsed JSON for an annotation whose numbers are kept


class _Columns:
    """Collects annotations while the JSON is parsed; used as ``object_hook``."""

    def __init__(self) -> None:
        self.integers = array("q")  # INTEGERS for each annotation so far
        self.reals = array("d")  # REALS for each
        self.count = 0  # annotations so far

    def __call__(self, item: dict) -> dict | tuple | object:
        """Consume an annotation, return an image as a tuple and anything else unchanged."""
        if "bbox" in item:
            try:
                x, y, w, h = item["bbox"]
                area = item.get("area")
                self.integers.extend((item["id"], item["image_id"], item["category_id"], item.get("iscrowd") or 0))
                self.reals.extend((x, y, w, h, w * h if area is None else area))
            except (KeyError, TypeError, ValueError, OverflowError):
                # Take back what was appended of it; what is returned tells the message which one it is.
                del self.integers[INTEGERS * self.count :], self.reals[REALS * self.count :]
                return {key: item.get(key) for key in ("id", "bbox")}
            self.count += 1
            return CONSUMED
        if "file_name" in item and "id" in item:
            return (item["id"], item.get("width") or 0, item.get("height") or 0, item["file_name"])
        return item


def read_coco(json_path: Path, description: DataDescription, split: str, need_images: bool) -> Annotations:
    """Read a COCO JSON: parse it into columns, find the images, drop what cannot be an object, sort by image.

    Args:
        json_path: the file.
        description: gives class names and count to compare with, and perhaps the folder of images.
        split: which split it serves.
        need_images: look for the image files; images that are missing are left out and recorded.

    Raises:
        UserError: not a COCO JSON, cut off, without categories, categories that are not the data file's, no images.
    """
    top, columns = _parse(json_path)
    names, category_ids = _categories(top, json_path, description)
    problems: list[Problem] = []
    image_ids, image_wh, file_names = _images(top["images"], json_path, problems)

    image_paths = find_images(json_path, file_names, description.image_folder(split), need_images)
    image_wh = _complete_sizes(image_wh, image_paths)
    table = _table(top["annotations"], columns, json_path, problems)
    _keep_known(table, image_ids, category_ids)
    unlearnable = table.drop_bad_boxes(image_wh)
    for rows in (table, unlearnable):
        _fix_areas(rows)
    kind = "duplicate box (kept, as COCO's evaluation does)"
    table.note(table.duplicates(), kind, lambda row: f"annotation {table['id'][row]}")
    ids = np.concatenate((table["id"], unlearnable["id"]))
    if len(ids) and (ids.min() < 1 or len(np.unique(ids)) < len(ids)):
        problems.append(Problem(str(json_path), 0, "annotation ids are not unique and positive", "counted anew from 1"))
        ids = np.arange(1, len(ids) + 1)
    table.columns["id"], unlearnable.columns["id"] = np.split(ids, [len(table)])

    images = Annotations(
        image_paths=image_paths,
        image_ids=image_ids,
        image_wh=image_wh.astype(np.int32),
        names=names,
        category_ids=category_ids,
        **_columns_of(table),
    )
    annotations = replace(
        images,
        problems=(*problems, *table.problems),
        unlearnable=replace(images, **_columns_of(unlearnable)) if len(unlearnable) else None,
    )
    return _without_lost_images(annotations, file_names, json_path, need_images)


def _columns_of(table: RowTable) -> dict[str, Any]:
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
    }


def _parse(path: Path) -> tuple[dict, _Columns]:
    """Return the top level of the JSON, with CONSUMED for each good annotation, and the numbers of these."""
    columns = _Columns()
    collecting = gc.isenabled()
    gc.disable()  # the parser makes a million short-lived containers and no cycles
    try:
        top = json.loads(POLYGONS.sub(b"", path.read_bytes()), object_hook=columns)
    except json.JSONDecodeError as error:
        line = _line_of_error(path) or error.lineno
        raise UserError(f"{path}:{line}: not valid JSON, perhaps cut off ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON text file") from error
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
    return 0


def _categories(top: dict, path: Path, description: DataDescription) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and ids by ascending id, which for COCO is the usual order of the 80 classes."""
    try:
        pairs = sorted((int(item["id"]), str(item["name"])) for item in top["categories"])
        np.array([id_ for id_, _ in pairs], dtype=np.int64)  # refuses numbers beyond 64 bits
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: each of 'categories' needs an id and a name") from error
    if not pairs:
        raise UserError(f"{path}: 'categories' is empty")
    ids, names = tuple(id_ for id_, _ in pairs), tuple(name for _, name in pairs)
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_ in ids if ids.count(id_) > 1)
        raise UserError(f"{path}: duplicate category id {twice}")
    if description.num_classes and description.num_classes != len(ids):
        said = f"{description.path} says classes = {description.num_classes}"
        raise UserError(f"{path}: has {len(ids)} categories, but {said}")
    for index, (ours, theirs) in enumerate(zip(description.names, names, strict=False)):
        if ours != theirs:
            raise UserError(
                f"{path}: class {index} is '{theirs}' (category id {ids[index]}), "
                f"but the names file of {description.path} says '{ours}'"
            )
    return names, ids


def _images(items: list, path: Path, problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return ids [N] int64, sizes [N 2] (0: not given) and file names; each id once."""
    kept, seen = [], set()
    for position, item in enumerate(items):
        if isinstance(item, dict):  # without a file name: enough where no picture is needed
            item = (item.get("id"), item.get("width") or 0, item.get("height") or 0, "")
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


def _good_image(item: tuple) -> bool:
    """Whether (id, width, height, file name) can be an image; a size of 0 stands for one that is not given."""
    id_, width, height, file_name = item
    good_id = type(id_) is int and 0 <= id_ < 2**62
    good_size = all(isinstance(side, (int, float)) and 0 <= side < LARGEST_SIDE for side in (width, height))
    return good_id and good_size and isinstance(file_name, str)


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
        id=integers[:, 0].copy(),
        label=integers[:, 2].copy(),
        crowd=integers[:, 3] != 0,
        area=reals[:, 4].copy(),
        xywh=xywh,
        xyxy=corners,
    )


def _keep_known(table: RowTable, image_ids: np.ndarray, category_ids: Sequence[int]) -> None:
    """Replace image and category ids by indices; drop the rows whose ids are unknown."""
    _replace_ids(table, "image", image_ids, "annotation of an unknown image id")
    _replace_ids(table, "label", np.array(category_ids, dtype=np.int64), "annotation of an unknown category id")


def _replace_ids(table: RowTable, name: str, ids: np.ndarray, kind: str) -> None:
    """Replace a column of ids by their places in ``ids``; drop the rows whose id is not among them."""
    order = np.argsort(ids)
    values = table[name]
    found = np.clip(np.searchsorted(ids, values, sorter=order), 0, len(ids) - 1)  # place among the sorted ids
    index = order[found]  # place among the ids as given; wrong where the id is unknown
    unknown = ids[index] != values
    table.drop(unknown, kind, lambda row: f"annotation {table['id'][row]}: {values[row]}")
    table.columns[name] = index[~unknown]


def _fix_areas(table: RowTable) -> None:
    """Replace each area that is negative or not a finite number by that of its box."""
    bad = ~(np.isfinite(table["area"]) & (table["area"] >= 0))
    table.note(bad, "area is not a number, that of the box is taken", lambda row: f"annotation {table['id'][row]}")
    table["area"][bad] = table["xywh"][bad, 2:].clip(0, LARGEST_SIDE).prod(axis=1)


def _complete_sizes(image_wh: np.ndarray, image_paths: list[str]) -> np.ndarray:
    """Return sizes [N 2] where those that the JSON lacks are read from the image files, as far as these exist."""
    image_wh = image_wh.copy()
    for index in np.flatnonzero((image_wh <= 0).any(1)):
        if image_paths[index]:
            image_wh[index] = image_header(image_paths[index])[:2]
    return image_wh


def _without_lost_images(
    annotations: Annotations, file_names: list[str], json_path: Path, need_images: bool
) -> Annotations:
    """Leave out the images that are needed but missing, or whose size is not known; record each."""
    lost = np.array([not path for path in annotations.image_paths]) & need_images
    sizeless = (annotations.image_wh <= 0).any(1)
    bad = lost | sizeless
    if not bad.any():
        return annotations
    counts = np.diff(annotations.first_box)
    problems = [
        Problem(
            str(json_path),
            0,
            "image is not on the disk, left out" if lost[i] else "image without width and height, left out",
            f"{file_names[i] or annotations.image_ids[i]}, {counts[i]} objects",
        )
        for i in np.flatnonzero(bad)
    ]
    kept = annotations.select_images(~bad)
    return replace(kept, problems=(*annotations.problems, *problems))
