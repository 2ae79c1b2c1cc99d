"""What kind of error each wrong detection is, which objects are missed, and what mending a kind would give.

The definitions are TIDE's (arXiv 2008.08115; tidecv 1.0.1, ``quantify.py``), with COCO's limit of 100 detections per
image and class and COCO's mean over the classes that have objects. A detection that COCO ignores, because it lies in a
crowd region, is no error for the average precision, but as in tidecv it has a kind, and mended it finds its object.

Shape letters: N detections, M annotations, P pairs of both in one image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.matches import DETECTION_LIMIT, CocoMatcher
from evaluation.pairs import columns, overlap, pairs_in_groups
from evaluation.working_point import average_precision

KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg")
RIGHT_IOU, BACKGROUND_IOU = 0.5, 0.1
POINTS = 101  # of recall
BLOCK = 5000  # annotations whose pairs are looked at together, for the memory


@dataclass(frozen=True)
class ErrorKinds:
    """The kind of error of every detection, in the order given, and the objects that none of them could find."""

    kind: np.ndarray  # [N] place in KINDS; -1: right, or beyond COCO's limit
    target: np.ndarray  # [N] the annotation that a mended Cls or Loc error finds; -1: none, or a stronger one does
    is_missed: np.ndarray  # [M] bool, objects that no detection finds or would find if it were mended
    is_found: np.ndarray  # [M] bool
    matcher: CocoMatcher
    correct: np.ndarray  # [N] bool
    ignored: np.ndarray  # [N] bool

    def counts(self) -> dict[str, int]:
        """Return how many errors of each kind there are."""
        return {kind: int((self.kind == number).sum()) for number, kind in enumerate(KINDS)} | {
            "Miss": int(self.is_missed.sum())
        }


def error_kinds(truth: dict, results: Sequence[dict]) -> ErrorKinds:
    """Tell the kind of every error, at IoU 0.5 and 0.1.

    Args:
        truth: COCO's ground truth.
        results: COCO's results, which name only images and categories of the ground truth.
    """
    matcher = CocoMatcher(truth, results)
    matches = matcher.matches(RIGHT_IOU)
    is_object = matcher.objects()
    is_found = np.zeros(len(is_object), dtype=bool)
    is_found[matches.annotation[matches.correct]] = True

    num_classes = max(len(truth["categories"]), 1)
    annotation, detection, ious = _near_pairs(truth, results, is_object)
    is_same = matcher.group[detection] % num_classes == matcher.truth_group[annotation] % num_classes
    same_iou, same_target = _best(annotation, detection, ious, is_same, len(matcher.group))
    other_iou, other_target = _best(annotation, detection, ious, ~is_same, len(matcher.group))
    found_iou, _ = _best(annotation, detection, ious, is_same & is_found[annotation], len(matcher.group))
    conditions = [
        matches.correct | (matcher.rank >= DETECTION_LIMIT),
        (same_iou >= BACKGROUND_IOU) & (same_iou <= RIGHT_IOU),
        other_iou >= RIGHT_IOU,
        found_iou >= RIGHT_IOU,
        np.maximum(same_iou, other_iou) <= BACKGROUND_IOU,
    ]
    places = [-1, *map(KINDS.index, ("Loc", "Cls", "Dupe", "Bkg"))]
    kind = np.select(conditions, places, KINDS.index("Both"))

    target = np.select([kind == KINDS.index("Loc"), kind == KINDS.index("Cls")], [same_target, other_target], -1)
    target[np.isin(target, np.flatnonzero(is_found))] = -1
    candidates = np.flatnonzero(target >= 0)
    strongest_first = candidates[np.lexsort((-matcher.scores[candidates], target[candidates]))]
    wanted, first = np.unique(target[strongest_first], return_index=True)
    target = np.full(len(target), -1)
    target[strongest_first[first]] = wanted
    is_wanted = np.zeros(len(is_object), dtype=bool)
    is_wanted[wanted] = True
    is_missed = is_object & ~is_found & ~is_wanted
    return ErrorKinds(kind, target, is_missed, is_found, matcher, matches.correct, matches.ignored)


def lost_ap50(found: ErrorKinds, num_classes: int) -> dict[str, float]:
    """Return what AP50 would gain if all errors of a kind were mended, and all false positives (FP) and misses (FN).

    A mended Cls or Loc error finds its object, unless a stronger one does; any other wrong detection disappears, and so
    do the objects that are missed.
    """
    truth_label = found.matcher.truth_group % max(num_classes, 1)
    label = found.matcher.group % max(num_classes, 1)
    objects = np.bincount(truth_label[found.matcher.objects()], minlength=num_classes)
    if not objects.any():
        return dict.fromkeys((*KINDS, "Miss", "FP", "FN"), 0.0)
    nothing = np.zeros(len(label), dtype=bool)

    def mean_ap(mended: np.ndarray, still_objects: np.ndarray, first: np.ndarray = nothing) -> float:
        """AP50 if some errors [N] were mended, with so many objects [K], and some detections [N] before all others."""
        right = mended & (found.target >= 0)
        counted = (~found.ignored & ~mended) | right
        of_class = np.where(right, truth_label[found.target], label)
        order = np.lexsort((-found.matcher.scores, ~first, of_class))
        order = order[counted[order]]
        of_classes = np.split(
            (found.correct | right)[order], np.searchsorted(of_class[order], np.arange(1, num_classes))
        )
        average = [
            average_precision(of_classes[number], still_objects[number], POINTS) if still_objects[number] else 0.0
            for number in objects.nonzero()[0]
        ]
        return float(np.mean(average))

    now = mean_ap(nothing, objects)
    without_missed = objects - np.bincount(truth_label[found.is_missed], minlength=num_classes)
    only_found = np.bincount(truth_label[found.is_found], minlength=num_classes)
    lost = {kind: mean_ap(found.kind == number, objects) - now for number, kind in enumerate(KINDS)}
    lost["Miss"] = mean_ap(nothing, without_missed) - now
    return {kind: max(value, 0.0) for kind, value in lost.items()} | {
        "FP": mean_ap(nothing, objects, found.correct) - now,
        "FN": mean_ap(nothing, only_found) - now,
    }


def _near_pairs(
    truth: dict, results: Sequence[dict], is_object: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs [P] of an object and a detection of any class that lie near: both places and their IoU."""
    num_classes = max(len(truth["categories"]), 1)
    group, _, boxes = columns(results, truth)
    truth_group, _, truth_boxes = columns(truth["annotations"], truth)
    order = np.argsort(group // num_classes, kind="stable")
    image = group[order] // num_classes
    objects = np.flatnonzero(is_object)
    parts = []
    for start in range(0, len(objects), BLOCK):
        block = objects[start : start + BLOCK]
        place, detection = pairs_in_groups(image, truth_group[block] // num_classes)
        annotation, detection = block[place], order[detection]
        ious = overlap(boxes[detection], truth_boxes[annotation], np.zeros(len(annotation), dtype=bool))
        near = ious >= BACKGROUND_IOU
        parts.append((annotation[near], detection[near], ious[near]))
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0)
    annotation, detection, ious = (np.concatenate(column) for column in zip(*parts, strict=True))
    return annotation, detection, ious


def _best(
    annotation: np.ndarray, detection: np.ndarray, ious: np.ndarray, chosen: np.ndarray, num_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest IoU of each detection [N] among some pairs, 0 without any, and its annotation, else -1."""
    annotation, detection, ious = annotation[chosen], detection[chosen], ious[chosen]
    order = np.lexsort((annotation, -ious, detection))
    with_any, first = np.unique(detection[order], return_index=True)
    best, target = np.zeros(num_detections), np.full(num_detections, -1)
    best[with_any], target[with_any] = ious[order][first], annotation[order][first]
    return best, target
