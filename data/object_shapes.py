"""What is known of the objects of a picture besides boxes, moved with its pixels as the boxes are.

Shape letters: N objects, K key points of an object, H W pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data.labels.annotations import Annotations, KeyPoints
from data.labels.polygons import Polygons, move_points
from data.shared_memory import shared_tensor


@dataclass(frozen=True)
class ObjectShapes:
    """Outlines and key points of N objects; None where nobody wants them or the data have none."""

    polygons: Polygons | None
    key_points: KeyPoints | None

    def __len__(self) -> int:
        return len(self.polygons) if self.polygons is not None else len(self.key_points or ())

    @staticmethod
    def of(annotations: Annotations, rows: slice) -> ObjectShapes | None:
        """Return those of some rows; None where the annotations have neither."""
        if annotations.polygons is None and annotations.key_points is None:
            return None
        whole = ObjectShapes(annotations.polygons, annotations.key_points)
        return whole.select(np.arange(rows.start, rows.stop))

    @staticmethod
    def joined(parts: Sequence[ObjectShapes]) -> ObjectShapes:
        """Return the objects of all parts, which are of one data set, one after the other."""
        polygons = [part.polygons for part in parts if part.polygons is not None]
        points = [part.key_points for part in parts if part.key_points is not None]
        return ObjectShapes(
            Polygons.joined(polygons) if polygons else None,
            KeyPoints(np.concatenate([one.points for one in points]), points[0].mirrored) if points else None,
        )

    def select(self, rows: np.ndarray) -> ObjectShapes:
        """Return the objects at ``rows``, indices or a [N] bool mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return ObjectShapes(
            None if self.polygons is None else self.polygons.select(rows),
            None if self.key_points is None else self.key_points.select(rows),
        )

    def moved(self, matrices: np.ndarray) -> ObjectShapes:
        """Return the objects in other pixels; ``matrices`` [N 3 3] maps columns (x, y, 1).

        Where a matrix mirrors, left and right key points change places, for a mirrored left hand is a right one.
        """
        polygons = None if self.polygons is None else self.polygons.moved(matrices)
        if self.key_points is None:
            return ObjectShapes(polygons, None)
        points = self.key_points.points.copy()
        points[..., :2] = move_points(points[..., :2], matrices[:, None])
        mirrors = np.linalg.det(matrices[:, :2, :2]) < 0
        if len(self.key_points.mirrored):
            points[mirrors] = points[mirrors][:, self.key_points.mirrored]
        return ObjectShapes(polygons, replace(self.key_points, points=points))

    def clipped(self, limits_wh: np.ndarray) -> ObjectShapes:
        """Return the objects cut off at the border of their images, whose sizes are [N 2], as :meth:`within` does."""
        polygons = None if self.polygons is None else self.polygons.clipped(limits_wh)
        return replace(self.within(limits_wh), polygons=polygons)

    def within(self, limits_wh: np.ndarray) -> ObjectShapes:
        """Return the objects with the key points outside of [N 2], or [2], no longer labelled; outlines stay whole."""
        if self.key_points is None:
            return self
        points = self.key_points.points.copy()
        xy = points[..., :2]
        outside = (xy < 0) | (xy > limits_wh[..., None, :])
        points[outside.any(axis=2)] = 0
        return replace(self, key_points=replace(self.key_points, points=points))

    def targets(self, net_hw: tuple[int, int]) -> dict[str, Any]:
        """Return the columns for :class:`utils.structures.Targets`: masks are painted here, for one batch."""
        columns: dict[str, Any] = {}
        if self.polygons is not None:
            columns["masks"] = shared_tensor((len(self.polygons), *net_hw), torch.uint8)
            self.polygons.paint(columns["masks"].numpy())
        if self.key_points is not None:
            columns["key_points"] = torch.from_numpy(self.key_points.points.astype(np.float32))
        return columns
