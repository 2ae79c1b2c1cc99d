"""What a detector does at one confidence and IoU, and its average precision there, as ``darknet detector map`` has it.

Darknet's rule (``src/detector.c``, ``validate_detector_map``): a detection means the object of its class with the
highest IoU, if that lies above the threshold; the strongest detection that means an object finds it, all others are
wrong. One that means no object and lies in a crowd region of its class counts for nothing, as Darknet's detections of
"difficult" objects.

Darknet's own TP and FP are fewer and more: it goes through the detections in the order of its NMS, not by confidence,
so that one listed earlier takes the object even where its confidence is too low to be counted. Its average precisions
are by confidence, as here.

Shape letters: N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.pairs import columns, overlap, pairs_in_groups


@dataclass(frozen=True)
class PointCounts:
    """How many detections are right and wrong; what nothing defines is None."""

    true_positives: int
    false_positives: int
    false_negatives: int
    iou_sum: float  # of the true positives

    @property
    def precision(self) -> float | None:
        """Share of the detections that are right."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of the objects that are found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU of the true positives."""
        return _ratio(self.iou_sum, self.true_positives)

    @property
    def average_iou(self) -> float | None:
        """Darknet's "average IoU": over all detections, a wrong one counts as 0."""
        return _ratio(self.iou_sum, self.true_positives + self.false_positives)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return {
            "tp": self.true_positives,
            "fp": self.false_positives,
            "fn": self.false_negatives,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "mean_iou": self.mean_iou,
            "average_iou": self.average_iou,
        }


@dataclass(frozen=True)
class WorkingPoint:
    """What counts above one confidence and IoU; the average precisions are over all confidences."""

    confidence: float
    iou: float
    points: int  # of recall that the average precision is over; 0: the area under the curve
    names: tuple[str, ...]  # of the classes; the tuples below have the same order
    of_class: tuple[PointCounts, ...]
    ap: tuple[float | None, ...]  # None: no object of the class

    @property
    def of_all(self) -> PointCounts:
        """The sums over the classes."""
        return PointCounts(
            sum(one.true_positives for one in self.of_class),
            sum(one.false_positives for one in self.of_class),
            sum(one.false_negatives for one in self.of_class),
            sum(one.iou_sum for one in self.of_class),
        )

    @property
    def mean_ap(self) -> float | None:
        """Mean over the classes that have objects."""
        defined = [ap for ap in self.ap if ap is not None]
        return _ratio(sum(defined), len(defined))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        rows = zip(self.names, self.of_class, self.ap, strict=True)
        return {
            "confidence": self.confidence,
            "iou": self.iou,
            "points": self.points,
            "map": self.mean_ap,
            **self.of_all.to_dict(),
            "classes": [{"name": name, "ap": ap, **counts.to_dict()} for name, counts, ap in rows],
        }

    def lines(self) -> list[str]:
        """Return the lines that ``darknet detector map`` prints, "-" for what is undefined; more stands behind them."""
        lines = []
        for number, (name, one, ap) in enumerate(zip(self.names, self.of_class, self.ap, strict=True)):
            counts = f"(TP = {one.true_positives}, FP = {one.false_positives})"
            rates = f"precision = {_shown(one.precision)}, recall = {_shown(one.recall)}, F1-score = {_shown(one.f1)}"
            more = f"FN = {one.false_negatives}, {rates}, mean IoU = {_percent(one.mean_iou)}"
            lines.append(f"class_id = {number}, name = {name}, ap = {_percent(ap, '')}   \t {counts} \t {more}")
        found, at = self.of_all, f" for conf_thresh = {self.confidence:.2f}, "
        rates = f"precision = {_shown(found.precision)}, recall = {_shown(found.recall)}, F1-score = {_shown(found.f1)}"
        counts = f"TP = {found.true_positives}, FP = {found.false_positives}, FN = {found.false_negatives}"
        points = f"used {self.points} Recall-points" if self.points else "used Area-Under-Curve for each unique Recall"
        value = "-" if self.mean_ap is None else f"{self.mean_ap:f}, or {self.mean_ap:.2%}".replace("%", " %")
        lines += [
            "",
            f"{at}{rates} ",
            f"{at}{counts}, average IoU = {_percent(found.average_iou)} ",
            f"{at}mean IoU of the true positives = {_percent(found.mean_iou)} ",
            "",
            f" IoU threshold = {100 * self.iou:2.0f} %, {points} ",
            f" mean average precision (mAP@{self.iou:.2f}) = {value} ",
        ]
        without = self.ap.count(None)
        if without and self.mean_ap is not None:
            darknet = self.mean_ap * (1 - without / len(self.ap))
            lines.append(f" (over the classes with objects; Darknet counts the {without} others as 0: {darknet:f})")
        return lines


