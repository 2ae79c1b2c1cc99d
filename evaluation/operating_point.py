"""Precision and recall at one confidence: which detections are right at IoU 0.5, and where the mean F1 is highest.

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
class OperatingPoint:
    """The confidence at which the mean F1 over the classes is highest, and what is reached there; -1 if undefined."""

    confidence: float
    mean_precision: float
    mean_recall: float
    precision: tuple[float, ...]  # per class; -1 for a class without objects
    recall: tuple[float, ...]


def precision_recall_at_best_f1(truth: dict, results: Sequence[dict]) -> OperatingPoint:
    """Find the confidence with the highest F1, the mean over the classes that have objects, and P and R there.

    At confidence c the detections with score >= c count. A class without a detection above the confidence has
    precision 0.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
    """
    # Results to columns; classes without an object are undefined and left out of the means.
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    labels = np.array([categories[result["category_id"]] for result in results], dtype=np.int64)
    scores = np.array([result["score"] for result in results], dtype=np.float64)
    objects = [categories[a["category_id"]] for a in truth["annotations"] if not a["iscrowd"]]
    num_objects = np.bincount(objects, minlength=len(categories))
    present = num_objects.nonzero()[0]
    nothing = tuple([-1.0] * len(categories))
    if not len(present):
        return OperatingPoint(-1.0, -1.0, -1.0, nothing, nothing)

    matches = CocoMatcher(truth, results).matches(IOU)
    confidences = np.linspace(0, 1, NUM_CONFIDENCES)
    precision, recall = np.zeros((2, len(present), NUM_CONFIDENCES))
    for row, label in enumerate(present):
        # Strongest first, so that the detections that count at a confidence are the first ones: how many, and of these
        # how many are right [S].
        counted = (labels == label) & ~matches.ignored
        order = np.argsort(-scores[counted], kind="stable")
        found = np.searchsorted(-scores[counted][order], -confidences, side="right")
        right = np.concatenate(([0], np.cumsum(matches.correct[counted][order])))[found]
        precision[row] = right / np.maximum(found, 1)
        recall[row] = right / num_objects[label]
    # One confidence for all classes: the lowest of those with the highest mean F1.
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-16)
    best = int(f1.mean(axis=0).argmax())
    by_class = np.full((2, len(categories)), -1.0)
    by_class[:, present] = precision[:, best], recall[:, best]
    return OperatingPoint(
        float(confidences[best]),
        float(precision[:, best].mean()),
        float(recall[:, best].mean()),
        tuple(by_class[0].tolist()),
        tuple(by_class[1].tolist()),
    )
