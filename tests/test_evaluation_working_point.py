"""Counts at a working point against a plain loop, Darknet's own output, and cases worked by hand."""

import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.results import clean_ground_truth
from evaluation.working_point import working_point
from tests.test_evaluation_coco import found, one_image, random_case


def iou_of(a, b, crowd=False):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    either = a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - both
    return both / either if either > 0 else 0.0


def meant_object(one, annotations, iou):
    """The place of the object that a detection means and its IoU, and whether it lies in a crowd region."""
    best, place, in_crowd = iou, None, False
    for number, other in enumerate(annotations):
        if (other["image_id"], other["category_id"]) == (one["image_id"], one["category_id"]):
            value = iou_of(one["bbox"], other["bbox"], other["iscrowd"])
            if other["iscrowd"]:
                in_crowd |= value > iou
            elif value > best:
                best, place = value, number
    return place, best, in_crowd


def plain_class(truth, results, category, confidence, iou, points):
    """TP, FP, FN, the sum of their IoU and the average precision of a class, rank by rank."""
    rows = sorted((one for one in results if one["category_id"] == category), key=lambda one: -one["score"])
    objects = sum(one["category_id"] == category and not one["iscrowd"] for one in truth["annotations"])
    taken, tp, fp, iou_sum, curve = set(), 0, 0, 0.0, []
    counted = [0, 0]
    for one in rows:
        place, value, in_crowd = meant_object(one, truth["annotations"], iou)
        if place is None and in_crowd:
            continue
        right = place is not None and place not in taken
        taken.add(place)
        tp, fp = tp + right, fp + (not right)
        curve.append((tp / objects if objects else 0.0, tp / (tp + fp)))
        if one["score"] > confidence:
            counted = [tp, fp]
            iou_sum += value if right else 0.0
    if points:
        best = [max((p for r, p in curve if r >= i / (points - 1)), default=0.0) for i in range(points)]
        ap = sum(best) / points
    else:
        ap, last = 0.0, 0.0
        for place, (recall, _) in enumerate(curve):
            ap += (recall - last) * max(p for _, p in curve[place:])
            last = recall
    return *counted, objects - counted[0], iou_sum, ap if objects else None


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    crowd_share=st.sampled_from([0.0, 0.3, 1.0]),
    confidence=st.sampled_from([0.0, 0.25, 0.5, 0.99]),
    iou=st.sampled_from([0.1, 0.5, 0.75]),
    points=st.sampled_from([0, 11, 101]),
)
def test_counts_and_average_precision_equal_a_plain_loop(seed, crowd_share, confidence, iou, points):
    truth, results = random_case(seed, crowd_share=crowd_share)
    point = working_point(truth, results, confidence, iou, points)
    for number, category in enumerate(truth["categories"]):
        *counts, iou_sum, ap = plain_class(truth, results, category["id"], confidence, iou, points)
        one = point.of_class[number]
        assert [one.true_positives, one.false_positives, one.false_negatives] == counts
        assert one.iou_sum == pytest.approx(iou_sum) and point.ap[number] == pytest.approx(ap)
    of_all = point.of_all
    assert of_all.true_positives + of_all.false_negatives == sum(not one["iscrowd"] for one in truth["annotations"])


# What the Darknet that made the detections prints for them (`darknet detector map -thresh 0.25 -points ...`, compiled
# for CPU), without crowd regions: mAP with the area under the curve and with 101 points, TP, FP, FN and average IoU.
# TP = 272 and so on are by its order of the detections, which the loop below follows.
DARKNET = {
    "yolo-fastest-1.1": (0.328778, 0.330343, 272, 405, 626, 28.40),
    "yolo-fastest-1.1-xl": (0.402682, 0.404105, 343, 438, 555, 32.45),
}


def in_darknets_order(truth, results, confidence, iou):
    """TP, FP and the IoU of the true positives as Darknet counts: an earlier detection takes an object at any score."""
    of_image = defaultdict(list)
    for one in truth["annotations"]:
        of_image[one["image_id"]].append(one)
    taken, tp, fp, iou_sum = set(), 0, 0, 0.0
    for one in results:  # in the order of Darknet's list
        place, value, _ = meant_object(one, of_image[one["image_id"]], iou)
        key = one["image_id"], place
        if one["score"] > confidence:
            right = place is not None and key not in taken
            tp, fp, iou_sum = tp + right, fp + (not right), iou_sum + value * right
        taken.add(key)
    return tp, fp, iou_sum


