"""Which detection finds which object, by COCO's rules, for all images at once and at any IoU and range of areas.

Shape letters: N detections, M annotations, P pairs of both in one image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOWEST_IOU = 0.5  # of COCO's thresholds
DETECTION_LIMIT = 100  # strongest detections per image and class, as in COCO
ALL_AREAS = (0.0, 1e10)


@dataclass(frozen=True)
class DetectionMatches:
    """What COCO's matching says of every detection, in the order given."""

    correct: np.ndarray  # [N] bool, matched to an object
    ignored: np.ndarray  # [N] bool, neither right nor wrong: matched to what is no object here, or beyond the limit
    annotation: np.ndarray  # [N] row of the annotation that it is matched to, -1 where it is none


class CocoMatcher:
    """Matches detections to objects as pycocotools does, without a loop over images.

    The strongest detection of an image and class chooses first; it takes the free object with the highest IoU (the
    later annotation of two equal ones), and what is no object here, a crowd region or one outside the range of areas,
    only if no object is left. A crowd region may be taken by any number of detections.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
    """

    def __init__(self, truth: dict, results: Sequence[dict]) -> None:
        annotations = truth["annotations"]
        self.group, self.scores, boxes = _columns(results, truth)
        self.truth_group, _, truth_boxes = _columns(annotations, truth)
        self.crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
        self.truth_areas = np.array([a["area"] for a in annotations], dtype=np.float64)
        self.areas = boxes[:, 2] * boxes[:, 3]

        self.order = np.lexsort((-self.scores, self.group))  # by image and class, the strongest first, ties as given
        in_order = self.group[self.order]
        # Among those of its image and class, from 0 [N].
        self.rank = np.empty(len(in_order), dtype=np.int64)
        self.rank[self.order] = np.arange(len(in_order)) - np.searchsorted(in_order, in_order, side="left")
        # Every annotation [M] with each of the detections of its image and class, as pairs [P]: the annotation, and the
        # detection's place in the order.
        start = np.searchsorted(in_order, self.truth_group, side="left")
        count = np.minimum(np.searchsorted(in_order, self.truth_group, side="right") - start, DETECTION_LIMIT)
        annotation = np.repeat(np.arange(len(annotations)), count)
        place = np.arange(len(annotation)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
        overlap = _overlap(boxes[self.order[place]], truth_boxes[annotation], self.crowd[annotation])
        near = overlap >= LOWEST_IOU
        self.pairs = annotation[near], place[near], overlap[near]

    def objects(self, area_range: tuple[float, float] = ALL_AREAS) -> np.ndarray:
        """Return [M] bool: the annotations that are to be found, crowd regions and other areas left out."""
        low, high = area_range
        return ~self.crowd & (self.truth_areas >= low) & (self.truth_areas <= high)

    def matches(self, iou: float, area_range: tuple[float, float] = ALL_AREAS) -> DetectionMatches:
        """Match at one IoU; the range of areas is in square pixels, both ends included.

        Raises:
            ValueError: the IoU is below :data:`LOWEST_IOU`.
        """
        if iou < LOWEST_IOU:
            raise ValueError(f"pairs are kept from IoU {LOWEST_IOU} on, not {iou}")
        low, high = area_range
        is_object = self.objects(area_range)
        correct = np.zeros(len(self.order), dtype=bool)
        matched = np.full(len(self.order), -1)
        annotation, place, overlap = (column[self.pairs[2] >= iou] for column in self.pairs)
        # By place; of one detection objects first, then the highest overlap, then the later annotation.
        preference = np.lexsort((-annotation, -overlap, ~is_object[annotation], place))
        taken, last = set(), -1  # annotations that are matched, and the detection that was matched last
        rows = zip(place[preference].tolist(), annotation[preference].tolist(), strict=True)
        for position, chosen in rows:
            if position == last or chosen in taken:  # the detection has its match, or this object has a stronger one
                continue
            last = position
            matched[self.order[position]] = chosen
            correct[self.order[position]] = is_object[chosen]
            if not self.crowd[chosen]:
                taken.add(chosen)
        is_matched = matched >= 0
        other_area = (self.areas < low) | (self.areas > high)
        ignored = (is_matched & ~correct) | (~is_matched & other_area) | (self.rank >= DETECTION_LIMIT)
        return DetectionMatches(correct, ignored, matched)


def _columns(rows: Sequence[dict], truth: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row a number for its image and class [N], its score [N] and its box xywh [N 4]."""
    images = {image["id"]: number for number, image in enumerate(truth["images"])}
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    group = [images[row["image_id"]] * len(categories) + categories[row["category_id"]] for row in rows]
    scores = [row.get("score", 0.0) for row in rows]
    boxes_xywh = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    return np.array(group, dtype=np.int64), np.array(scores, dtype=np.float64), boxes_xywh


def _overlap(boxes: np.ndarray, truth_boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return COCO's overlap of pairs of xywh boxes, [P]: IoU, but over the detection's own area for a crowd region."""
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], truth_boxes[:, :2] + truth_boxes[:, 2:])
    size = np.maximum(far - np.maximum(boxes[:, :2], truth_boxes[:, :2]), 0)
    intersection = size[:, 0] * size[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + truth_boxes[:, 2] * truth_boxes[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
