"""YOLO text labels: a line per object, ``class cx cy w h`` relative to the upright image, or a class and a polygon."""

from __future__ import annotations

import numpy as np

from data.labels.annotations import Problem
from data.labels.label_format import LabelFormat, LabelRows

LARGEST_CLASS = 2**53  # beyond, float64 does not hold every whole number
RANGE_TOLERANCE = 1e-3  # files are written with few decimals


def parse_yolo_text(text: str, file: str) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Parse one label file.

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
    return _parse_lines(lines, file)


def _usable(rows: np.ndarray) -> np.ndarray:
    """Return [K] bool: the rows that :func:`_parse_words` would accept."""
    finite = np.isfinite(rows).all(1)
    with np.errstate(invalid="ignore"):
        whole = (rows[:, 0] == np.floor(rows[:, 0])) & (rows[:, 0] >= 0) & (rows[:, 0] < LARGEST_CLASS)
        inside = ((rows[:, 1:] >= -RANGE_TOLERANCE) & (rows[:, 1:] <= 1 + RANGE_TOLERANCE)).all(1)
        solid = (rows[:, 3:] > 0).all(1)
    return finite & whole & inside & solid


def _parse_lines(lines: list[str], file: str) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Parse line by line, so that each bad line is named; returns as :func:`parse_yolo_text`."""
    rows, numbers, problems = [], [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        row, kind = _parse_words(words)
        if kind:
            problems.append(Problem(file, number, kind, line.strip()[:80]))
        else:
            rows.append(row)
            numbers.append(number)
    return np.array(rows, dtype=np.float64).reshape(-1, 5), np.array(numbers, dtype=np.int64), problems


def _parse_words(words: list[str]) -> tuple[list[float], str]:
    """Return the five numbers of a line, or what is wrong with it."""
    if len(words) < 5:
        return [], "fewer than 5 columns"
    if len(words) > 5 and (len(words) < 7 or len(words) % 2 == 0):
        return [], "neither 5 columns nor a class and a polygon"
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
    if row[0] != int(row[0]) or not 0 <= row[0] < LARGEST_CLASS:
        return [], "class index is not 0 or a positive whole number"
    if row[3] <= 0 or row[4] <= 0:
        return [], "zero or negative size"
    if min(row[1:]) < -RANGE_TOLERANCE or max(row[1:]) > 1 + RANGE_TOLERANCE:
        return [], "coordinate outside 0..1"
    return row, ""


def yolo_to_xyxy(boxes: np.ndarray, image_wh: np.ndarray) -> np.ndarray:
    """Turn relative ``cx cy w h`` [K 4] into corners in pixels; ``image_wh`` is [K 2]."""
    center, size = boxes[:, :2] * image_wh, boxes[:, 2:] * image_wh
    return np.concatenate((center - size / 2, center + size / 2), axis=1)


def read_yolo(path: str) -> LabelRows:
    """Read a label file: one object per line, class number and relative centre and size."""
    with open(path, encoding="utf-8-sig") as file:
        text = file.read()
    rows, lines, problems = parse_yolo_text(text, path)
    return LabelRows(rows[:, 1:], rows[:, 0].astype(np.int64), lines, np.zeros(len(rows), bool), True, (0, 0), problems)


FORMAT = LabelFormat(".txt", "labels", read_yolo)
