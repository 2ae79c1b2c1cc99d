"""Results and annotations as columns, and which detection may find which of them, without a loop over images.

Shape letters: N rows, M annotations, P pairs of a detection and an annotation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]


def columns(rows: Rows, truth: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row a number for its image and class [N], its score [N] and its box xywh [N 4].

    The number is that of the image times the number of categories, plus that of the category.
    """
    scores = [row.get("score", 0.0) for row in rows]
    return groups_of(rows, truth), np.array(scores, dtype=np.float64), boxes_of(rows)


def groups_of(rows: Rows, truth: dict) -> np.ndarray:
    """Return a number for the image and class of each row, [N]."""
    images = {image["id"]: number for number, image in enumerate(truth["images"])}
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    group = [images[row["image_id"]] * len(categories) + categories[row["category_id"]] for row in rows]
    return np.array(group, dtype=np.int64)


def boxes_of(rows: Rows) -> np.ndarray:
    """Return the boxes xywh of rows, [N 4]."""
    return np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)


def pairs_in_groups(
    sorted_groups: np.ndarray, groups: np.ndarray, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return every annotation with each of the detections of its group.

    Args:
        sorted_groups: [N] of the detections, rising.
        groups: [M] of the annotations.
        limit: only so many detections of a group, the first ones.

    Returns:
        The annotation of each pair [P], and the place of its detection in ``sorted_groups`` [P].
    """
    start = np.searchsorted(sorted_groups, groups, side="left")
    count = np.searchsorted(sorted_groups, groups, side="right") - start
    if limit is not None:
        count = np.minimum(count, limit)
    annotation = np.repeat(np.arange(len(groups)), count)
    place = np.arange(len(annotation)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
    return annotation, place


def overlap(boxes: np.ndarray, truth_boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return COCO's overlap of pairs of xywh boxes, [P]: IoU, but over the detection's own area for a crowd region."""
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], truth_boxes[:, :2] + truth_boxes[:, 2:])
    size = np.maximum(far - np.maximum(boxes[:, :2], truth_boxes[:, :2]), 0)
    intersection = size[:, 0] * size[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + truth_boxes[:, 2] * truth_boxes[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def taken_in_turn(place: np.ndarray, annotation: np.ndarray, is_shared: np.ndarray) -> np.ndarray:
    """Return which pairs come about when one detection after the other takes the first of its annotations that is free.

    All detections ask at once for the annotation that they would like best; of those that ask for one the first keeps
    it, and the others ask for their next. That ends where choosing in turn ends (Gale and Shapley, 1962).

    Args:
        place: [P] of the detection, rising.
        annotation: [P] those of one detection in the order in which it would like them.
        is_shared: [M] bool, annotations that any number of detections may take.
    """
    row = np.flatnonzero(np.diff(place, prepend=-1))  # where the pairs of each detection begin, the strongest first
    stop = np.append(row[1:], len(place))
    asking, nobody = np.arange(len(row)), len(row)
    holder = np.full(len(is_shared), nobody)
    while len(asking):
        wanted = annotation[row[asking]]
        asking, wanted = asking[~is_shared[wanted]], wanted[~is_shared[wanted]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, asking)
        ousted = np.unique(before[(before != holder[wanted]) & (before != nobody)])
        asking = np.concatenate((asking[holder[wanted] != asking], ousted))
        row[asking] += 1
        asking = asking[row[asking] < stop[asking]]
    return row[row < stop]
