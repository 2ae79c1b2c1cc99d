"""Annotations that are probably wrong, as detectors see them: candidates for a second look, not verdicts.

- ``unlabelled``: a confident detection whose overlap with every annotation of any class, crowd regions included, is
  below 0.1;
- ``wrong class``: a confident detection of another class on an object (IoU 0.5 at least) that no detection of its own
  class finds with this confidence;
- ``never found``: an object that no detection of any class and score touches with IoU 0.1; with several detectors, none
  of any of them.

A detection is confident from the score of the highest F1 (IoU 0.5) of its class on, and of all classes taken together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.error_kinds import BACKGROUND_IOU, CLASS, CORRECT, RIGHT_IOU, ErrorKinds
from evaluation.pairs import overlap

KINDS = ("unlabelled", "wrong class", "never found")


@dataclass(frozen=True)
class Suspicion:
    """One annotation, or a place without one, that deserves a look."""

    kind: str  # one of KINDS
    image: int  # index in the ground truth
    annotation: int | None  # row in the ground truth; None where there is none
    category: int | None  # index of the class that the detectors see; None where they see nothing
    box_xywh: tuple[float, ...]  # original pixels; the annotation's where there is one
    score: float | None  # the highest of the detections
    detectors: tuple[str, ...]  # those that agree


def confident_scores(detector: ErrorKinds) -> np.ndarray:
    """Return the score from which on a detection of each class is confident, [K].

    It is the score of the highest F1 at IoU 0.5, of the class or of all classes together, whichever is higher.
    """
    matcher = detector.matcher
    counted = ~detector.ignored
    right = detector.detection == CORRECT
    is_object = ~matcher.crowd
    of_all = _best_f1_score(matcher.scores[counted], right[counted], int(is_object.sum()))
    scores = np.full(matcher.num_categories, of_all)
    objects = np.bincount(matcher.truth_category[is_object], minlength=matcher.num_categories)
    for category in np.flatnonzero(objects):
        chosen = counted & (matcher.category == category)
        scores[category] = max(of_all, _best_f1_score(matcher.scores[chosen], right[chosen], int(objects[category])))
    return scores


def _best_f1_score(scores: np.ndarray, right: np.ndarray, objects: int) -> float:
    """Return the highest of the scores with the best F1; 0 where nothing is right."""
    if not right.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + objects)
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    return float(scores[order][np.argmax(np.where(last_of_equal, f1, -1))])


def suspicious_labels(detectors: Mapping[str, ErrorKinds]) -> list[Suspicion]:
    """Return what deserves a look, by kind; first what most detectors agree on, then by score, or the largest objects.

    Args:
        detectors: by name, of one ground truth; at least one.
    """
    first = next(iter(detectors.values())).matcher
    found: list[Suspicion] = []
    seen: dict[str, list[tuple[float, str, int]]] = {"unlabelled": [], "wrong class": []}  # score, detector, its row
    for name, detector in detectors.items():
        for kind, rows in zip(seen, _confident_errors(detector), strict=True):
            seen[kind] += [(float(detector.matcher.scores[row]), name, int(row)) for row in rows]
    for sightings in seen.values():
        sightings.sort(key=lambda one: (-one[0], one[1], one[2]))
    found += _by_agreement(_unlabelled(detectors, seen["unlabelled"]))
    found += _by_agreement(_wrong_class(detectors, seen["wrong class"]))
    nobody = ~first.crowd & np.all([one.nearest_detection < BACKGROUND_IOU for one in detectors.values()], axis=0)
    rows = np.flatnonzero(nobody)
    for row in rows[np.argsort(-first.truth_areas[rows], kind="stable")].tolist():
        box = tuple(first.truth_boxes_xywh[row].tolist())
        found.append(Suspicion("never found", int(first.truth_image[row]), row, None, box, None, tuple(detectors)))
    return found


def _confident_errors(detector: ErrorKinds) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the confident detections that nothing explains, and of those on an object of another class."""
    matcher = detector.matcher
    is_confident = matcher.scores >= confident_scores(detector)[matcher.category]
    is_confident &= ~detector.ignored
    unlabelled = is_confident & (detector.any_overlap < BACKGROUND_IOU)
    score_of_finder = np.full(len(matcher.crowd), -np.inf)
    right = detector.detection == CORRECT
    score_of_finder[detector.matched[right]] = matcher.scores[right]
    rows = np.flatnonzero(is_confident & (detector.detection == CLASS))
    wrong_class = rows[matcher.scores[rows] > score_of_finder[detector.other_class.annotation[rows]]]
    return np.flatnonzero(unlabelled), wrong_class


def _unlabelled(detectors: Mapping[str, ErrorKinds], seen: Sequence[tuple[float, str, int]]) -> list[Suspicion]:
    """Join the sightings of one class that overlap (IoU 0.5 at least with the strongest of them)."""
    joined: dict[int, list[tuple[np.ndarray, float, list[str]]]] = {}  # by image and class: box, score, detectors
    for score, name, row in seen:
        matcher = detectors[name].matcher
        box = matcher.boxes_xywh[row]
        places = joined.setdefault(int(matcher.group[row]), [])
        boxes = np.array([one[0] for one in places]).reshape(-1, 4)
        iou = overlap(np.broadcast_to(box, boxes.shape), boxes, np.zeros(len(boxes), dtype=bool))
        if len(iou) and iou.max() >= RIGHT_IOU:
            places[int(iou.argmax())][2].append(name)
        else:
            places.append((box, score, [name]))
    num_categories = next(iter(detectors.values())).matcher.num_categories
    return [
        Suspicion(
            "unlabelled",
            group // num_categories,
            None,
            group % num_categories,
            tuple(box.tolist()),
            score,
            tuple(dict.fromkeys(names)),
        )
        for group, places in joined.items()
        for box, score, names in places
    ]


def _wrong_class(detectors: Mapping[str, ErrorKinds], seen: Sequence[tuple[float, str, int]]) -> list[Suspicion]:
    """Join the sightings of one class on one annotation."""
    joined: dict[tuple[int, int], tuple[float, list[str]]] = {}
    for score, name, row in seen:
        detector = detectors[name]
        matcher = detector.matcher
        key = (int(detector.other_class.annotation[row]), int(matcher.category[row]))
        joined.setdefault(key, (score, []))[1].append(name)
    matcher = next(iter(detectors.values())).matcher
    return [
        Suspicion(
            "wrong class",
            int(matcher.truth_image[annotation]),
            annotation,
            category,
            tuple(matcher.truth_boxes_xywh[annotation].tolist()),
            score,
            tuple(dict.fromkeys(names)),
        )
        for (annotation, category), (score, names) in joined.items()
    ]


def _by_agreement(found: Iterable[Suspicion]) -> list[Suspicion]:
    return sorted(found, key=lambda one: (-len(one.detectors), -(one.score or 0.0), one.image))
