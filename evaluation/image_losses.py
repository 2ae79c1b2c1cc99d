"""How much AP50 each image costs: what would be gained if all errors of that one image were mended.

Mended means that every object of the image is found, with a confidence above all others, and that none of its
detections is wrong; what is right in it keeps its confidence, and all other images stay as they are. So an image that
has the only object of a rare class, and misses it, weighs as much as AP50 makes it weigh: the mean goes over classes.

Shape letters: N detections, I images, K categories, U images with an error in one class, R right detections of it,
Q recalls (101).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evaluation.bootstrap import RECALLS
from evaluation.error_kinds import CORRECT, FOUND, ErrorKinds

NUMBERS_PER_BLOCK = 1 << 21  # of a matrix U x R: bounds the memory


def ap50_lost_by_image(truth: dict, kinds: ErrorKinds) -> np.ndarray:
    """Return the AP50 that mending each image alone would gain, [I], in the order of the ground truth's images."""
    matcher = kinds.matcher
    num_images, num_categories = len(truth["images"]), len(truth["categories"])
    is_object = ~matcher.crowd
    objects = np.bincount(matcher.truth_category[is_object], minlength=num_categories)
    is_missing = is_object & (kinds.annotation != FOUND)
    gained = np.zeros(num_images)
    counted = np.flatnonzero(~kinds.ignored)
    place_of_image = np.argsort(np.argsort([image["id"] for image in truth["images"]]))
    order = counted[
        np.lexsort(
            (
                matcher.rank[counted],
                place_of_image[matcher.image[counted]],
                -matcher.scores[counted],
                matcher.category[counted],
            )
        )
    ]
    ends = np.searchsorted(matcher.category[order], np.arange(num_categories + 1))
    for category in np.flatnonzero(objects):
        rows = order[ends[category] : ends[category + 1]]
        missing_image = matcher.truth_image[is_missing & (matcher.truth_category == category)]
        missing = np.bincount(missing_image, minlength=num_images)
        is_right = kinds.detection[rows] == CORRECT
        gained += _gained_in_class(is_right, matcher.image[rows], missing, int(objects[category]))
    return gained / max(int((objects > 0).sum()), 1)


def _gained_in_class(is_right: np.ndarray, image: np.ndarray, missing: np.ndarray, objects: int) -> np.ndarray:
    """Return what mending each image would add to the AP50 of one class, [I].

    Args:
        is_right: [N] of the class's detections that count, the strongest first.
        image: [N] of these.
        missing: [I] objects of the class that are not found.
        objects: of the class.
    """
    right_before = np.cumsum(is_right) - is_right  # N
    wrong_image, wrong_place = image[~is_right], right_before[~is_right]
    num_right = int(is_right.sum())
    wrong = np.cumsum(np.bincount(wrong_place, minlength=num_right + 1))[:num_right]  # R: before each right one
    # How many must be found for each recall, Q.
    needed = np.searchsorted(np.arange(1, objects + 1) / objects, RECALLS, side="left") + 1
    nothing_mended = np.zeros((1, num_right), dtype=np.int64)
    before = _average_precision(wrong, nothing_mended, np.zeros(1, dtype=np.int64), needed)
    gained = np.zeros(len(missing))
    with_errors = np.union1d(np.flatnonzero(missing), wrong_image)
    for images in _blocks(with_errors, num_right):
        row = np.searchsorted(images, wrong_image)
        inside = (row < len(images)) & (images[np.minimum(row, len(images) - 1)] == wrong_image)
        cell = row[inside] * (num_right + 1) + wrong_place[inside]
        own_wrong = np.bincount(cell, minlength=len(images) * (num_right + 1)).reshape(len(images), -1)
        own_wrong = np.cumsum(own_wrong, axis=1)[:, :num_right]  # U R
        gained[images] = _average_precision(wrong, own_wrong, missing[images], needed) - before
    return gained


def _blocks(images: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Yield the images a few at a time."""
    step = max(1, NUMBERS_PER_BLOCK // (width + len(RECALLS)))
    for start in range(0, len(images), step):
        yield images[start : start + step]


def _average_precision(wrong: np.ndarray, mended: np.ndarray, added: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Return the average precision with each image mended, [U].

    Args:
        wrong: [R] wrong detections before each right one.
        mended: [U R] how many of these vanish.
        added: [U] right detections that come before all others.
        needed: [Q] how many must be right to reach each recall.
    """
    right = added[:, None] + np.arange(1, len(wrong) + 1)
    precision = right / (right + wrong - mended)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    highest = np.concatenate((highest, np.zeros((len(added), 1))), axis=1)  # beyond the last one
    place = needed - 1 - added[:, None]  # U Q, among those that were there
    at_recall = np.take_along_axis(highest, np.clip(place, 0, len(wrong)), axis=1)
    return np.where(place < 0, 1.0, at_recall).mean(axis=1)
