"""Masks and key points of a COCO JSON: collected while it is parsed, for the networks that learn them."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.labels.annotations import KeyPoints, Problem
from data.labels.polygons import Polygons, polygons_of_mask
from data.labels.row_table import RowTable
from utils.structures import KEY_POINTS, MASKS

CORNERS = 3  # of a polygon, at least
LARGEST_MASK = 1 << 28  # pixels
FARTHEST = 1 << 20  # pixels from the corner of an image; no image is as large
# What a mirror swaps in the names of key points: left_eye, eyeLeft; l_eye, lEye, eye.L. Words tell a side surely.
SIDES = (re.compile("left|right", re.IGNORECASE), re.compile("(?<![A-Za-z])[LRlr](?![a-z])|(?<=[a-z])[LR](?![A-Za-z])"))
SIDE_WORD = re.compile("(?<![a-z])(left|right)")
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


class CocoShapes:
    """Collects what is wanted of each annotation, in their order; what cannot be read is left out and counted."""

    def __init__(self, wants: frozenset[str]) -> None:
        self.wants = wants
        self.ids: list[Any] = []  # of each annotation
        self.polygons: list[list[np.ndarray]] = []  # of each, [K 2] each
        self.mask_wh: list[list[Any] | None] = []  # of each, pixels of run lengths; None of polygons
        self.points: list[np.ndarray] = []  # of each, [K 3]; [0 3] without any
        self.unread: list[tuple[Any, str]] = []  # id of an annotation, and what of it could not be read
        self.mirrored = np.zeros(0, dtype=np.int64)  # as in KeyPoints, once the categories are known
        self.num_points = 0  # of an object, likewise

    def add(self, item: dict[str, Any]) -> None:
        """Keep the masks and key points of one annotation."""
        self.ids.append(item.get("id"))
        if MASKS in self.wants:
            given = item.get("segmentation") or []
            polygons = _polygons(given)
            self.mask_wh.append(given["size"][::-1] if polygons and isinstance(given, dict) else None)
            if polygons is None:
                self.unread.append((item.get("id"), "segmentation"))
            self.polygons.append(polygons or [])
        if KEY_POINTS in self.wants:
            points = _points(item.get("keypoints") or [])
            if points is None:
                self.unread.append((item.get("id"), "keypoints"))
            self.points.append(np.zeros((0, 3)) if points is None else points)

    def name_points(self, path: Path, categories: Sequence[Any]) -> list[Problem]:
        """Decide how many key points an object has and which are mirrored; return the problems of all annotations.

        Where the categories name as many as some object has, objects with other numbers have none; else the longest
        list decides, and shorter ones lack the rest.
        """
        kind = "{} that cannot be read, taken as missing"
        problems = [Problem(str(path), 0, kind.format(what), f"annotation {id_}") for id_, what in self.unread]
        names, lengths = names_of_points(categories), set(map(len, self.points))
        if not names or len(names) not in lengths:
            self.num_points = max(lengths, default=0)
            return problems
        self.num_points, self.mirrored = len(names), mirrored_by_name(names)
        kind = "keypoints of another number than the categories name, taken as missing"
        for number, points in enumerate(self.points):
            if len(points) not in (0, self.num_points):
                said = f"annotation {self.ids[number]}: {len(points)} of {self.num_points}"
                problems.append(Problem(str(path), 0, kind, said))
                self.points[number] = points[:0]
        return problems

    def columns(self, table: RowTable, order: np.ndarray, image_wh: np.ndarray) -> dict[str, Any]:
        """Return the columns for :class:`Annotations`; None where no annotation of the file has any.

        Key points of which none is labelled are none.

        Args:
            table: the annotations; ``row`` has their numbers in the file.
            order: of its rows, as it is wanted.
            image_wh: [N 2] pixels.
        """
        self._drop_other_sizes(table, image_wh)
        rows = table["row"][order]
        polygons = Polygons.of([self.polygons[row] for row in rows]) if any(self.polygons) else None
        if not any((points[:, 2] > 0).any() for points in self.points):
            return {"polygons": polygons, "key_points": None}
        points = np.zeros((len(rows), self.num_points, 3))
        for out, row in zip(points, rows, strict=True):
            out[: len(self.points[row])] = self.points[row]
        return {"polygons": polygons, "key_points": KeyPoints(points, self.mirrored)}

    def _drop_other_sizes(self, table: RowTable, image_wh: np.ndarray) -> None:
        """Take the run lengths as missing that were made for another image size; record a problem for each."""
        if not any(self.mask_wh):
            return
        said = [self.mask_wh[row] for row in table["row"]]
        wanted = image_wh[table["image"]].tolist()
        other = [wh is not None and min(size) > 0 and wh != size for wh, size in zip(said, wanted, strict=True)]
        bad = np.array(other, dtype=bool)

        def sizes(row: int) -> str:
            mine, own = (f"{width} x {height}" for width, height in (said[row] or (0, 0), wanted[row]))
            return f"annotation {table['id'][row]}: {mine}, not {own}"

        table.note(bad, "segmentation of another size than its image, taken as missing", sizes)
        for row in table["row"][bad].tolist():
            self.polygons[row], self.mask_wh[row] = [], None


def _polygons(value: Any) -> list[np.ndarray] | None:
    """Return the polygons [K 2] of COCO's lists or run lengths, None where they are neither."""
    from hotcoco import mask

    try:
        if isinstance(value, dict):
            height, width = (int(side) for side in value["size"])
            if min(height, width) < 1 or height * width > LARGEST_MASK:
                return None
            return polygons_of_mask(mask.decode(value))
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in value]
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        return None
    if not all(_is_near(polygon) for polygon in polygons):
        return None
    return [polygon for polygon in polygons if len(polygon) >= CORNERS]


def _points(value: Any) -> np.ndarray | None:
    """Return COCO's key points [K 3], None where they are not."""
    try:
        points = np.array(value, dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError, OverflowError):
        return None
    return points if _is_near(points) else None


def _is_near(numbers: np.ndarray) -> bool:
    """Whether these are numbers, and none is farther away than an image can reach."""
    return bool((np.abs(numbers) < FARTHEST).all())


def names_of_points(categories: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of the key points of a COCO JSON; () where its categories name none, or not the same."""
    given = [one.get("keypoints") for one in categories if isinstance(one, dict)]
    lists = [names for names in given if isinstance(names, list) and names]
    if not lists or any(names != lists[0] for names in lists) or not all(isinstance(name, str) for name in lists[0]):
        return ()
    return tuple(lists[0])


def mirrored_by_name(names: Sequence[str]) -> np.ndarray:
    """Return for each key point the one that takes its place in a mirror: ``left_eye`` that of ``right_eye``.

    Returns:
        [K] int64, [0] where one has no other side, or names are not unique.
    """
    place = {name.lower(): number for number, name in enumerate(names)}
    mirrored = [place.get(_other_side(name, place), -1) for name in names]
    known = sorted(mirrored) == list(range(len(names)))
    return np.array(mirrored if known else [], dtype=np.int64)


def _other_side(name: str, known: Container[str]) -> str:
    """Return the name with left and right swapped, in small letters; "" where the other side has to be and is not."""
    for side in SIDES:
        other = side.sub(lambda found: OTHER_SIDE[found[0].lower()], name).lower()
        if other != name.lower() and other in known:
            return other
    return "" if SIDE_WORD.search(name.lower()) else name.lower()
