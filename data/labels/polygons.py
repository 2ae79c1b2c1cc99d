"""Outlines of objects as columns of corners: from COCO's polygons and run lengths, moved with their images, as masks.

Column letters: M objects, R polygons, P corners, K corners of one polygon. H W pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import cv2
import numpy as np


@dataclass(frozen=True)
class Polygons:
    """The outlines of objects: each covers the union of its polygons.

    Where the edges of one polygon enclose a place an even number of times, there is a hole.
    """

    corners_xy: np.ndarray  # [P 2] float64, pixels
    first_corner: np.ndarray  # [R+1] int64: polygon ``r`` has the corners ``first_corner[r]:first_corner[r + 1]``
    first_polygon: np.ndarray  # [M+1] int64: object ``i`` has the polygons ``first_polygon[i]:first_polygon[i + 1]``

    def __len__(self) -> int:
        return len(self.first_polygon) - 1

    @staticmethod
    def of(objects: Sequence[Sequence[np.ndarray]]) -> Polygons:
        """Return the outlines of objects, each given as the corners [K 2] of its polygons; one may have none."""
        polygons = list(chain.from_iterable(objects))
        corners = np.concatenate([np.zeros((0, 2)), *polygons])
        return Polygons(corners, _ends(map(len, polygons)), _ends(map(len, objects)))

    @staticmethod
    def joined(parts: Sequence[Polygons]) -> Polygons:
        """Return the objects of all parts, one after the other."""
        return Polygons(
            np.concatenate([part.corners_xy for part in parts]),
            _ends(chain.from_iterable(np.diff(part.first_corner) for part in parts)),
            _ends(chain.from_iterable(np.diff(part.first_polygon) for part in parts)),
        )

    @property
    def are_given(self) -> np.ndarray:
        """[M] bool: the objects with an outline."""
        return np.diff(self.first_polygon) > 0

    def of_object(self, index: int) -> list[np.ndarray]:
        """Return the polygons of one object, [K 2] each."""
        start, stop = self.first_polygon[index : index + 2]
        return [self.corners_xy[first:last] for first, last in pairwise(self.first_corner[start : stop + 1])]

    def select(self, rows: np.ndarray) -> Polygons:
        """Return the objects at ``rows``, indices in any order."""
        polygons = rows_of_ranges(self.first_polygon[rows], np.diff(self.first_polygon)[rows])
        corners = rows_of_ranges(self.first_corner[polygons], np.diff(self.first_corner)[polygons])
        return Polygons(
            self.corners_xy[corners],
            _ends(np.diff(self.first_corner)[polygons]),
            _ends(np.diff(self.first_polygon)[rows]),
        )

    def filled(self, boxes_xyxy: np.ndarray) -> Polygons:
        """Return the same outlines, with the box [M 4] of each object that has none."""
        if self.are_given.all():
            return self
        corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        return Polygons.of([self.of_object(index) or [corners[index]] for index in range(len(self))])

    def moved(self, matrices: np.ndarray) -> Polygons:
        """Return the outlines in other pixels; ``matrices`` [M 3 3] maps each object's columns (x, y, 1)."""
        return Polygons(
            move_points(self.corners_xy, matrices[self._object_of_corner()]), self.first_corner, self.first_polygon
        )

    def clipped(self, limits_wh: np.ndarray) -> Polygons:
        """Return the outlines cut off at the border of their images, whose sizes are [M 2]."""
        owner = self._object_of_corner()
        outside = ((self.corners_xy < 0) | (self.corners_xy > limits_wh[owner])).any(axis=1)
        if not outside.any():
            return self
        cut = set(owner[outside].tolist())
        objects = [self.of_object(index) for index in range(len(self))]
        for index in cut:
            inside = [_cut_off(polygon, limits_wh[index]) for polygon in objects[index]]
            objects[index] = [polygon for polygon in inside if len(polygon)]
        return Polygons.of(objects)

    def _object_of_corner(self) -> np.ndarray:
        """Return the object of each corner, [P]."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_corner[self.first_polygon]))

    def paint(self, out: np.ndarray) -> None:
        """Fill ``out`` [M H W] uint8 with 1 where each object is, by COCO's rule, and 0 elsewhere."""
        from hotcoco import mask

        out[:] = 0
        for index, of_object in enumerate(out):
            if polygons := self.to_coco(index):
                of_object[:] = mask.decode(mask.merge(mask.frPyObjects(polygons, *of_object.shape)))

    def to_coco(self, index: int) -> list[list[float]]:
        """Return the polygons of one object as COCO has them: x, y, x, y, …"""
        return [polygon.ravel().tolist() for polygon in self.of_object(index)]


def rows_of_ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rows ``start, start + 1, …`` of all ranges, without a loop."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + within


def move_points(points_xy: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Return points [... 2] moved by a matrix [... 3 3] each."""
    return np.einsum("...ij,...j->...i", matrices[..., :2, :2], points_xy) + matrices[..., :2, 2]


def _cut_off(corners_xy: np.ndarray, limit_wh: np.ndarray) -> np.ndarray:
    """Return what of a polygon [K 2] lies in 0..limit, side by side of the border (Sutherland and Hodgman, 1974)."""
    for axis, limit, sign in ((0, 0.0, 1), (1, 0.0, 1), (0, limit_wh[0], -1), (1, limit_wh[1], -1)):
        depth = sign * (corners_xy[:, axis] - limit)  # K, how far inside
        following, next_depth = np.roll(corners_xy, -1, axis=0), np.roll(depth, -1)
        crosses = depth * next_depth < 0
        share = np.divide(depth, depth - next_depth, out=np.zeros_like(depth), where=crosses)
        crossing = corners_xy + share[:, None] * (following - corners_xy)
        both = np.stack((corners_xy, crossing), axis=1).reshape(-1, 2)  # each corner, and where its edge crosses
        corners_xy = both[np.stack((depth >= 0, crosses), axis=1).ravel()]
    return corners_xy


def polygons_of_mask(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outline of a mask [H W] as polygons [K 2] along the edges of its pixels.

    Holes are cut in: the polygon goes from its first corner around each hole and back.
    """
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], cols[0]
    covered = mask[top : rows[-1] + 1, left : cols[-1] + 1]
    # Places between the edges of pixels alternate with the edges, so that contours run along the edges.
    grid = np.zeros((2 * covered.shape[0] + 1, 2 * covered.shape[1] + 1), dtype=np.uint8)
    grid[1::2, 1::2] = covered != 0
    grid = cv2.dilate(grid, np.ones((3, 3), dtype=np.uint8))
    contours, tree = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour.reshape(-1, 2) / 2 + (left, top) for contour in contours]
    parent = tree[0, :, 3]
    polygons = []
    for number in np.flatnonzero(parent < 0):
        ring, start = rings[number], rings[number][:1]
        holes = [rings[hole] for hole in np.flatnonzero(parent == number)]
        polygons.append(np.concatenate([ring, *(part for hole in holes for part in (start, hole, hole[:1]))]))
    return polygons


def _ends(counts: Iterable[int]) -> np.ndarray:
    """Return where ranges of so many rows begin, and where the last one ends."""
    return np.array([0, *accumulate(counts)], dtype=np.int64)
