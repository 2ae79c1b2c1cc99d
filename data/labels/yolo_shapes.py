"""Polygons and key points of YOLO's label files, for the networks that learn them.

The files were read for their boxes before, so that their rows are known to be sound; see :mod:`data.labels.yolo` and
:mod:`data.labels.key_points`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.description import DataDescription
from data.labels.annotations import KeyPoints, Problem
from data.labels.label_format import LabelRows
from data.labels.polygons import Polygons
from data.labels.yolo import BOX_COLUMNS
from utils.errors import UserError
from utils.structures import KEY_POINTS, MASKS

LABELLED = 2.0  # what is written of a key point that has no visibility


def columns_of_rows(
    labels: Sequence[str],
    per_image: Sequence[LabelRows],
    image_wh: np.ndarray,
    description: DataDescription,
    wants: frozenset[str],
    pose_columns: int,
    problems: list[Problem],
) -> dict[str, Any]:
    """Return the columns for :class:`Annotations` of all rows, in their order; None where no row has any.

    Key points of which none is labelled are none.

    Args:
        labels: N files, or "".
        per_image: the rows of each.
        image_wh: [N 2] pixels.
        description: says what key points there are.
        wants: MASKS, KEY_POINTS or both.
        pose_columns: of a row with key points; 0: rows that are longer than a box are polygons.
        problems: gets one for each row whose key points are no numbers.

    Raises:
        UserError: rows may have key points, and the data set does not say which.
    """
    points, numbers = description.keypoint_shape or (0, 0)
    if KEY_POINTS in wants and description.keypoint_shape is None and any(rows.lengths for rows in per_image):
        raise UserError(
            f"{description.path}: does not say what its rows hold; a data.yaml with kpt_shape: [points, 3] does"
        )
    polygons: list[list[np.ndarray]] = []
    key_points: list[np.ndarray] = []
    for label, rows, wh in zip(labels, per_image, image_wh, strict=True):
        longer = _numbers_of(label, rows)
        if MASKS in wants and not pose_columns:
            polygons += [[row[1:].reshape(-1, 2) * wh] if len(row) > BOX_COLUMNS else [] for row in longer]
        if KEY_POINTS in wants and points:
            key_points += [_points(row[BOX_COLUMNS:], points, numbers, wh) for row in longer]
            bad = [line for line, row in zip(rows.lines.tolist(), longer, strict=True) if not np.isfinite(row).all()]
            problems += [Problem(label, line, "key points that are no numbers, taken as missing", "") for line in bad]
    mirrored = np.array(description.keypoint_mirror, dtype=np.int64)
    is_labelled = any((of_row[:, 2] > 0).any() for of_row in key_points)
    return {
        "polygons": Polygons.of(polygons) if any(polygons) else None,
        "key_points": KeyPoints(np.stack(key_points), mirrored) if is_labelled else None,
    }


def _numbers_of(label: str, rows: LabelRows) -> list[np.ndarray]:
    """Return the numbers of each row of a file, class and box alone where it has no longer rows."""
    if not rows.lengths:
        return [np.zeros(BOX_COLUMNS)] * len(rows.lines)
    with open(label, encoding="utf-8-sig") as file:
        lines = file.read().splitlines()
    return [np.array([_number(word) for word in lines[line - 1].split()]) for line in rows.lines]


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return np.nan


def _points(values: np.ndarray, count: int, numbers: int, wh: np.ndarray) -> np.ndarray:
    """Return x, y in pixels and visibility [K 3] of the numbers behind a box; all 0 where they are none."""
    points = np.zeros((count, 3))
    if len(values) and np.isfinite(values).all():
        given = values.reshape(count, numbers)
        points[:, :2] = given[:, :2] * wh
        points[:, 2] = given[:, 2] if numbers == 3 else LABELLED * given.any(axis=1)
    return points
