"""How sure COCO's twelve numbers are: what they would be for other images of the same kind, drawn from these.

An image that is drawn twice counts twice; what is matched in it does not change. So everything is matched once, and a
resample is nothing but a weight per image, the same for all detectors that are compared (Efron, 1979; paired).

Shape letters: R resamples, I images, K categories, T IoU thresholds (10), N detections, P right detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.matches import DETECTION_LIMIT, CocoMatcher

IOUS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))  # all, small, medium, large
LIMITS = (1, 10, DETECTION_LIMIT)
RECALLS = np.linspace(0, 1, 101)  # pycocotools' own, whose 0.7 is a little more than 7 / 10


@dataclass(frozen=True)
class _Curve:
    """The detections of one area and IoU that count, by category and then by falling score."""

    image: np.ndarray  # [N] int32
    right: np.ndarray  # [P] places of the right ones among them
    category: np.ndarray  # [P] of these
    category_start: np.ndarray  # [K] place of the first detection of each category
    rank: np.ndarray  # [P] of these, in their image and category


class ResampledNumbers:
    """Gives the twelve numbers of one detector for any weights of the images.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
    """

    def __init__(self, truth: dict, results: Sequence[dict]) -> None:
        self.num_images, self.num_categories = len(truth["images"]), len(truth["categories"])
        matcher = CocoMatcher(truth, results)
        image, category = np.divmod(matcher.group, max(self.num_categories, 1))
        truth_image, truth_category = np.divmod(matcher.truth_group, max(self.num_categories, 1))
        # Ties between images as pycocotools has them: by image, the strongest first, then stable by score.
        ids = np.array([one["id"] for one in truth["images"]])
        place_of_image = np.argsort(np.argsort(ids))
        order = np.lexsort((matcher.rank, place_of_image[image], -matcher.scores, category))
        self.objects: list[np.ndarray] = []  # by area: [I K], how many there are to be found
        self.curves: list[list[_Curve]] = []  # by area and IoU
        for area_range in AREA_RANGES:
            is_object = matcher.objects(area_range)
            number = truth_image[is_object] * self.num_categories + truth_category[is_object]
            counts = np.bincount(number, minlength=self.num_images * self.num_categories)
            self.objects.append(counts.reshape(self.num_images, self.num_categories))
            curves = []
            for iou in IOUS:
                matches = matcher.matches(float(iou), area_range)
                counted = order[~matches.ignored[order]]
                right = np.flatnonzero(matches.correct[counted])
                start = np.searchsorted(category[counted], np.arange(self.num_categories))
                chosen = counted[right]
                curves.append(
                    _Curve(image[counted].astype(np.int32), right, category[chosen], start, matcher.rank[chosen])
                )
            self.curves.append(curves)

    def numbers(self, weights: np.ndarray) -> np.ndarray:
        """Return the twelve numbers, in the order of :data:`evaluation.coco.TWELVE`; NaN where nothing defines one.

        Args:
            weights: [I] int32, how often each image counts.
        """
        precisions, recalls = [], []
        for area, curves in enumerate(self.curves):
            objects = weights @ self.objects[area]  # K
            by_iou = [self._precision_and_recalls(curve, weights, objects) for curve in curves]
            precisions.append(np.array([precision for precision, _ in by_iou]))
            recalls.append(np.array([recall for _, recall in by_iou]))
        everything = precisions[0]
        ap = [_mean(everything), _mean(everything[0]), _mean(everything[5]), *map(_mean, precisions[1:])]
        ar = [*(_mean(recalls[0][:, limit]) for limit in range(3)), *(_mean(one[:, 2]) for one in recalls[1:])]
        return np.array(ap + ar)

    def _precision_and_recalls(
        self, curve: _Curve, weights: np.ndarray, objects: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the average precision [K] and the recalls within each limit [3 K], NaN where there are no objects."""
        counted = np.cumsum(weights[curve.image], dtype=np.int64)
        before = np.concatenate(([0], counted))[curve.category_start]  # K
        weight = weights[curve.image[curve.right]]  # P
        found = np.cumsum(weight)
        first = np.searchsorted(curve.category, np.arange(self.num_categories))
        found_before = np.concatenate(([0], found))[first]
        right = found - found_before[curve.category]  # P: right ones of the category so far
        precision = right / np.maximum(counted[curve.right] - before[curve.category], 1)
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
                np.bincount(curve.category, weight * (curve.rank < limit), self.num_categories) for limit in LIMITS
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
    """Return the twelve numbers [R C 12] of each detector C for the same resamples of the images.

    Args:
        detectors: of one data set.
        resamples: how many.
        seed: of the draws.
        report: is called with 1 after each of them.
    """
    rng = np.random.default_rng(seed)
    num_images = detectors[0].num_images
    found = np.empty((resamples, len(detectors), 12))
    for number in range(resamples):
        drawn = rng.integers(num_images, size=num_images)
        weights = np.bincount(drawn, minlength=num_images).astype(np.int32)
        found[number] = [detector.numbers(weights) for detector in detectors]
        report(1)
    return found
