"""Which detection finds which object, by COCO's rules, for all images at once and at any IoU and range of areas.

Shape letters: N detections, M annotations, P pairs of both in one image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
        self.group, self.scores, self.boxes_xywh = _columns(results, truth)
        self.truth_group, _, self.truth_boxes_xywh = _columns(annotations, truth)
        self.num_categories = len(truth["categories"])
        self.crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
        self.truth_areas = np.array([a["area"] for a in annotations], dtype=np.float64)
        self.areas = self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3]

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
        overlap = overlaps(
            self.boxes_xywh[self.order[place]], self.truth_boxes_xywh[annotation], self.crowd[annotation]
        )
        near = overlap >= LOWEST_IOU
        annotation, place, overlap = annotation[near], place[near], overlap[near]
        # By place; of one detection the highest overlap first, then the later annotation.
        preference = np.lexsort((-annotation, -overlap, place))
        self.pairs = annotation[preference], place[preference], overlap[preference]

    @cached_property
    def image(self) -> np.ndarray:
        """Index of each detection's image in the ground truth, [N]."""
        return self.group // max(self.num_categories, 1)

    @cached_property
    def category(self) -> np.ndarray:
        """Index of each detection's category in the ground truth, [N]."""
        return self.group % max(self.num_categories, 1)

    @cached_property
    def truth_image(self) -> np.ndarray:
        """Index of each annotation's image, [M]."""
        return self.truth_group // max(self.num_categories, 1)

    @cached_property
    def truth_category(self) -> np.ndarray:
        """Index of each annotation's category, [M]."""
        return self.truth_group % max(self.num_categories, 1)

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
        found, partner = self.partners(iou, is_object)
        annotation = np.full(len(self.order), -1)
        annotation[found] = partner
        is_matched = annotation >= 0
        correct = is_matched & is_object[annotation] if len(is_object) else is_matched
        other_area = (self.areas < low) | (self.areas > high)
        ignored = (is_matched & ~correct) | (~is_matched & other_area) | (self.rank >= DETECTION_LIMIT)
        return DetectionMatches(correct, ignored, annotation)

    def partners(self, iou: float, is_object: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the detections that are matched at one IoU, and the annotation that each is matched to.

        Every detection asks for the annotation that it prefers; of those that ask for one the strongest keeps it, and
        the others ask for their next. That ends where the strongest choosing first ends (Gale and Shapley, 1962).

        Args:
            iou: at least :data:`LOWEST_IOU`.
            is_object: [M] bool, the annotations that are taken before all others.
        """
        annotation, place = (column[self.pairs[2] >= iou] for column in self.pairs[:2])
        preference = np.argsort(2 * place + ~is_object[annotation], kind="stable")  # of one detection, objects first
        annotation, place = annotation[preference], place[preference]
        row = np.flatnonzero(np.diff(place, prepend=-1))  # where the pairs of each detection begin, the strongest first
        stop = np.append(row[1:], len(place))
        asking, nobody = np.arange(len(row)), len(row)
        holder = np.full(len(is_object), nobody)
        while len(asking):
            wanted = annotation[row[asking]]
            asking, wanted = asking[~self.crowd[wanted]], wanted[~self.crowd[wanted]]  # a crowd region takes them all
            before = holder[wanted]
            np.minimum.at(holder, wanted, asking)
            ousted = np.unique(before[(before != holder[wanted]) & (before != nobody)])
            asking = np.concatenate((asking[holder[wanted] != asking], ousted))
            row[asking] += 1
            asking = asking[row[asking] < stop[asking]]
        kept = row[row < stop]
        return self.order[place[kept]], annotation[kept]


def _columns(rows: Sequence[dict], truth: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row a number for its image and class [N], its score [N] and its box xywh [N 4]."""
    images = {image["id"]: number for number, image in enumerate(truth["images"])}
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    group = [images[row["image_id"]] * len(categories) + categories[row["category_id"]] for row in rows]
    scores = [row.get("score", 0.0) for row in rows]
    boxes_xywh = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    return np.array(group, dtype=np.int64), np.array(scores, dtype=np.float64), boxes_xywh


def overlaps(boxes: np.ndarray, truth_boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return COCO's overlap of pairs of xywh boxes, [P]: IoU, but over the detection's own area for a crowd region."""
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], truth_boxes[:, :2] + truth_boxes[:, 2:])
    size = np.maximum(far - np.maximum(boxes[:, :2], truth_boxes[:, :2]), 0)
    intersection = size[:, 0] * size[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + truth_boxes[:, 2] * truth_boxes[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