def working_point(truth: dict, results: Sequence[dict], confidence: float, iou: float, points: int = 0) -> WorkingPoint:
    """Count what is right above a confidence and an IoU, and find the average precision of each class at this IoU.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
        confidence: what has a higher score counts.
        iou: what has a higher IoU with an object of its class may find it.
        points: of recall that the average precision is over, 11 as in VOC 2007 or 101 as in COCO; 0: the area under
            the curve, as in VOC from 2010 on.
    """
    num_classes = len(truth["categories"])
    group, scores, _ = columns(results, truth)
    found = darknet_matches(truth, results, iou)
    of_objects, _, _ = columns([one for one in truth["annotations"] if not one["iscrowd"]], truth)
    num_objects = np.bincount(of_objects % max(num_classes, 1), minlength=num_classes)
    label = group % max(num_classes, 1)
    counts, average_precisions = [], []
    for number, objects in enumerate(num_objects.tolist()):
        counted = (label == number) & ~found.ignored
        correct, ious = found.correct[counted], found.iou[counted]
        above = scores[counted] > confidence
        right = int((correct & above).sum())
        iou_sum = float(ious[correct & above].sum())
        counts.append(PointCounts(right, int(above.sum()) - right, objects - right, iou_sum))
        in_order = correct[np.argsort(-scores[counted], kind="stable")]
        average_precisions.append(average_precision(in_order, objects, points) if objects else None)
    names = tuple(str(category["name"]) for category in truth["categories"])
    return WorkingPoint(confidence, iou, points, names, tuple(counts), tuple(average_precisions))


@dataclass(frozen=True)
class DarknetMatches:
    """What Darknet's rule says of every detection, in the order given."""

    correct: np.ndarray  # [N] bool
    ignored: np.ndarray  # [N] bool, wrong but in a crowd region
    iou: np.ndarray  # [N] with the object that it means, 0 where it means none


def darknet_matches(truth: dict, results: Sequence[dict], iou: float) -> DarknetMatches:
    """Match by Darknet's rule; the arguments are those of :func:`working_point`."""
    annotations = truth["annotations"]
    group, scores, boxes = columns(results, truth)
    truth_group, _, truth_boxes = columns(annotations, truth)
    crowd = np.array([one["iscrowd"] for one in annotations], dtype=bool)
    order = np.lexsort((-scores, group))  # by image and class, the strongest first, ties as given
    annotation, place = pairs_in_groups(group[order], truth_group)
    ious = overlap(boxes[order[place]], truth_boxes[annotation], crowd[annotation])
    near = ious > iou
    annotation, place, ious = annotation[near], place[near], ious[near]
    in_crowd = np.zeros(len(order), dtype=bool)
    in_crowd[order[place[crowd[annotation]]]] = True
    is_object = ~crowd[annotation]
    annotation, place, ious = annotation[is_object], place[is_object], ious[is_object]

    # The object that each detection means: the one with the highest IoU, the earlier one of two.
    best = np.lexsort((annotation, -ious, place))
    meant_place, first = np.unique(place[best], return_index=True)
    meant, meant_iou = annotation[best][first], ious[best][first]
    # Of the detections that mean an object the first place finds it: the strongest.
    _, finder = np.unique(meant, return_index=True)
    correct, of_iou = np.zeros(len(order), dtype=bool), np.zeros(len(order))
    correct[order[meant_place[finder]]] = True
    of_iou[order[meant_place]] = meant_iou
    means_nothing = np.ones(len(order), dtype=bool)
    means_nothing[order[meant_place]] = False
    return DarknetMatches(correct, in_crowd & means_nothing, of_iou)


def average_precision(correct: np.ndarray, num_objects: int, points: int) -> float:
    """Return the average precision of one class.

    Args:
        correct: [N] bool, of its detections, the strongest first.
        num_objects: of the class, at least 1.
        points: as in :func:`working_point`.
    """
    found = np.cumsum(correct)
    recall = found / num_objects
    precision = found / np.arange(1, len(correct) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the highest at this recall or a higher one
    if not points:
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))
    reached = np.searchsorted(recall, np.arange(points) / (points - 1), side="left")
    return float(np.append(precision, 0.0)[reached].sum() / points)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None, space: str = " ") -> str:
    return "-" if value is None else f"{100 * value:.2f}{space}%"
