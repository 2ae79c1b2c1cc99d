"""Which detection finds which object, by COCO's rules, for all images at once and at any IoU and range of areas.

Shape letters: N detections, M annotations, P pairs of both in one image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluation.overlaps import areas_of, crowd_of, ignored_of, overlap_of_pairs
from evaluation.pairs import boxes_of, groups_of, pairs_in_groups, taken_in_turn
from evaluation.parameters import COCO_PARAMETERS, CocoParameters

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
        parameters: of what the overlap is, its lowest threshold, and how many detections count.

    Raises:
        UserError: the key points are not COCO's.
    """

    def __init__(
        self, truth: dict, results: Sequence[dict], parameters: CocoParameters = COCO_PARAMETERS["bbox"]
    ) -> None:
        self.results, self.annotations = results, truth["annotations"]
        annotations, kind = self.annotations, parameters.kind
        sizes_hw = {one["id"]: (one["height"], one["width"]) for one in truth["images"]} if kind == "segm" else {}
        self.num_categories = len(truth["categories"])
        self.lowest_iou, self.limit = min(parameters.ious), parameters.limits[-1]
        self.group, self.truth_group = groups_of(results, truth), groups_of(annotations, truth)
        self.scores = np.array([one["score"] for one in results], dtype=np.float64)
        self.areas = areas_of(results, kind, sizes_hw)
        self.crowd, self.ignored = crowd_of(annotations), ignored_of(annotations, kind)
        self.truth_areas = np.array([one["area"] for one in annotations], dtype=np.float64)

        self.order = np.lexsort((-self.scores, self.group))  # by image and class, the strongest first, ties as given
        in_order = self.group[self.order]
        # Among those of its image and class, from 0 [N].
        self.rank = np.empty(len(in_order), dtype=np.int64)
        self.rank[self.order] = np.arange(len(in_order)) - np.searchsorted(in_order, in_order, side="left")
        # Every annotation [M] with each of the detections of its image and class, as pairs [P]: the annotation, and the
        # detection's place in the order.
        annotation, place = pairs_in_groups(in_order, self.truth_group, self.limit)
        overlaps = overlap_of_pairs(results, annotations, (self.order[place], annotation), kind, sizes_hw)
        near = overlaps >= _threshold(self.lowest_iou)
        annotation, place, overlaps = annotation[near], place[near], overlaps[near]
        # By place; of one detection the highest overlap first, then the later annotation.
        preference = np.lexsort((-annotation, -overlaps, place))
        self.pairs = annotation[preference], place[preference], overlaps[preference]

    @cached_property
    def boxes_xywh(self) -> np.ndarray:
        """The detections' boxes, [N 4]."""
        return boxes_of(self.results)

    @cached_property
    def truth_boxes_xywh(self) -> np.ndarray:
        """The annotations' boxes, [M 4]."""
        return boxes_of(self.annotations)

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
        """Return [M] bool: the annotations that are to be found, without other areas and what COCO ignores."""
        low, high = area_range
        return ~self.ignored & (self.truth_areas >= low) & (self.truth_areas <= high)

    def matches(self, iou: float, area_range: tuple[float, float] = ALL_AREAS) -> DetectionMatches:
        """Match at one IoU; the range of areas is in square pixels, both ends included.

        Raises:
            ValueError: the IoU is below the lowest of the parameters.
        """
        if iou < self.lowest_iou:
            raise ValueError(f"pairs are kept from IoU {self.lowest_iou} on, not {iou}")
        low, high = area_range
        is_object = self.objects(area_range)
        found, partner = self.partners(iou, is_object)
        annotation = np.full(len(self.order), -1)
        annotation[found] = partner
        is_matched = annotation >= 0
        correct = np.zeros(len(self.order), dtype=bool)
        correct[found] = is_object[partner]
        other_area = (self.areas < low) | (self.areas > high)
        ignored = (is_matched & ~correct) | (~is_matched & other_area) | (self.rank >= self.limit)
        return DetectionMatches(correct, ignored, annotation)

    def partners(self, iou: float, is_object: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the detections that are matched at one IoU, and the annotation that each is matched to.

        Args:
            iou: at least the lowest of the parameters.
            is_object: [M] bool, the annotations that are taken before all others.
        """
        annotation, place = (column[self.pairs[2] >= _threshold(iou)] for column in self.pairs[:2])
        preference = np.argsort(2 * place + ~is_object[annotation], kind="stable")  # of one detection, objects first
        annotation, place = annotation[preference], place[preference]
        taken = taken_in_turn(place, annotation, self.crowd)
        return self.order[place[taken]], annotation[taken]


def _threshold(iou: float) -> float:
    """Return the overlap from which pairs match: at IoU 1, as in pycocotools, a little less."""
    return min(iou, 1 - 1e-10)
