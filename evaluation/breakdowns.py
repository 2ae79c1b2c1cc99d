"""AP and recall of groups of objects: of a size, a shape, a class, or of anything else that is known of an object.

As pycocotools does for sizes: objects outside of the group are ignored, and so is a detection that is matched to one of
them. A detection that is matched to nothing is wrong, and it counts

- in the group that its own box or class belongs to, and in no other, where a detection can be told its group
  (pycocotools' rule for sizes);
- else in every group, by the share of the objects of its class that the group has. Its precision so is the one that the
  class would have if all of its objects were found like those of the group, and groups of many and of few objects can
  be compared: the normalised precision of Hoiem, Chodpathumwan and Dai (Diagnosing Error in Object Detectors, 2012).

Shape letters: N detections, M annotations, K categories, T IoU thresholds (10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evaluation.bootstrap import RECALLS
from evaluation.matches import CocoMatcher
from evaluation.parameters import COCO_AREAS, COCO_IOUS
from utils.boxes import SIZE_NAMES

SIDE_LIMITS = (8, 16, 32, 64, 96, 128, 256, 512)  # pixels, of the square of equal area


@dataclass(frozen=True)
class Group:
    """Some of the objects, and the detections that count as wrong among them."""

    name: str
    is_member: np.ndarray  # [M] bool; crowd regions are members of nothing, whatever this says
    is_counted: np.ndarray | None = None  # [N] bool; None: a detection cannot be told its group


@dataclass(frozen=True)
class GroupNumbers:
    """What was found of a group; NaN where it has no objects."""

    objects: int
    ap: float  # mean over IoU 0.50:0.95 and the classes that the group has
    ap50: float
    ar: float  # recall with 100 detections per image and class, the mean over IoU 0.50:0.95 and classes
    found: float  # share of the group's objects that are found at IoU 0.5, whatever their classes


class GroupEvaluation:
    """Gives the numbers of any group of the objects for one detector.

    Args:
        truth: COCO's ground truth.
        matcher: of the detections.
    """

    def __init__(self, truth: dict, matcher: CocoMatcher) -> None:
        self.matcher, self.num_categories = matcher, len(truth["categories"])
        ids = np.array([image["id"] for image in truth["images"]])
        place_of_image = np.argsort(np.argsort(ids))
        # By category, the strongest first; ties as pycocotools has them.
        order = np.lexsort((matcher.rank, place_of_image[matcher.image], -matcher.scores, matcher.category))
        self.order = order[matcher.rank[order] < matcher.limit]
        self.category = matcher.category[self.order]
        self.place = np.full(len(order), -1)  # of each detection in the order, -1 beyond the limit
        self.place[self.order] = np.arange(len(self.order))
        self.first = np.searchsorted(self.category, np.arange(self.num_categories))
        self.of_category = np.bincount(matcher.truth_category[~matcher.crowd], minlength=self.num_categories)

    def numbers(self, group: Group) -> GroupNumbers:
        """Return the numbers of one group."""
        by_class, found = self.by_class(group)
        objects = self.objects(group)
        count = int(objects.sum())
        if not count:
            return GroupNumbers(0, np.nan, np.nan, np.nan, np.nan)
        ap, ap50, ar = by_class[:, objects > 0].mean(axis=1)
        return GroupNumbers(count, float(ap), float(ap50), float(ar), float(found.sum() / count))

    def objects(self, group: Group) -> np.ndarray:
        """Return the number of a group's objects of each class, [K]."""
        is_object = group.is_member & ~self.matcher.crowd
        return np.bincount(self.matcher.truth_category[is_object], minlength=self.num_categories)

    def by_class(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return AP, AP50 and AR by class [3 K], NaN for classes a group has not, and the found at IoU 0.5 [K]."""
        is_object = group.is_member & ~self.matcher.crowd
        objects = self.objects(group)
        weight = self._weight_of_wrong(group, objects)
        weight_before = np.concatenate(([0.0], np.cumsum(weight)))
        average, found = np.empty((2, len(COCO_IOUS), self.num_categories))
        for row, iou in enumerate(COCO_IOUS):
            detection, annotation = self.matcher.partners(float(iou), is_object)
            by_place = np.argsort(self.place[detection])
            matched, is_right = self.place[detection][by_place], is_object[annotation][by_place]
            right = matched[is_right]
            # Wrong up to each right one, and before each class: all that come before, without those that are matched.
            matched_before = np.concatenate(([0.0], np.cumsum(weight[matched])))
            wrong = weight_before[right] - matched_before[:-1][is_right]
            wrong_before = weight_before[self.first] - matched_before[np.searchsorted(matched, self.first)]
            average[row] = self._average_precision(right, wrong, wrong_before, objects)
            found[row] = np.bincount(self.category[right], minlength=self.num_categories)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = np.where(objects > 0, found / objects, np.nan)
        return np.array((average.mean(axis=0), average[0], recall.mean(axis=0))), found[0]

    def _weight_of_wrong(self, group: Group, objects: np.ndarray) -> np.ndarray:
        """Return how much each detection counts if it is matched to nothing, in :attr:`order`."""
        if group.is_counted is not None:
            return group.is_counted[self.order].astype(np.float64)
        return (objects / np.maximum(self.of_category, 1))[self.category]

    def _average_precision(
        self, right: np.ndarray, wrong: np.ndarray, wrong_before: np.ndarray, objects: np.ndarray
    ) -> np.ndarray:
        """Return the average precision by class [K], NaN without objects.

        Args:
            right: places in :attr:`order` of the right detections, ascending.
            wrong: how many are wrong before each of these, whatever their class.
            wrong_before: [K] and before each class.
            objects: [K] of the group.
        """
        category = self.category[right]
        first = np.searchsorted(category, np.arange(self.num_categories))
        number = np.arange(len(right)) - first[category] + 1  # right ones of the class so far
        precision = number / (number + wrong - wrong_before[category])
        # The highest precision at this recall or a higher one: a running maximum from the right within each class,
        # each of which lies above those behind it.
        lift = 2.0 * (self.num_categories - category)
        precision = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        reached, before = (
            np.searchsorted(RECALLS, count / objects[category], side="right") for count in (number, number - 1)
        )
        before[number == 1] = 0
        sums = np.bincount(category, precision * (reached - before), self.num_categories)
        return np.where(objects > 0, sums / len(RECALLS), np.nan)


def all_objects(matcher: CocoMatcher) -> Group:
    """Return the group of all objects, whose numbers are COCO's AP, AP50 and AR100."""
    return Group("all", np.ones(len(matcher.crowd), dtype=bool), np.ones(len(matcher.scores), dtype=bool))


def size_groups(matcher: CocoMatcher) -> list[Group]:
    """Return COCO's sizes, with areas at a limit in both of their groups, as pycocotools has them."""
    return [
        Group(
            name,
            (matcher.truth_areas >= low) & (matcher.truth_areas <= high),
            (matcher.areas >= low) & (matcher.areas <= high),
        )
        for name, (_, low, high) in zip(SIZE_NAMES, COCO_AREAS[1:], strict=True)
    ]


def side_groups(matcher: CocoMatcher) -> list[Group]:
    """Return groups by the square root of the area, in pixels, each from its lower limit on."""
    limits = np.array(SIDE_LIMITS, dtype=np.float64) ** 2
    names = named_bins(SIDE_LIMITS)
    return groups_between(
        names,
        np.searchsorted(limits, matcher.truth_areas, side="right"),
        np.searchsorted(limits, matcher.areas, side="right"),
    )


def named_bins(limits: Sequence[float]) -> list[str]:
    """Return the names of the bins that ascending limits make: ``below 8``, ``8 to 16``, …, ``512 and more``."""
    shown = [f"{limit:g}" for limit in limits]
    between = [f"{low} to {high}" for low, high in pairwise(shown)]
    return [f"below {shown[0]}", *between, f"{shown[-1]} and more"]


def groups_between(names: Sequence[str], of_object: np.ndarray, of_detection: np.ndarray | None = None) -> list[Group]:
    """Return the groups that numbers of groups make.

    Args:
        names: of the groups.
        of_object: [M] the group of each annotation, -1 for those that belong to none.
        of_detection: [N] the group of each detection; None where detections cannot be told theirs.
    """
    return [
        Group(name, of_object == number, None if of_detection is None else of_detection == number)
        for number, name in enumerate(names)
    ]


def broken_down(
    truth: dict, matcher: CocoMatcher, breakdowns: Mapping[str, Sequence[Group]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the numbers of all objects, of every class and of every group that has objects.

    Args:
        truth: COCO's ground truth.
        matcher: of the detections.
        breakdowns: name -> its groups.

    Returns:
        Name of a breakdown -> a row for each group, with ``group`` and the fields of :class:`GroupNumbers`.
    """
    evaluation = GroupEvaluation(truth, matcher)
    everything = all_objects(matcher)
    rows = {"all": [{"group": "all", **vars(evaluation.numbers(everything))}]}
    for name, groups in breakdowns.items():
        numbers = [(group.name, evaluation.numbers(group)) for group in groups]
        rows[name] = [{"group": group, **vars(found)} for group, found in numbers if found.objects]
    names = [str(category["name"]) for category in truth["categories"]]
    (ap, ap50, ar), found = evaluation.by_class(everything)
    rows["class"] = [
        {"group": name, "objects": int(count), "ap": ap[k], "ap50": ap50[k], "ar": ar[k], "found": found[k] / count}
        for k, (name, count) in enumerate(zip(names, evaluation.of_category, strict=True))
        if count
    ]
    return rows
