"""Precision and recall of each class over the confidence, at IoU 0.5 by COCO's matching.

Shape letters: N detections, K classes, S confidences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.matches import CocoMatcher

IOU = 0.5
NUM_CONFIDENCES = 1000  # from 0 to 1, as in ultralytics/yolov5 v7.0 (utils/metrics.py, ap_per_class)


@dataclass(frozen=True)
class ConfidenceCurves:
    """What is reached where the detections with at least a confidence count; NaN for a class without objects.

    A class without a detection of that confidence has precision 0.
    """

    confidences: np.ndarray  # [S]
    precision: np.ndarray  # [K S]
    recall: np.ndarray  # [K S]
    num_objects: np.ndarray  # [K]

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, [K S]."""
        return 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-16)

    @property
    def mean_f1(self) -> np.ndarray:
        """Mean F1 over the classes that have objects, [S]; NaN where no class has any."""
        present = self.num_objects > 0
        return self.f1[present].mean(axis=0) if present.any() else np.full(len(self.confidences), np.nan)


def confidence_curves(truth: dict, results: Sequence[dict]) -> ConfidenceCurves:
    """Return precision and recall of each class over the confidence.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
    """
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    labels = np.array([categories[result["category_id"]] for result in results], dtype=np.int64)
    scores = np.array([result["score"] for result in results], dtype=np.float64)
    objects = [categories[a["category_id"]] for a in truth["annotations"] if not a["iscrowd"]]
    num_objects = np.bincount(objects, minlength=len(categories))

    matches = CocoMatcher(truth, results).matches(IOU)
    confidences = np.linspace(0, 1, NUM_CONFIDENCES)
    precision, recall = np.full((2, len(categories), NUM_CONFIDENCES), np.nan)
    for label in num_objects.nonzero()[0]:
        # Strongest first, so that the detections that count at a confidence are the first ones: how many, and of these
        # how many are right [S].
        counted = (labels == label) & ~matches.ignored
        order = np.argsort(-scores[counted], kind="stable")
        found = np.searchsorted(-scores[counted][order], -confidences, side="right")
        right = np.concatenate(([0], np.cumsum(matches.correct[counted][order])))[found]
        precision[label] = right / np.maximum(found, 1)
        recall[label] = right / num_objects[label]
    return ConfidenceCurves(confidences, precision, recall, num_objects)
