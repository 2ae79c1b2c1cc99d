"""What is wrong with each detection and each object, after TIDE, and what AP50 would gain if it were mended.

The definitions are TIDE's (arXiv 2008.08115; tidecv 1.0.1, ``quantify.py``), with COCO's limit of 100 detections per
image and class and COCO's mean over the classes that have objects. A detection that COCO's matching at IoU 0.5 does not
call right has the first kind that holds:

1. localisation: its highest IoU with an object of its class is 0.1 to 0.5;
2. class: its IoU with an object of another class is at least 0.5;
3. duplicate: its IoU with an object of its class is above 0.5, and a stronger detection has that object;
4. background: its IoU with every object is at most 0.1;
5. both: what is left, an object of another class at 0.1 to 0.5.

A detection in a crowd region has such a kind, too, as in tidecv, though the average precision ignores it.

Shape letters: N detections, M annotations, P pairs of both in one image, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.matches import CocoMatcher
from evaluation.pairs import overlap, pairs_in_groups
from evaluation.working_point import average_precision

RIGHT_IOU, BACKGROUND_IOU = 0.5, 0.1
POINTS = 101  # of recall
DETECTIONS_PER_BLOCK = 5000  # whose pairs are looked at together: bounds the memory

CORRECT, CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, BEYOND_LIMIT = range(7)
DETECTION_KINDS = ("correct", "class", "localisation", "both", "duplicate", "background", "beyond the limit")
ERRORS = DETECTION_KINDS[CLASS:BEYOND_LIMIT]
FOUND, MISSED, EXPLAINED, CROWD = range(4)
OBJECT_KINDS = ("found", "missed", "explained", "crowd")
TIDE_KEYS = {  # what is lost by -> the name that TIDE has for it
    **dict(zip(ERRORS, ("Cls", "Loc", "Both", "Dupe", "Bkg"), strict=True)),
    "missed": "Miss",
    "false positives": "FP",
    "false negatives": "FN",
}


@dataclass(frozen=True)
class Nearest:
    """The object with the highest IoU, of each detection."""

    annotation: np.ndarray  # [N] int64 row, the first of several; -1 where none overlaps
    iou: np.ndarray  # [N] float64


@dataclass(frozen=True)
class ErrorKinds:
    """The kind of every detection and annotation of one detector, in the order given."""

    matcher: CocoMatcher
    detection: np.ndarray  # [N] int64, index into DETECTION_KINDS
    ignored: np.ndarray  # [N] bool, neither right nor wrong for AP: beyond the limit, or matched to a crowd region
    matched: np.ndarray  # [N] int64, row of the annotation that a detection is matched to, -1 where none
    target: np.ndarray  # [N] int64, row of the object that a mended error finds; -1: none, or a stronger one does
    annotation: np.ndarray  # [M] int64, index into OBJECT_KINDS; explained: not found, but the target of an error
    same_class: Nearest
    other_class: Nearest
    any_overlap: np.ndarray  # [N] float64, highest COCO overlap with any annotation of any class, crowd regions too
    nearest_detection: np.ndarray  # [M] float64, highest IoU of each annotation with any detection of any class

    def counts(self) -> dict[str, int]:
        """Return how many errors of each kind there are, ``missed`` objects last."""
        numbers = np.bincount(self.detection, minlength=len(DETECTION_KINDS))
        counts = {name: int(numbers[DETECTION_KINDS.index(name)]) for name in ERRORS}
        return counts | {"missed": int((self.annotation == MISSED).sum())}


def error_kinds(matcher: CocoMatcher) -> ErrorKinds:
    """Tell the kind of every detection and of every annotation."""
    matches = matcher.matches(RIGHT_IOU)
    same, other, any_overlap, nearest_detection = _nearest(matcher)
    rules = (
        (CORRECT, matches.correct),
        (BEYOND_LIMIT, matcher.rank >= matcher.limit),
        (LOCALISATION, (same.iou >= BACKGROUND_IOU) & (same.iou <= RIGHT_IOU)),
        (CLASS, other.iou >= RIGHT_IOU),
        (DUPLICATE, same.iou > RIGHT_IOU),
        (BACKGROUND, other.iou <= BACKGROUND_IOU),
    )
    kinds = np.select([holds for _, holds in rules], [kind for kind, _ in rules], default=BOTH)

    objects = np.where(matcher.crowd, CROWD, MISSED)
    objects[matches.annotation[matches.correct]] = FOUND
    wanted = np.select([kinds == LOCALISATION, kinds == CLASS], [same.annotation, other.annotation], -1)
    wanted[np.isin(wanted, np.flatnonzero(objects == FOUND))] = -1
    target = _strongest_only(wanted, matcher.scores)
    objects[target[target >= 0]] = EXPLAINED
    return ErrorKinds(
        matcher,
        kinds,
        matches.ignored,
        matches.annotation,
        target,
        objects,
        same,
        other,
        any_overlap,
        nearest_detection,
    )


def _strongest_only(wanted: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the annotations [N] that detections want, -1 where a stronger detection wants it, too."""
    candidates = np.flatnonzero(wanted >= 0)
    strongest_first = candidates[np.lexsort((-scores[candidates], wanted[candidates]))]
    annotation, first = np.unique(wanted[strongest_first], return_index=True)
    target = np.full(len(wanted), -1)
    target[strongest_first[first]] = annotation
    return target


