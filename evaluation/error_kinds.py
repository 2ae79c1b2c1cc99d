"""What is wrong with each detection and each object, after TIDE (arXiv 2008.08115).

A detection is matched as COCO does at IoU 0.5. What is then neither right nor ignored has the first kind that holds, in
the order in which tidecv 1.0.1 and hotcoco ask:

1. localisation: its highest IoU with an object of its class is 0.1 to 0.5;
2. class: its IoU with an object of another class is at least 0.5;
3. duplicate: its IoU with an object of its class is above 0.5, and a stronger detection has that object;
4. background: its IoU with every object is at most 0.1;
5. both: what is left, an object of another class at 0.1 to 0.5.

Shape letters: N detections, M annotations, P pairs of both in one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.matches import CocoMatcher, overlaps

RIGHT_IOU, BACKGROUND_IOU = 0.5, 0.1
PAIRS_PER_BLOCK = 1 << 19  # measured at once: bounds the memory

CORRECT, CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
DETECTION_KINDS = ("correct", "class", "localisation", "both", "duplicate", "background", "ignored")
ERRORS = DETECTION_KINDS[CLASS:IGNORED]
FOUND, MISSED, EXPLAINED, CROWD = range(4)
OBJECT_KINDS = ("found", "missed", "explained", "crowd")


@dataclass(frozen=True)
class Nearest:
    """The non-crowd annotation with the highest IoU, of each detection."""

    annotation: np.ndarray  # [N] int64 row, the first of several; -1 where none overlaps
    iou: np.ndarray  # [N] float64


@dataclass(frozen=True)
class ErrorKinds:
    """The kind of every detection and annotation, in the order given."""

    detection: np.ndarray  # [N] int64, index into DETECTION_KINDS
    annotation: np.ndarray  # [M] int64, index into OBJECT_KINDS; explained: not found, but named by an error of class
    # or localisation, which would find it if mended; TIDE counts as missed only what no detection explains
    matched: np.ndarray  # [N] int64, row of the annotation that a detection is matched to, -1 where none
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
    """Tell the kind of every detection and of every annotation.

    Args:
        matcher: of the detections; like there, those beyond the 100 strongest of an image and class are ignored.
    """
    matches = matcher.matches(RIGHT_IOU)
    same, other, any_overlap, nearest_detection = _nearest(matcher)
    wrong = ~matches.correct & ~matches.ignored
    rules = (
        (CORRECT, matches.correct),
        (IGNORED, matches.ignored),
        (LOCALISATION, (same.iou >= BACKGROUND_IOU) & (same.iou <= RIGHT_IOU)),
        (CLASS, other.iou >= RIGHT_IOU),
        (DUPLICATE, same.iou > RIGHT_IOU),
        (BACKGROUND, other.iou <= BACKGROUND_IOU),
    )
    kinds = np.select([holds for _, holds in rules], [kind for kind, _ in rules], default=BOTH)

    objects = np.where(matcher.crowd, CROWD, MISSED)
    for kind, nearest in ((LOCALISATION, same), (CLASS, other)):
        named = nearest.annotation[wrong & (kinds == kind)]
        objects[named[named >= 0]] = EXPLAINED
    objects[matches.annotation[matches.correct]] = FOUND
    return ErrorKinds(kinds, objects, matches.annotation, same, other, any_overlap, nearest_detection)


def _nearest(matcher: CocoMatcher) -> tuple[Nearest, Nearest, np.ndarray, np.ndarray]:
    """Return the nearest annotation of a detection's class and of the others, and what overlaps it and what it meets.

    See :class:`ErrorKinds` for the last two.
    """
    num_detections, num_annotations = len(matcher.scores), len(matcher.crowd)
    annotation = np.full((2, num_detections), -1)
    iou = np.zeros((2, num_detections))
    any_overlap, nearest_detection = np.zeros(num_detections), np.zeros(num_annotations)
    for detections, truths in _pairs_of_images(matcher):
        crowd = matcher.crowd[truths]
        overlap = overlaps(matcher.boxes_xywh[detections], matcher.truth_boxes_xywh[truths], crowd)
        np.maximum.at(any_overlap, detections, overlap)
        is_other = matcher.group[detections] != matcher.truth_group[truths]
        for row, chosen in enumerate((~is_other & ~crowd, is_other & ~crowd)):
            chosen &= overlap > 0
            which, value = detections[chosen], overlap[chosen]
            np.maximum.at(iou[row], which, value)
            best = value == iou[row][which]
            # Written from the last to the first, so that the first of several stays.
            annotation[row][which[best][::-1]] = truths[chosen][best][::-1]
        np.maximum.at(nearest_detection, truths[~crowd], overlap[~crowd])
    return Nearest(annotation[0], iou[0]), Nearest(annotation[1], iou[1]), any_overlap, nearest_detection


def _pairs_of_images(matcher: CocoMatcher) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every detection with each annotation of its image, whatever the classes, as pairs [P] and [P]; in blocks.

    All pairs of a detection are in one block, its annotations in the order given.
    """
    image, truth_image = matcher.image, matcher.truth_image
    by_image = np.argsort(truth_image, kind="stable")
    start = np.searchsorted(truth_image[by_image], image, side="left")
    count = np.searchsorted(truth_image[by_image], image, side="right") - start
    pairs_until = np.cumsum(count)
    first = 0
    while first < len(image):
        before = pairs_until[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(pairs_until, before + PAIRS_PER_BLOCK, side="right")))
        block = count[first:stop]
        detections = np.repeat(np.arange(first, stop), block)
        within = np.arange(len(detections)) - np.repeat(np.cumsum(block) - block, block)
        yield detections, by_image[np.repeat(start[first:stop], block) + within]
        first = stop
