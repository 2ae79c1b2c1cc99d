"""Masks and key points of a COCO JSON: collected while it is parsed, for the networks that learn them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.labels.annotations import KeyPoints, Problem
from data.labels.polygons import Polygons, polygons_of_mask
from utils.structures import KEY_POINTS, MASKS

CORNERS = 3  # of a polygon, at least
LARGEST_MASK = 1 << 28  # pixels
SIDES = ("left", "right")  # in the names of key points that a mirror swaps


class CocoShapes:
    """Collects what is wanted of each annotation, in their order; what cannot be read is left out and counted."""

    def __init__(self, wants: frozenset[str]) -> None:
        self.wants = wants
        self.polygons: list[list[np.ndarray]] = []  # of each annotation, [K 2] each
        self.points: list[np.ndarray] = []  # of each annotation, [K 3]; [0 3] without any
        self.unread: list[tuple[Any, str]] = []  # id of an annotation, and what of it could not be read

    def add(self, item: dict[str, Any]) -> None:
        """Keep the masks and key points of one annotation."""
        if MASKS in self.wants:
            polygons = _polygons(item.get("segmentation") or [])
            if polygons is None:
                self.unread.append((item.get("id"), "segmentation"))
            self.polygons.append(polygons or [])
        if KEY_POINTS in self.wants:
            points = _points(item.get("keypoints") or [])
            if points is None:
                self.unread.append((item.get("id"), "keypoints"))
            self.points.append(np.zeros((0, 3)) if points is None else points)

    def columns(self, rows: np.ndarray, categories: Sequence[Any]) -> dict[str, Any]:
        """Return the columns for :class:`Annotations`; None where no annotation of the file has any.

        Key points of which none is labelled are none.

        Args:
            rows: numbers of the annotations, in the order that is wanted.
            categories: those of the file, which name the key points.
        """
        polygons = Polygons.of([self.polygons[row] for row in rows]) if any(self.polygons) else None
        most = max(map(len, self.points), default=0)
        if not any((points[:, 2] > 0).any() for points in self.points):
            return {"polygons": polygons, "key_points": None}
        points = np.zeros((len(rows), most, 3))
        for out, row in zip(points, rows, strict=True):
            out[: len(self.points[row])] = self.points[row]
        return {"polygons": polygons, "key_points": KeyPoints(points, mirrored_by_name(categories, most))}

    def problems(self, path: Path) -> list[Problem]:
        """Return a problem for each mask and each object's key points that could not be read."""
        kind = "{} that cannot be read, taken as missing"
        return [Problem(str(path), 0, kind.format(what), f"annotation {id_}") for id_, what in self.unread]


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
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        return None
    return [polygon for polygon in polygons if len(polygon) >= CORNERS]


def _points(value: Any) -> np.ndarray | None:
    """Return COCO's key points [K 3], None where they are not."""
    try:
        points = np.array(value, dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError, OverflowError):
        return None
    return points if np.isfinite(points).all() else None


def mirrored_by_name(categories: Sequence[Any], count: int) -> np.ndarray:
    """Return for each key point the one that takes its place in a mirror: ``left_eye`` that of ``right_eye``.

    Args:
        categories: of a COCO JSON; all that name their key points name the same.
        count: key points of an object.

    Returns:
        [K] int64, [0] where the names are not known.
    """
    given = [one.get("keypoints") for one in categories if isinstance(one, dict)]
    lists = {tuple(map(str, names)) for names in given if names and isinstance(names, list)}
    if len(lists) != 1 or len(names := next(iter(lists))) != count:
        return np.zeros(0, dtype=np.int64)
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(_other_side(name), number) for number, name in enumerate(names)])


def _other_side(name: str) -> str:
    """Return the name with left and right swapped."""
    for side, other in (SIDES, SIDES[::-1]):
        if side in name:
            return name.replace(side, other)
    return name
