"""YOLO's pose rows, ``class cx cy w h`` and key points, told apart from polygons by all rows of a split.

A key point is ``x y visibility`` or ``x y``, so that a row with K of them has 5 + 3K or 5 + 2K columns; that of a
polygon with N corners has 1 + 2N. A ``data.yaml`` says which with ``kpt_shape: [K, 3]``. Where nothing says it, the
rows do: all of a pose set have one length, a visibility is 0, 1 or 2, the box holds the points, and the edges of a
polygon do not cross.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from data.labels.annotations import Problem
from data.labels.label_format import LabelRows
from data.labels.yolo import BOX_COLUMNS, read_yolo
from utils.errors import UserError

# Share of the rows with more than a box that have the same length: in a set of polygons lengths differ.
ONE_LENGTH = 0.9
TOLERANCE = 0.01  # relative to the image, by which a key point may lie outside of its box
MOST, HALF = 0.9, 0.5  # shares of the rows that look like boxes with key points, or like polygons
ENOUGH_ROWS = 10  # to go by these shares
LONGEST_POSE = 2000  # columns; 478 points of a face have 1439
MOST_NUMBERS = 10**7  # in the memory while edges are compared


def with_key_points(
    per_image: list[LabelRows],
    labels: Sequence[str],
    keypoint_shape: tuple[int, int] | None,
    problems: list[Problem],
    are_wanted: bool = False,
) -> tuple[list[LabelRows], int]:
    """Return the rows with those of key points read as their boxes, where the label files have such rows.

    Args:
        per_image: the rows, read as boxes and polygons.
        labels: the file of each, or "".
        keypoint_shape: points per row and numbers of each, (0, 0) for polygons, None where nothing says it.
        problems: gets a note if there are key points.
        are_wanted: they are read by themselves.

    Returns:
        The rows, and the number of columns of one with key points; 0 where longer rows are polygons.

    Raises:
        UserError: the rows may be either.
    """
    longer = Counter(length for rows in per_image for length in rows.lengths)
    if not longer:
        return per_image, 0
    files = [file for file, rows in zip(labels, per_image, strict=True) if rows.lengths]
    if keypoint_shape is not None:
        columns = BOX_COLUMNS + keypoint_shape[0] * keypoint_shape[1] if all(keypoint_shape) else 0
    else:
        columns = _pose_columns(files, longer, sum(len(rows.lines) for rows in per_image))
    if not columns:
        return per_image, 0
    if longer[columns] and not are_wanted:
        said = f"{longer[columns]} rows of {columns} columns"
        problems.append(Problem(files[0], 0, "rows with a box and key points, of which the box is taken", said))
    of_file = {file: read_yolo(file, columns) for file in files}
    return [of_file.get(file, rows) for file, rows in zip(labels, per_image, strict=True)], columns


def _pose_columns(files: Sequence[str], longer: Counter[int], total: int) -> int:
    """Return the number of columns of rows with key points, 0 where the rows are polygons.

    Args:
        files: label files with rows that are longer than a box.
        longer: the lengths of such rows, and how many there are.
        total: rows of the split, those of boxes too.

    Raises:
        UserError: they may be either.
    """
    columns, count = longer.most_common(1)[0]
    if columns > LONGEST_POSE or count < ONE_LENGTH * longer.total():
        return 0
    rows = _rows_of_length(files, columns)
    if not len(rows):
        return 0
    extra = columns - BOX_COLUMNS
    if extra % 3 == 0 and np.isin(rows[:, 7::3], (0, 1, 2)).all():
        points_xy = rows[:, BOX_COLUMNS:].reshape(len(rows), -1, 3)[..., :2]
        if _are_boxes_around(rows, points_xy).mean() >= HALF:
            return columns
    if extra % 2 or count < HALF * total or _are_surely_polygons(rows).mean() >= HALF:
        return 0
    pose = _are_boxes_around(rows, rows[:, BOX_COLUMNS:].reshape(len(rows), -1, 2)).mean()
    if pose < HALF:
        return 0
    if len(rows) >= ENOUGH_ROWS:
        if columns > 7 and _are_outlines(rows).mean() >= MOST:  # the edges of a triangle never cross
            return 0
        if pose >= MOST:
            return columns
    raise UserError(
        f"{files[0]}: rows of {columns} columns may be polygons of {(columns - 1) // 2} corners or boxes with "
        f"{extra // 2} key points; say which in a data.yaml, with kpt_shape: [0, 0] or kpt_shape: [{extra // 2}, 2]"
    )


def _rows_of_length(files: Sequence[str], columns: int) -> np.ndarray:
    """Return the rows of finite numbers [M columns] that have this length."""
    rows = []
    for path in files:
        with open(path, encoding="utf-8-sig") as file:
            for words in map(str.split, file):
                if len(words) == columns:
                    try:
                        rows.append([float(word) for word in words])
                    except ValueError:  # reported as such, whatever the other rows are
                        continue
    table = np.array(rows, dtype=np.float64).reshape(-1, columns)
    return table[np.isfinite(table).all(axis=1)]


def _are_boxes_around(rows: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    """Return [M] bool: rows ``class cx cy w h`` are a box in the image that holds all points [M K 2] but 0 0."""
    center, size = rows[:, 1:3], rows[:, 3:5]
    low, high = center - size / 2 - TOLERANCE, center + size / 2 + TOLERANCE
    is_box = (size > 0) & (low >= -2 * TOLERANCE) & (high <= 1 + 2 * TOLERANCE)
    inside = (points_xy >= low[:, None]) & (points_xy <= high[:, None])
    holds = np.all(inside, axis=2) | np.all(points_xy == 0, axis=2)
    return np.all(is_box, axis=1) & np.all(holds, axis=1)


def _are_surely_polygons(rows: np.ndarray) -> np.ndarray:
    """Return [M] bool: the numbers behind the class end where they begin, or are the corners of a rectangle."""
    corners_xy = rows[:, 1:].reshape(len(rows), -1, 2)
    is_closed = np.all(corners_xy[:, 0] == corners_xy[:, -1], axis=1)
    if corners_xy.shape[1] != 4:
        return is_closed
    first, second, third, fourth = corners_xy.transpose(1, 0, 2)
    return np.all(np.abs(first + third - second - fourth) < TOLERANCE, axis=1)


def _are_outlines(rows: np.ndarray) -> np.ndarray:
    """Return [m] bool: the numbers behind the class are corners whose edges do not cross, of the first rows."""
    num_corners = (rows.shape[1] - 1) // 2
    count = max(ENOUGH_ROWS, MOST_NUMBERS // num_corners**2)
    start = rows[:count, 1:].reshape(-1, num_corners, 2)
    edge = np.roll(start, -1, axis=1) - start
    from_edge = start[:, None] - start[:, :, None]  # m edge corner xy
    # On which side of the line through the edge each corner lies, m edge corner.
    side = edge[:, :, None, 0] * from_edge[..., 1] - edge[:, :, None, 1] * from_edge[..., 0]
    divides = side * np.roll(side, -1, axis=2) < 0  # m edge edge: the line divides the corners of the other edge
    return ~(divides & divides.transpose(0, 2, 1)).any(axis=(1, 2))
