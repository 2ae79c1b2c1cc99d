"""YOLO text labels: a line per object, ``class cx cy w h`` relative to the upright image, or a class and a polygon.

Behind the box there may be key points, which are passed over; :mod:`data.labels.key_points` tells them from polygons.
"""

from __future__ import annotations

import numpy as np

from data.labels.annotations import Problem
from data.labels.label_format import LabelFormat, LabelRows

LARGEST_CLASS = 2**31 - 1
BOX_COLUMNS = 5
RANGE_TOLERANCE = 1e-3  # files are written with few decimals
NO_SIZE, OUTSIDE = "zero or negative size", "coordinate outside 0..1"


def parse_yolo_text(text: str, file: str, pose_columns: int = 0) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Parse one label file.

    Args:
        text: of the file.
        file: its path.
        pose_columns: of a line with a box and key points; 0: a line with more than five columns is a polygon.

    Returns:
        rows [K 5] float64 ``class cx cy w h``, their line numbers [K], and the problems of the rows that are left out.
    """
    values = text.split()
    lines = text.splitlines()
    if len(values) == 5 * len(lines):  # the common case at once; any doubt goes line by line
        try:
            rows = np.array(values, dtype=np.float64).reshape(-1, 5)
        except ValueError:
            rows = None
        if rows is not None and all(len(line.split()) == 5 for line in lines) and _usable(rows).all():
            return rows, np.arange(1, len(rows) + 1), []
    return _parse_lines(lines, file, pose_columns)


def _usable(rows: np.ndarray) -> np.ndarray:
    """Return [K] bool: the rows that :func:`_parse_words` would accept."""
    finite = np.isfinite(rows).all(1)
    with np.errstate(invalid="ignore"):
        whole = (rows[:, 0] == np.floor(rows[:, 0])) & (rows[:, 0] >= 0) & (rows[:, 0] <= LARGEST_CLASS)
        inside = ((rows[:, 1:] >= -RANGE_TOLERANCE) & (rows[:, 1:] <= 1 + RANGE_TOLERANCE)).all(1)
        solid = (rows[:, 3:] > 0).all(1)
    return finite & whole & inside & solid


def _parse_lines(lines: list[str], file: str, pose_columns: int) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Parse line by line, so that each bad line is named; returns as :func:`parse_yolo_text`."""
    rows, numbers, problems = [], [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        row, kind = _parse_words(words, pose_columns)
        if kind:
            problems.append(Problem(file, number, kind, line.strip()[:80]))
        else:
            rows.append(row)
            numbers.append(number)
    return np.array(rows, dtype=np.float64).reshape(-1, 5), np.array(numbers, dtype=np.int64), problems


def _parse_words(words: list[str], pose_columns: int) -> tuple[list[float], str]:
    """Return the five numbers of a line, if it has a box, and what is wrong with it, or ""."""
    wrong_length = _wrong_length(len(words), pose_columns)
    if wrong_length:
        return [], wrong_length
    if pose_columns:
        words = words[:BOX_COLUMNS]
    try:
        row = [float(word) for word in words]
    except ValueError:
        return [], "not a number"
    if len(row) > 5 and np.isfinite(row).all():  # the box around the polygon
        x1, x2, y1, y2 = min(row[1::2]), max(row[1::2]), min(row[2::2]), max(row[2::2])
        row = [row[0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    row = row[:5]
    if not np.isfinite(row).all():
        return [], "not a finite number"
    if row[0] != int(row[0]) or not 0 <= row[0] <= LARGEST_CLASS:
        return [], "class index is not 0 or a positive whole number"
    if row[3] <= 0 or row[4] <= 0:
        return row, NO_SIZE
    if min(row[1:]) < -RANGE_TOLERANCE or max(row[1:]) > 1 + RANGE_TOLERANCE:
        return row, OUTSIDE
    return row, ""


def _wrong_length(count: int, pose_columns: int) -> str:
    """Return why a line cannot have so many columns, "" where it can."""
    if count < BOX_COLUMNS:
        return "fewer than 5 columns"
    if pose_columns and count not in (BOX_COLUMNS, pose_columns):
        return f"neither 5 columns nor the {pose_columns} of a box with key points"
    if not pose_columns and count > BOX_COLUMNS and (count < 7 or count % 2 == 0):
        return "neither 5 columns nor a class and a polygon"
    return ""


def yolo_to_xyxy(boxes: np.ndarray, image_wh: np.ndarray) -> np.ndarray:
    """Turn relative ``cx cy w h`` [K 4] into corners in pixels; ``image_wh`` is [K 2]."""
    center, size = boxes[:, :2] * image_wh, boxes[:, 2:] * image_wh
    return np.concatenate((center - size / 2, center + size / 2), axis=1)


def read_yolo(path: str, pose_columns: int = 0) -> LabelRows:
    """Read a label file: one object per line, class number and relative centre and size.

    Args:
        path: of the file.
        pose_columns: as :func:`parse_yolo_text`.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = file.read()
    rows, lines, problems = parse_yolo_text(text, path, pose_columns)
    if not problems and len(text.split()) == BOX_COLUMNS * len(rows):  # nothing but boxes
        return _label_rows(rows, lines, problems)
    words = [line.split() for line in text.splitlines()]
    lengths = tuple(len(of_line) for of_line in words if len(of_line) > BOX_COLUMNS)
    set_aside = [problem for problem in problems if problem.kind in (NO_SIZE, OUTSIDE)]
    boxes = [_parse_words(words[problem.line - 1], pose_columns)[0] for problem in set_aside]
    unlearnable = _label_rows(np.array(boxes), np.array([problem.line for problem in set_aside]), []) if boxes else None
    return _label_rows(rows, lines, problems)._replace(unlearnable=unlearnable, lengths=lengths)


def _label_rows(rows: np.ndarray, lines: np.ndarray, problems: list[Problem]) -> LabelRows:
    """Return rows [K 5] ``class cx cy w h`` as what every format gives."""
    return LabelRows(rows[:, 1:], rows[:, 0].astype(np.int64), lines, np.zeros(len(rows), bool), True, (0, 0), problems)


FORMAT = LabelFormat(".txt", "labels", read_yolo)
