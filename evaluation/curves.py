"""Precision, recall and F1 over the confidence, precision over recall, and how far the confidence can be trusted.

Shape letters: N detections, K classes, S confidences, R recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.coco import run_hotcoco
from evaluation.confidence_curves import ConfidenceCurves, confidence_curves

RECALLS = np.linspace(0, 1, 101)  # COCO's


@dataclass(frozen=True)
class Curves:
    """All curves of one detector at IoU 0.5."""

    names: tuple[str, ...]  # of the K classes
    by_confidence: ConfidenceCurves
    precision_at_recall: np.ndarray  # [K R] COCO's: the highest at this recall or a higher one; NaN without objects
    calibration_error: float | None  # expected: mean distance of score and precision; None without detections
    calibration_bins: tuple[dict[str, float | None], ...]  # of the score, ten of one width

    @property
    def present(self) -> np.ndarray:
        """The numbers of the classes that have objects."""
        return self.by_confidence.num_objects.nonzero()[0]

    def best_thresholds(self) -> list[dict[str, Any]]:
        """Return for all classes and for each the confidence with the highest F1, and what is reached there."""
        curves = self.by_confidence
        undefined: dict[str, float | None] = dict.fromkeys(("confidence", "precision", "recall", "f1"))
        of_all = _at_best(curves, curves.mean_f1, slice(None)) if len(self.present) else undefined
        of_classes = [
            _at_best(curves, curves.f1[number], number) if curves.num_objects[number] else undefined
            for number in range(len(self.names))
        ]
        rows = zip(("all", *self.names), (of_all, *of_classes), strict=True)
        return [{"name": name, **numbers} for name, numbers in rows]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, rounded to six digits; None where nothing defines a number."""
        curves = self.by_confidence
        return {
            "iou": 0.5,
            "confidences": _plain(curves.confidences),
            "recalls": _plain(RECALLS),
            "mean": {
                "precision": _plain(mean_of_classes(curves.precision)),
                "recall": _plain(mean_of_classes(curves.recall)),
                "f1": _plain(curves.mean_f1),
                "precision_at_recall": _plain(mean_of_classes(self.precision_at_recall)),
            },
            "classes": [
                {
                    "name": name,
                    "precision": _plain(curves.precision[number]),
                    "recall": _plain(curves.recall[number]),
                    "f1": _plain(curves.f1[number]),
                    "precision_at_recall": _plain(self.precision_at_recall[number]),
                }
                for number, name in enumerate(self.names)
            ],
        }


def curves_of(truth: dict, results: Sequence[dict]) -> Curves:
    """Return all curves of one detector.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
    """
    names = tuple(str(category["name"]) for category in truth["categories"])
    by_confidence = confidence_curves(truth, results)
    if not by_confidence.num_objects.any() or not results:
        at_recall = np.where(by_confidence.num_objects[:, None] > 0, np.zeros(len(RECALLS)), np.nan)
        return Curves(names, by_confidence, at_recall, None, ())
    evaluation = run_hotcoco(truth, results)
    evaluation.accumulate()
    arrays = evaluation.eval
    assert arrays is not None  # it is None only before accumulate
    ids = [category["id"] for category in truth["categories"]]
    place = np.searchsorted(sorted(ids), ids)  # hotcoco's classes are in the order of their ids
    at_recall = np.asarray(arrays["precision"])[0, :, place, 0, -1]  # K R
    calibration = evaluation.calibration()
    bins = tuple(
        {
            "from": one["bin_lower"],
            "to": one["bin_upper"],
            "detections": one["count"],
            "mean_score": one["avg_confidence"] if one["count"] else None,
            "precision": one["avg_accuracy"] if one["count"] else None,
        }
        for one in calibration["bins"]
    )
    error = calibration["ece"] if calibration["num_detections"] else None
    return Curves(names, by_confidence, np.where(at_recall < 0, np.nan, at_recall), error, bins)


def mean_of_classes(values: np.ndarray) -> np.ndarray:
    """Return the mean [S] of [K S] over the classes with objects, whose values are not NaN; NaN without any."""
    defined = values[~np.isnan(values).any(axis=1)]
    return defined.mean(axis=0) if len(defined) else np.full(values.shape[1], np.nan)


def _at_best(curves: ConfidenceCurves, f1: np.ndarray, of: int | slice) -> dict[str, float | None]:
    best = int(f1.argmax())
    precision, recall = curves.precision[of, best], curves.recall[of, best]
    return {
        "confidence": float(curves.confidences[best]),
        "precision": float(np.nanmean(precision)),
        "recall": float(np.nanmean(recall)),
        "f1": float(f1[best]),
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.round(6).tolist()]