@pytest.mark.parametrize("name", DARKNET)
def test_darknets_own_output(shared, name):
    truth = clean_ground_truth(json.loads((shared / "data/coco/annotations/instances_val2017.json").read_text()))
    truth["annotations"] = [one for one in truth["annotations"] if not one["iscrowd"]]
    results = json.loads((shared / f"oracle/{name}_darknet_val128_results.json").read_text())
    under_curve, with_points, tp, fp, fn, average_iou = DARKNET[name]
    point = working_point(truth, results, 0.25, 0.5)
    defined = sum(ap is not None for ap in point.ap)
    assert point.mean_ap * defined / 80 == pytest.approx(under_curve, abs=2e-6)  # Darknet counts the others as 0
    assert working_point(truth, results, 0.25, 0.5, 101).mean_ap * defined / 80 == pytest.approx(with_points, abs=1e-3)

    found_tp, found_fp, iou_sum = in_darknets_order(truth, results, 0.25, 0.5)
    assert (found_tp, found_fp) == (tp, fp) and round(100 * iou_sum / (tp + fp), 2) == average_iou
    of_all = point.of_all
    assert of_all.true_positives + of_all.false_positives == tp + fp  # as many detections
    assert of_all.true_positives >= tp and of_all.true_positives + of_all.false_negatives == tp + fn


def test_worked_by_hand_and_printed_as_darknet_prints():
    # Class 7: two objects; 0.9 finds the first with IoU 1, 0.8 means it too and is wrong, 0.2 finds the second with
    # IoU 80 / 100 but is not counted at 0.25. Class 3 has no object and one wrong detection.
    truth = clean_ground_truth(one_image((7, [0, 0, 10, 10], 0), (7, [50, 0, 10, 10], 0)))
    results = [found(7, [0, 0, 10, 10], 0.9), found(7, [0, 0, 10, 9], 0.8), found(7, [50, 0, 10, 8], 0.2)]
    results.append(found(3, [0, 0, 10, 10], 0.5))
    point = working_point(truth, results, 0.25, 0.5)
    assert point.ap == (pytest.approx(0.5 + 0.5 * 2 / 3), None)
    lines = point.lines()
    assert lines[0].startswith("class_id = 0, name = ") and ", ap = 83.33%   \t (TP = 1, FP = 1) \t FN = 1" in lines[0]
    assert (
        "ap = -   \t (TP = 0, FP = 1) \t FN = 0, precision = 0.00, recall = -, F1-score = 0.00, mean IoU = -"
        in lines[1]
    )
    assert lines[2:] == [
        "",
        " for conf_thresh = 0.25, precision = 0.33, recall = 0.50, F1-score = 0.40 ",
        " for conf_thresh = 0.25, TP = 1, FP = 2, FN = 1, average IoU = 33.33 % ",
        " for conf_thresh = 0.25, mean IoU of the true positives = 100.00 % ",
        "",
        " IoU threshold = 50 %, used Area-Under-Curve for each unique Recall ",
        " mean average precision (mAP@0.50) = 0.833333, or 83.33 % ",
        " (over the classes with objects; Darknet counts the 1 others as 0: 0.416667)",
    ]
    content = json.loads(json.dumps(point.to_dict(), allow_nan=False))
    assert content["map"] == pytest.approx(5 / 6) and content["mean_iou"] == 1.0 and content["f1"] == pytest.approx(0.4)
    assert [one["recall"] for one in content["classes"]] == [0.5, None]


def test_nothing_at_all_is_undefined():
    truth = clean_ground_truth(one_image())
    point = working_point(truth, [], 0.25, 0.5, 11)
    assert point.to_dict() | {"classes": 0} == {
        "confidence": 0.25, "iou": 0.5, "points": 11, "map": None, "tp": 0, "fp": 0, "fn": 0, "precision": None,
        "recall": None, "f1": None, "mean_iou": None, "average_iou": None, "classes": 0,
    }  # fmt: skip
    assert " mean average precision (mAP@0.50) = - " in point.lines()
