"""How sure COCO's numbers are: what they would be for other images of the same kind, drawn from these.

An image that is drawn twice counts twice; what is matched in it does not change. So everything is matched once, and a
resample is nothing but a weight per image, the same for all detectors that are compared (Efron, 1979; paired).

Shape letters: R resamples, I images, K categories, L limits, n numbers, N detections, P right detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.matches import CocoMatcher
from evaluation.parameters import COCO_PARAMETERS, CocoParameters

RECALLS = np.linspace(0, 1, 101)  # pycocotools' own, whose 0.7 is a little more than 7 / 10


@dataclass(frozen=True)
class _Curve:
    """What counts at one area and IoU, as places [N] of the detections that count there at any IoU."""

    right: np.ndarray  # [P] places of the right ones
    category: np.ndarray  # [P] of these
    rank: np.ndarray  # [P] of these, in their image and category
    ignored_image: np.ndarray  # [Q] int32: images of the few detections that count at another IoU only
    ignored_before_right: np.ndarray  # [P] how many of them lie before each right one
    ignored_before_category: np.ndarray  # [K] and before each category


@dataclass(frozen=True)
class _Area:
    """The detections that count at any IoU, by category and then by falling score, and what is to be found."""

    image: np.ndarray  # [N] int32
    category_start: np.ndarray  # [K] place of the first detection of each category
    objects: np.ndarray  # [I K]
    curves: tuple[_Curve, ...]  # by IoU


class ResampledNumbers:
    """Gives the numbers of one detector for any weights of the images.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
        parameters: say what is evaluated, and so which numbers there are.

    Raises:
        UserError: the key points are not COCO's.
    """

    def __init__(
        self, truth: dict, results: Sequence[dict], parameters: CocoParameters = COCO_PARAMETERS["bbox"]
    ) -> None:
        self.parameters = parameters
        self.num_images, self.num_categories = len(truth["images"]), len(truth["categories"])
        matcher = CocoMatcher(truth, results, parameters)
        # Ties between images as pycocotools has them: by image, the strongest first, then stable by score.
        ids = np.array([one["id"] for one in truth["images"]])
        place_of_image = np.argsort(np.argsort(ids))
        order = np.lexsort((matcher.rank, place_of_image[matcher.image], -matcher.scores, matcher.category))
        self.areas = [self._area(matcher, order, (low, high)) for _, low, high in parameters.areas]

    def _area(self, matcher: CocoMatcher, order: np.ndarray, area_range: tuple[float, float]) -> _Area:
        """Match at every IoU, and keep what a resample needs."""
        is_object = matcher.objects(area_range)
        objects = np.bincount(matcher.truth_group[is_object], minlength=self.num_images * self.num_categories)
        by_iou = [matcher.matches(iou, area_range) for iou in self.parameters.ious]
        kept = order[~np.all([matches.ignored for matches in by_iou], axis=0)[order]]
        categories = np.arange(self.num_categories)
        start = np.searchsorted(matcher.category[kept], categories)
        curves = []
        for matches in by_iou:
            right = np.flatnonzero(matches.correct[kept])
            ignored = np.flatnonzero(matches.ignored[kept])
            curves.append(
                _Curve(
                    right=right,
                    category=matcher.category[kept[right]],
                    rank=matcher.rank[kept[right]],
                    ignored_image=matcher.image[kept[ignored]].astype(np.int32),
                    ignored_before_right=np.searchsorted(ignored, right),
                    ignored_before_category=np.searchsorted(ignored, start),
                )
            )
        return _Area(
            image=matcher.image[kept].astype(np.int32),
            category_start=start,
            objects=objects.reshape(self.num_images, self.num_categories),
            curves=tuple(curves),
        )

    def numbers(self, weights: np.ndarray) -> np.ndarray:
        """Return the parameters' numbers [n] in their order; NaN where nothing defines one.

        Args:
            weights: [I] int32, how often each image counts.
        """
        averages, recalls = [], []  # by area, then by IoU: of the categories [K], and within each limit [L K]
        for area in self.areas:
            objects = weights @ area.objects  # K
            before = np.concatenate(([0], np.cumsum(weights[area.image])))  # N + 1: detections before each place
            by_iou = [self._precision_and_recalls(area, curve, before, weights, objects) for curve in area.curves]
            averages.append(np.array([average for average, _ in by_iou]))
            recalls.append(np.array([recall for _, recall in by_iou]))
        found = []
        for number in self.parameters.numbers:
            values = averages[number.area] if number.is_precision else recalls[number.area][:, number.limit]
            found.append(_mean(values if number.iou is None else values[number.iou]))
        return np.array(found)

    def _precision_and_recalls(
        self, area: _Area, curve: _Curve, before: np.ndarray, weights: np.ndarray, objects: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the average precision [K] and the recalls within each limit [L K], NaN where there are no objects."""
        weight = weights[area.image[curve.right]]  # P
        ignored = np.concatenate(([0], np.cumsum(weights[curve.ignored_image])))
        counted = before[curve.right + 1] - ignored[curve.ignored_before_right]  # P: up to each right one
        counted_before = before[area.category_start] - ignored[curve.ignored_before_category]  # K
        found = np.cumsum(weight)
        first = np.searchsorted(curve.category, np.arange(self.num_categories))
        found_before = np.concatenate(([0], found))[first]
        right = found - found_before[curve.category]  # P: right ones of the category so far
        precision = right / np.maximum(counted - counted_before[curve.category], 1)
        # The highest precision at this recall or a higher one: a running maximum from the right within each category,
        # each of which lies above those behind it.
        lift = 2.0 * (self.num_categories - curve.category)
        precision = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = _recalls_reached(right, objects[curve.category])
            previous = np.where(right > weight, _recalls_reached(right - weight, objects[curve.category]), 0)
            step = np.where(weight > 0, reached - previous, 0)
            sums = np.bincount(curve.category, precision * step, self.num_categories)
            average = np.where(objects > 0, sums / len(RECALLS), np.nan)
            within = [
                np.bincount(curve.category, weight * (curve.rank < limit), self.num_categories)
                for limit in self.parameters.limits
            ]
            recalls = np.where(objects > 0, np.array(within) / objects, np.nan)
        return average, recalls


def _recalls_reached(right: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return how many of the recalls 0, 0.01, … 1 so many right detections reach."""
    return np.searchsorted(RECALLS, right / objects, side="right")


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def resample(
    detectors: Sequence[ResampledNumbers],
    resamples: int,
    seed: int,
    report: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """Return the numbers [R C n] of each detector C for the same resamples of the images.

    Args:
        detectors: of one data set, with the same parameters.
        resamples: how many.
        seed: of the draws.
        report: is called with 1 after each of them.
    """
    rng = np.random.default_rng(seed)
    num_images = detectors[0].num_images
    found = np.empty((resamples, len(detectors), len(detectors[0].parameters.numbers)))
    for number in range(resamples):
        drawn = rng.integers(num_images, size=num_images)
        weights = np.bincount(drawn, minlength=num_images).astype(np.int32)
        found[number] = [detector.numbers(weights) for detector in detectors]
        report(1)
    return found
