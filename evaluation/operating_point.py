"""Precision and recall at one confidence: which detections are right at IoU 0.5, and where the mean F1 is highest.

Shape letters: N detections, M annotations, P pairs of both in one image and class, K classes, S confidences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU = 0.5
DETECTION_LIMIT = 100  # strongest detections per image and class, as in COCO
NUM_CONFIDENCES = 1000  # from 0 to 1, as in ultralytics/yolov5 v7.0 (utils/metrics.py, ap_per_class)


@dataclass(frozen=True)
class OperatingPoint:
    """The confidence at which the mean F1 over the classes is highest, and what is reached there; -1 if undefined."""

    confidence: float
    mean_precision: float
    mean_recall: float
    precision: tuple[float, ...]  # per class; -1 for a class without objects
    recall: tuple[float, ...]


@dataclass(frozen=True)
class DetectionMatches:
    """What COCO's matching at IoU 0.5 says of every detection, in the order given."""

    correct: np.ndarray  # [N] bool, matched to an object
    ignored: np.ndarray  # [N] bool, neither right nor wrong: matched to a crowd region, or beyond DETECTION_LIMIT


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

    matches = match_at_half(truth, results)
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


def match_at_half(truth: dict, results: Sequence[dict]) -> DetectionMatches:
    """Match detections to objects as pycocotools does at IoU 0.5, without a loop over images.

    The strongest detection of an image and class chooses first; it takes the free object with the highest IoU (the
    later annotation of two equal ones), and a crowd region, which any number may take, only if no object is left.
    """
    correct = np.zeros(len(results), dtype=bool)
    ignored = np.zeros(len(results), dtype=bool)
    annotations = truth["annotations"]
    if not len(results) or not annotations:
        return DetectionMatches(correct, ignored)
    group, scores, boxes = _columns(results, truth)
    truth_group, _, truth_boxes = _columns(annotations, truth)
    crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)

    order = np.lexsort((-scores, group))  # by image and class, the strongest first, ties in the order given
    sorted_group = group[order]
    first = np.searchsorted(sorted_group, sorted_group, side="left")  # [N] where the group of each begins
    ignored[order] = np.arange(len(order)) - first >= DETECTION_LIMIT
    # Every annotation [M] with each of the detections of its image and class, as pairs [P]: the annotation, and the
    # detection's rank, its place in ``order``.
    start = np.searchsorted(sorted_group, truth_group, side="left")
    count = np.minimum(np.searchsorted(sorted_group, truth_group, side="right") - start, DETECTION_LIMIT)
    annotation = np.repeat(np.arange(len(annotations)), count)
    rank = np.arange(len(annotation)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)

    overlap = _overlap(boxes[order[rank]], truth_boxes[annotation], crowd[annotation])
    near = overlap >= IOU
    annotation, rank, overlap = annotation[near], rank[near], overlap[near]
    # By rank; of one detection objects before crowd regions, then the highest overlap, then the later annotation.
    preference = np.lexsort((-annotation, -overlap, crowd[annotation], rank))
    taken, last = set(), -1  # annotations that are matched, and the detection that was matched last
    for position, chosen in zip(rank[preference].tolist(), annotation[preference].tolist(), strict=True):
        if position == last or chosen in taken:  # the detection has its match, or this object has a stronger one
            continue
        last = position
        if crowd[chosen]:
            ignored[order[position]] = True
        else:
            taken.add(chosen)
            correct[order[position]] = True
    return DetectionMatches(correct, ignored)


def _columns(rows: Sequence[dict], truth: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row a number for its image and class [N], its score [N] and its box xywh [N 4]."""
    images = {image["id"]: number for number, image in enumerate(truth["images"])}
    categories = {category["id"]: number for number, category in enumerate(truth["categories"])}
    group = [images[row["image_id"]] * len(categories) + categories[row["category_id"]] for row in rows]
    scores = [row.get("score", 0.0) for row in rows]
    return np.array(group), np.array(scores), np.array([row["bbox"] for row in rows], dtype=np.float64)


def _overlap(boxes: np.ndarray, truth_boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return COCO's overlap of pairs of xywh boxes, [P]: IoU, but over the detection's own area for a crowd region."""
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], truth_boxes[:, :2] + truth_boxes[:, 2:])
    size = np.maximum(far - np.maximum(boxes[:, :2], truth_boxes[:, :2]), 0)
    intersection = size[:, 0] * size[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + truth_boxes[:, 2] * truth_boxes[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
