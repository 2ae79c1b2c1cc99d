"""Annotations that are probably wrong: cases worked by hand, with one and with several detectors."""

import pytest

from evaluation.error_kinds import error_kinds
from evaluation.matches import CocoMatcher
from evaluation.suspicious_labels import confident_scores, suspicious_labels
from tests.test_evaluation_error_kinds import SQUARE, detections, truth_of


def detector_of(truth, *rows):
    return error_kinds(CocoMatcher(truth, detections(*rows)))


def test_from_which_score_a_detection_is_confident():
    truth = truth_of((1, SQUARE), (2, (100, 100, 50, 50)), (2, (150, 0, 50, 50)))
    nowhere = (160, 160, 30, 30)
    found = detector_of(
        truth,
        (1, SQUARE, 0.9), (1, nowhere, 0.8), (2, (150, 0, 50, 50), 0.75), (1, (0, 160, 30, 30), 0.6), (2, nowhere, 0.5),
        (2, (100, 100, 50, 50), 0.05),
    )  # fmt: skip
    # All: F1 after each is 2 TP / (n + 3): 2/4, 2/5, 4/6, 4/7, 4/8, 6/9: best at 0.75, the higher of two equal ones.
    # Class 1 is best at 0.9 (2/2). Class 2 would be best at 0.05 (4/5), where all together are not.
    assert confident_scores(found).tolist() == [0.9, 0.75]
    assert confident_scores(detector_of(truth, (1, nowhere, 0.9))).tolist() == [0, 0]  # nothing is right
    # Equal scores cannot be parted: after both of them the F1 is 2 / 4 each.
    tied = detector_of(truth_of((1, SQUARE), (1, (100, 100, 50, 50))), (1, SQUARE, 0.5), (1, nowhere, 0.5))
    assert confident_scores(tied)[0] == 0.5


def shown(found):
    return [(one.kind, one.annotation, one.category, one.score, one.detectors) for one in found]


def test_what_each_kind_is():
    truth = truth_of((1, SQUARE), (1, (120, 0, 60, 60)), (2, (120, 120, 60, 60)), (1, (0, 120, 60, 60), True),
                     (1, (185, 185, 15, 15)))  # fmt: skip
    found = detector_of(
        truth,
        (1, SQUARE, 0.9),
        (2, SQUARE, 0.8),  # weaker than the detection of the right class: no suspicion
        (2, (120, 0, 60, 60), 0.85),  # wrong class
        (1, (62, 62, 60, 40), 0.6),  # reaches into the first object by more than 0.1: no suspicion
        (2, (75, 105, 30, 90), 0.95),  # nothing there
        (2, (5, 125, 30, 30), 0.95),  # in a crowd region of another class
        (1, (185, 185, 15, 15), 0.6),  # right: from here on a detection is confident
        (1, (120, 62, 30, 30), 0.1),  # so this is not
    )
    assert shown(suspicious_labels({"a": found})) == [
        ("unlabelled", None, 1, 0.95, ("a",)),
        ("wrong class", 1, 1, 0.85, ("a",)),
        ("never found", 2, None, None, ("a",)),
    ]


def test_agreement_comes_before_score():
    truth = truth_of((1, SQUARE), (2, (120, 120, 60, 60)))
    alone, both, moved = (105, 0, 30, 30), (150, 0, 30, 30), (153, 0, 30, 30)
    a = detector_of(truth, (1, SQUARE, 0.5), (1, alone, 0.99), (1, both, 0.7))
    b = detector_of(truth, (1, SQUARE, 0.5), (1, moved, 0.8), (1, (152, 1, 30, 30), 0.6))
    found = suspicious_labels({"a": a, "b": b})
    assert shown(found)[:2] == [("unlabelled", None, 0, 0.8, ("b", "a")), ("unlabelled", None, 0, 0.99, ("a",))]
    assert found[0].box_xywh == moved
    assert shown(found)[2:] == [("never found", 1, None, None, ("a", "b"))]
    c = detector_of(truth, (2, (120, 120, 60, 30), 0.01))  # a third one touches it, however weakly
    assert [one.kind for one in suspicious_labels({"a": a, "b": b, "c": c})] == ["unlabelled", "unlabelled"]


@pytest.mark.parametrize("objects", [(), ((1, SQUARE),)])
def test_without_detections(objects):
    found = suspicious_labels({"a": detector_of(truth_of(*objects))})
    assert [one.kind for one in found] == ["never found"] * len(objects)
