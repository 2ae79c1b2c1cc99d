"""engine/export_check.py: what is said of a file's outputs, worked by hand on arrays instead of a network."""

import numpy as np
import pytest

from engine.export_check import compare

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
