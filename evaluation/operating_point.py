"""Precision and recall at one confidence: which detections are right at IoU 0.5, and where the mean F1 is highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.confidence_curves import confidence_curves


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
    curves = confidence_curves(truth, results)
    present = curves.num_objects.nonzero()[0]
    nothing = tuple([-1.0] * len(curves.num_objects))
    if not len(present):
        return OperatingPoint(-1.0, -1.0, -1.0, nothing, nothing)
    best = int(curves.mean_f1.argmax())  # the lowest of several
    precision, recall = curves.precision[:, best], curves.recall[:, best]
    return OperatingPoint(
        float(curves.confidences[best]),
        float(precision[present].mean()),
        float(recall[present].mean()),
        tuple(np.where(np.isnan(precision), -1.0, precision).tolist()),
        tuple(np.where(np.isnan(recall), -1.0, recall).tolist()),
    )
