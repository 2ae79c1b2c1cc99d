"""Which detection finds which object, by COCO's rules, for all images at once and at any IoU and range of areas.

Shape letters: N detections, M annotations, P pairs of both in one image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluation.pairs import columns, overlap, pairs_in_groups, taken_in_turn

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
        self.group, self.scores, self.boxes_xywh = columns(results, truth)
        self.truth_group, _, self.truth_boxes_xywh = columns(annotations, truth)
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
        annotation, place = pairs_in_groups(in_order, self.truth_group, DETECTION_LIMIT)
        overlaps = overlap(
            self.boxes_xywh[self.order[place]], self.truth_boxes_xywh[annotation], self.crowd[annotation]
        )
        near = overlaps >= LOWEST_IOU
        annotation, place, overlaps = annotation[near], place[near], overlaps[near]
        # By place; of one detection the highest overlap first, then the later annotation.
        preference = np.lexsort((-annotation, -overlaps, place))
        self.pairs = annotation[preference], place[preference], overlaps[preference]

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
        correct = np.zeros(len(self.order), dtype=bool)
        correct[found] = is_object[partner]
        other_area = (self.areas < low) | (self.areas > high)
        ignored = (is_matched & ~correct) | (~is_matched & other_area) | (self.rank >= DETECTION_LIMIT)
        return DetectionMatches(correct, ignored, annotation)

    def partners(self, iou: float, is_object: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the detections that are matched at one IoU, and the annotation that each is matched to.

        Args:
            iou: at least :data:`LOWEST_IOU`.
            is_object: [M] bool, the annotations that are taken before all others.
        """
        annotation, place = (column[self.pairs[2] >= iou] for column in self.pairs[:2])
        preference = np.argsort(2 * place + ~is_object[annotation], kind="stable")  # of one detection, objects first
        annotation, place = annotation[preference], place[preference]
        taken = taken_in_turn(place, annotation, self.crowd)
        return self.order[place[taken]], annotation[taken]
