"""Lines of detect.py by hand: counts in words, and coordinates as Darknet's ``-ext_output`` prints them."""

import torch

from engine.detect_loop import coordinate_lines, in_words
from utils.structures import Detections

NAMES = ("dog", "bus")


def found(*rows):
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def test_coordinates_from_left_to_right():
    # printf("%s: %.0f%%") and "\t(left_x: %4.0f   top_y: %4.0f   width: %4.0f   height: %4.0f)\n" of Darknet.
    lines = coordinate_lines(found((100.5, 20.49, 1300.0, 60.0, 0.876, 1), (3.0, 2.5, 13.0, 5.0, 0.5, 0)), NAMES)
    assert lines == [
        "dog: 50%\t(left_x:    3   top_y:    3   width:   10   height:    3)",
        "bus: 88%\t(left_x:  101   top_y:   20   width: 1200   height:   40)",
    ]
    assert coordinate_lines(found(), NAMES) == []


def test_counts_in_words():
    box = (0.0, 0.0, 1.0, 1.0, 0.5)
    assert in_words(found((*box, 1), (*box, 0), (*box, 1)), NAMES) == "1 dog, 2 buses, "
    assert in_words(found(), NAMES) == ""
