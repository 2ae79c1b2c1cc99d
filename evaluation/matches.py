"""Which detection finds which object, by COCO's rules, for all images at once and at any IoU and range of areas.

Shape letters: N detections, M annotations, P pairs of both in one image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.overlaps import areas_of, crowd_of, ignored_of, overlap_of_pairs
from evaluation.parameters import COCO_PARAMETERS, CocoParameters

ALL_AREAS = (0.0, 1e10)


@dataclass(frozen=True)
class DetectionMatches:
    """What COCO's matching says of every detection, in the order given."""

    correct: np.ndarray  # [N] bool, matched to an object
    ignored: np.ndarray  # [N] bool, neither right nor wrong: matched to what is no object here, or beyond the limit


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
        annotations, kind = truth["annotations"], parameters.kind
        sizes_hw = {one["id"]: (one["height"], one["width"]) for one in truth["images"]} if kind == "segm" else {}
        self.lowest_iou, self.limit = min(parameters.ious), parameters.limits[-1]
        self.group, self.truth_group = _groups(results, truth), _groups(annotations, truth)
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
        start = np.searchsorted(in_order, self.truth_group, side="left")
        count = np.minimum(np.searchsorted(in_order, self.truth_group, side="right") - start, self.limit)
        annotation = np.repeat(np.arange(len(annotations)), count)
        place = np.arange(len(annotation)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
        overlap = overlap_of_pairs(results, annotations, (self.order[place], annotation), kind, sizes_hw)
        near = overlap >= _threshold(self.lowest_iou)
        self.pairs = annotation[near], place[near], overlap[near]

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
        correct = np.zeros(len(self.order), dtype=bool)
        is_matched = np.zeros(len(self.order), dtype=bool)
        annotation, place, overlap = (column[self.pairs[2] >= _threshold(iou)] for column in self.pairs)
        # By place; of one detection objects first, then the highest overlap, then the later annotation.
        preference = np.lexsort((-annotation, -overlap, ~is_object[annotation], place))
        taken, last = set(), -1  # annotations that are matched, and the detection that was matched last
        rows = zip(place[preference].tolist(), annotation[preference].tolist(), strict=True)
        for position, chosen in rows:
            if position == last or chosen in taken:  # the detection has its match, or this object has a stronger one
                continue
            last = position
            is_matched[self.order[position]] = True
            correct[self.order[position]] = is_object[chosen]
            if not self.crowd[chosen]:
                taken.add(chosen)
        other_area = (self.areas < low) | (self.areas > high)
        ignored = (is_matched & ~correct) | (~is_matched & other_area) | (self.rank >= self.limit)
        return DetectionMatches(correct, ignored)


def _groups(rows: Sequence[dict], truth: dict) -> np.ndarray:
    """Return a number for the image and class of each row, [N]."""
    images = {image["id"]: number for number, image in enumerate(truth["images"])}
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    group = [images[row["image_id"]] * len(categories) + categories[row["category_id"]] for row in rows]
    return np.array(group, dtype=np.int64)


def _threshold(iou: float) -> float:
    """Return the overlap from which pairs match: at IoU 1, as in pycocotools, a little less."""
    return min(iou, 1 - 1e-10)
