"""engine/export_check.py: what is said of a file's outputs, worked by hand on arrays instead of a network."""

import numpy as np
import pytest

from engine.export_check import compare
from models.exported.onnx_nms import GraphNms

IMAGES = [np.zeros((1, 3, 8, 8), np.float32)] * 2
BOXES = np.array([[[0, 0, 4, 4], [10, 10, 20, 50]]], np.float32)  # B N 4
SCORES = np.array([[[0.9, 0.1], [0.2, 0.6]]], np.float32)  # B N C


def gives(boxes, scores):
    """Return a network or a file that says the same of every batch."""
    return lambda images: (boxes, scores)


def changed(values, index, value):
    """Return a copy of an array in which one number is another one."""
    copy = values.copy()
    copy[index] = value
    return copy


def test_the_largest_difference_is_relative_to_the_box():
    found = gives(changed(BOXES, (0, 1, 0), 15), changed(SCORES, (0, 0, 0), 0.875))
    difference = compare(gives(BOXES, SCORES), found, IMAGES)
    assert (difference.boxes, difference.scores) == (pytest.approx(5 / 50), pytest.approx(0.025))
    assert "boxes by 1.0e-01, scores by 2.5e-02" in difference.problem("float32")
    assert not difference.problem("float16")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "found",
    [
        (changed(BOXES, (0, 0, 1), np.nan), SCORES),
        (changed(BOXES, (0, 0, 1), np.inf), SCORES),
        (BOXES, changed(SCORES, (0, 1, 1), np.nan)),
    ],
    ids=["boxes NaN", "boxes infinite", "scores NaN"],
)
def test_a_file_that_gives_no_numbers_is_refused(found, precision):
    difference = compare(gives(BOXES, SCORES), gives(*found), IMAGES, detections=precision != "float32")
    assert "differs from the network: boxes by" in difference.problem(precision)


def test_a_size_that_both_compute_as_infinite_is_the_same():
    infinite = changed(BOXES, (0, 0, 2), np.inf)
    assert compare(gives(infinite, SCORES), gives(infinite, SCORES), IMAGES).boxes == 0
    for wanted, found in ((infinite, BOXES), (BOXES, infinite)):
        assert compare(gives(wanted, SCORES), gives(found, SCORES), IMAGES).boxes == np.inf


def test_a_file_with_an_nms_is_compared_with_what_that_nms_keeps():
    boxes = np.array([[[0, 0, 10, 10], [4, 0, 14, 10], [40, 0, 50, 10], [40, 40, 50, 50]]], np.float32)
    scores = np.array([[[0.9, 0], [0.8, 0], [0.7, 0], [0.4, 0]]], np.float32)
    found = boxes[:, [0, 2]], scores[:, [0, 2]]  # the second box overlaps the first by 6/14, the last one is weak
    right = compare(gives(boxes, scores), gives(*found), IMAGES, nms=GraphNms(0.5, 0.4, 300))
    assert (right.agreement, right.detections, right.boxes) == (1.0, 4, None)
    assert compare(gives(boxes, scores), gives(*found), IMAGES, nms=GraphNms(0.5, 0.6, 2)).agreement == 1 / 2
    first = boxes[:, :1], scores[:, :1]
    assert compare(gives(boxes, scores), gives(*first), IMAGES, nms=GraphNms(0.5, 0.4, 1)).agreement == 1
    assert compare(gives(boxes, scores), gives(*first), IMAGES, nms=GraphNms(0.5, 0.4, 2)).problem("float32")


def test_weak_detections_are_compared_where_there_are_no_strong_ones():
    weak, nms = SCORES / 10, GraphNms(0.001, 0.6, 300)  # 0.09 and 0.06
    assert compare(gives(BOXES, weak), gives(BOXES, weak), IMAGES, nms=nms).detections == 4
    assert compare(gives(BOXES, weak), gives(BOXES[:, :1], weak[:, :1]), IMAGES, nms=nms).problem("float32")
    nothing = compare(gives(BOXES, SCORES * 0), gives(BOXES[:, :0], SCORES[:, :0]), IMAGES, nms=nms)
    assert str(nothing) == "the network finds nothing in the images that are compared"
