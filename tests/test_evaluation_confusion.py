"""The confusion matrix against a plain loop, hotcoco's, and a case worked by hand."""

import numpy as np
from hotcoco import COCO, COCOeval
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.confusion import confusion_matrix, normalised
from evaluation.results import clean_ground_truth
from tests.test_evaluation_bootstrap import without_ties
from tests.test_evaluation_coco import found, one_image, random_case
from tests.test_evaluation_working_point import iou_of


def plain_matrix(truth, results, confidence, iou):
    place = {category["id"]: number for number, category in enumerate(truth["categories"])}
    matrix = np.zeros((len(place) + 1, len(place) + 1), dtype=int)
    for image in truth["images"]:
        here = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        objects, crowds = ([one for one in here if bool(one["iscrowd"]) == crowd] for crowd in (False, True))
        rows = [one for one in results if one["image_id"] == image["id"] and one["score"] > confidence]
        free = list(objects)
        for one in sorted(rows, key=lambda one: -one["score"]):
            best, value = None, iou
            for other in free:
                overlap = iou_of(one["bbox"], other["bbox"])
                if overlap > value or (best is not None and overlap == value):
                    best, value = other, overlap
            label = place[one["category_id"]]
            if best is not None:
                free.remove(best)
                matrix[place[best["category_id"]], label] += 1
            elif not any(
                crowd["category_id"] == one["category_id"] and iou_of(one["bbox"], crowd["bbox"], True) > iou
                for crowd in crowds
            ):
                matrix[-1, label] += 1
        for one in free:
            matrix[place[one["category_id"]], -1] += 1
    return matrix


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    crowd_share=st.sampled_from([0.0, 0.3, 1.0]),
    confidence=st.sampled_from([0.0, 0.25, 0.5]),
    iou=st.sampled_from([0.2, 0.45, 0.75]),
)
def test_equals_a_plain_loop(seed, crowd_share, confidence, iou):
    truth, results = random_case(seed, crowd_share=crowd_share)
    np.testing.assert_array_equal(
        confusion_matrix(truth, results, confidence, iou), plain_matrix(truth, results, confidence, iou)
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_hotcocos_where_there_are_no_crowd_regions(seed):
    truth, results = random_case(seed, crowd_share=0.0)
    truth, results = clean_ground_truth(truth), without_ties(results, seed)
    if results:
        index = COCO(truth)
        evaluation = COCOeval(index, index.load_res([dict(one) for one in results]), "bbox")
        theirs = evaluation.confusion_matrix(iou_thr=0.4501, min_score=0.2501)["matrix"]
        np.testing.assert_array_equal(confusion_matrix(truth, results, 0.2501, 0.4501), theirs)


def test_worked_by_hand():
    # Classes 7 and 3, rows and columns 0 and 1. The object of class 7 at the left is taken for class 3, the one at the
    # right is found, the object of class 3 is missed; one detection is of nothing, one in a crowd region, one too weak.
    truth = clean_ground_truth(
        one_image((7, [0, 0, 10, 10], 0), (7, [50, 0, 10, 10], 0), (3, [80, 0, 10, 10], 0), (3, [0, 50, 90, 40], 1))
    )
    results = [
        found(3, [0, 0, 10, 10], 0.9),
        found(7, [50, 0, 10, 9], 0.8),
        found(7, [20, 20, 5, 5], 0.7),
        found(3, [10, 60, 10, 10], 0.6),
        found(3, [80, 0, 10, 10], 0.25),
    ]
    matrix = confusion_matrix(truth, results, 0.25, 0.45)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert normalised(matrix).tolist() == [[0.5, 0.5, 0], [0, 0, 1], [1, 0, 0]]
    assert np.isnan(normalised(confusion_matrix(one_image(), [], 0.25, 0.45))).all()