def lost_ap50(found: ErrorKinds) -> dict[str, float]:
    """Return what AP50 would gain if all errors of a kind were mended, and all false positives and all misses.

    A mended error of class or localisation finds its object, unless a stronger one does; any other wrong detection
    disappears, and so do the objects that are missed.
    """
    matcher = found.matcher
    num_classes = matcher.num_categories
    truth_label, label = matcher.truth_category, matcher.category
    objects = np.bincount(truth_label[~matcher.crowd], minlength=num_classes)
    if not objects.any():
        return dict.fromkeys(TIDE_KEYS, 0.0)
    nothing, is_correct = np.zeros(len(label), dtype=bool), found.detection == CORRECT

    def mean_ap(mended: np.ndarray, still_objects: np.ndarray, first: np.ndarray = nothing) -> float:
        """AP50 if some errors [N] were mended, with so many objects [K], and some detections [N] before all others."""
        right = mended & (found.target >= 0)
        counted = (~found.ignored & ~mended) | right
        of_class = np.where(right, truth_label[found.target], label)
        order = np.lexsort((-matcher.scores, ~first, of_class))
        order = order[counted[order]]
        of_classes = np.split((is_correct | right)[order], np.searchsorted(of_class[order], np.arange(1, num_classes)))
        average = [
            average_precision(of_classes[number], still_objects[number], POINTS) if still_objects[number] else 0.0
            for number in objects.nonzero()[0]
        ]
        return float(np.mean(average))

    now = mean_ap(nothing, objects)
    without_missed = objects - np.bincount(truth_label[found.annotation == MISSED], minlength=num_classes)
    only_found = np.bincount(truth_label[found.annotation == FOUND], minlength=num_classes)
    lost = {name: mean_ap(found.detection == DETECTION_KINDS.index(name), objects) - now for name in ERRORS}
    lost["missed"] = mean_ap(nothing, without_missed) - now
    return {name: max(value, 0.0) for name, value in lost.items()} | {
        "false positives": mean_ap(nothing, objects, is_correct) - now,
        "false negatives": mean_ap(nothing, only_found) - now,
    }


def _nearest(matcher: CocoMatcher) -> tuple[Nearest, Nearest, np.ndarray, np.ndarray]:
    """Return the nearest annotation of a detection's class and of the others, and what overlaps it and what it meets.

    The last two are those of :class:`ErrorKinds`.
    """
    num_detections, num_annotations = len(matcher.scores), len(matcher.crowd)
    annotation = np.full((2, num_detections), -1)
    iou = np.zeros((2, num_detections))
    any_overlap, nearest_detection = np.zeros(num_detections), np.zeros(num_annotations)
    for detections, truths in _pairs_of_images(matcher):
        crowd = matcher.crowd[truths]
        ious = overlap(matcher.boxes_xywh[detections], matcher.truth_boxes_xywh[truths], crowd)
        np.maximum.at(any_overlap, detections, ious)
        is_other = matcher.group[detections] != matcher.truth_group[truths]
        for row, chosen in enumerate((~is_other & ~crowd, is_other & ~crowd)):
            chosen &= ious > 0
            which, value = detections[chosen], ious[chosen]
            np.maximum.at(iou[row], which, value)
            best = value == iou[row][which]
            # Written from the last to the first, so that the first of several stays.
            annotation[row][which[best][::-1]] = truths[chosen][best][::-1]
        np.maximum.at(nearest_detection, truths[~crowd], ious[~crowd])
    return Nearest(annotation[0], iou[0]), Nearest(annotation[1], iou[1]), any_overlap, nearest_detection


def _pairs_of_images(matcher: CocoMatcher) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every detection with each annotation of its image, whatever the classes, as pairs [P] and [P]; in blocks.

    All pairs of a detection are in one block, its annotations in the order given.
    """
    by_image = np.argsort(matcher.truth_image, kind="stable")
    for start in range(0, len(matcher.image), DETECTIONS_PER_BLOCK):
        images = matcher.image[start : start + DETECTIONS_PER_BLOCK]
        detection, place = pairs_in_groups(matcher.truth_image[by_image], images)
        yield start + detection, by_image[place]
