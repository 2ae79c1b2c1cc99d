"""Which class is taken for which, with the background as one more class on either side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.pairs import columns, overlap, pairs_in_groups, taken_in_turn

BACKGROUND = "background"


def confusion_matrix(truth: dict, results: Sequence[dict], confidence: float, iou: float) -> np.ndarray:
    """Count objects and detections by the class they are of and the class they are taken for.

    The detections above the confidence choose in turn, the strongest of an image first: each takes the free object of
    any class with the highest IoU, if that is above the threshold (the later annotation of two equal ones, as in
    COCO). What takes none and lies in a crowd region of its class is left out.

    Args:
        truth: COCO's ground truth with K categories.
        results: COCO's results, which name only images and categories of the ground truth.
        confidence: what has a higher score counts.
        iou: what has a higher IoU with an object may take it.

    Returns:
        [K + 1, K + 1] int64, rows by the class of the object, columns by that of the detection. The last row holds
        the detections that take no object, the last column the objects that nobody takes.
    """
    num_classes = len(truth["categories"])
    results = [one for one in results if one["score"] > confidence]
    annotations = truth["annotations"]
    group, scores, boxes = columns(results, truth)
    truth_group, _, truth_boxes = columns(annotations, truth)
    image, label = np.divmod(group, max(num_classes, 1))
    truth_image, truth_label = np.divmod(truth_group, max(num_classes, 1))
    crowd = np.array([one["iscrowd"] for one in annotations], dtype=bool)

    order = np.lexsort((-scores, image))
    label, boxes = label[order], boxes[order]
    annotation, place = pairs_in_groups(image[order], truth_image)
    overlaps = overlap(boxes[place], truth_boxes[annotation], crowd[annotation])
    # Crowd regions of other classes explain nothing.
    near = (overlaps > iou) & (~crowd[annotation] | (truth_label[annotation] == label[place]))
    annotation, place, overlaps = annotation[near], place[near], overlaps[near]
    preference = np.lexsort((-annotation, -overlaps, crowd[annotation], place))
    taken = preference[taken_in_turn(place[preference], annotation[preference], crowd)]

    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    is_free, is_taken = np.ones(len(label), dtype=bool), np.zeros(len(crowd), dtype=bool)
    is_free[place[taken]] = False
    is_taken[annotation[taken]] = True
    found = taken[~crowd[annotation[taken]]]
    np.add.at(matrix, (truth_label[annotation[found]], label[place[found]]), 1)
    matrix[-1, :-1] = np.bincount(label[is_free], minlength=num_classes)
    matrix[:-1, -1] = np.bincount(truth_label[~is_taken & ~crowd], minlength=num_classes)
    return matrix


def normalised(matrix: np.ndarray) -> np.ndarray:
    """Return the shares [K + 1, K + 1] of each row, the objects of a class; NaN where a class has none."""
    total = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
