"""Curves and calibration against pycocotools' matches, counted one by one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.coco import evaluate_coco
from evaluation.curves import curves_of
from evaluation.results import clean_ground_truth
from tests.test_evaluation_coco import found, one_image, pycocotools_stats, random_case


def scored_matches(truth, results):
    """Of each category the score of every detection that counts at IoU 0.5 and whether pycocotools finds it right."""
    rows = {category["id"]: [] for category in truth["categories"]}
    for image in pycocotools_stats(truth, results)[0].evalImgs:
        if image and image["aRng"] == [0, 1e10]:
            numbers = zip(image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
            rows[image["category_id"]] += [(score, match > 0) for score, match, ignored in numbers if not ignored]
    return rows


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3]))
def test_curves_and_calibration_equal_what_is_counted_one_by_one(seed, crowd_share):
    truth, results = random_case(seed, crowd_share=crowd_share)
    truth = clean_ground_truth(truth | {"categories": truth["categories"][::-1]})
    if not results or all(one["iscrowd"] for one in truth["annotations"]):
        return
    curves, matches = curves_of(truth, results), scored_matches(truth, results)
    by = curves.by_confidence
    for number, category in enumerate(truth["categories"]):
        objects = sum(a["category_id"] == category["id"] and not a["iscrowd"] for a in truth["annotations"])
        assert by.num_objects[number] == objects
        for place in (0, 50, 51, 499, 900, 999):
            counted = [right for score, right in matches[category["id"]] if score >= by.confidences[place]]
            if objects:
                assert by.recall[number, place] == pytest.approx(sum(counted) / objects)
                assert by.precision[number, place] == pytest.approx(sum(counted) / max(len(counted), 1))
            else:
                assert np.isnan(by.recall[number, place]) and np.isnan(by.f1[number, place])
    metrics = evaluate_coco(truth, results, "pycocotools")
    assert np.nanmean(curves.precision_at_recall) == pytest.approx(metrics.ap50)
    for number, ap50 in enumerate(metrics.class_ap50):
        assert np.isnan(curves.precision_at_recall[number]).all() == (ap50 < 0)
        if ap50 >= 0:
            assert curves.precision_at_recall[number].mean() == pytest.approx(ap50)

    bins = [[] for _ in range(10)]
    for score, right in (pair for rows in matches.values() for pair in rows):
        bins[min(int(score * 10), 9)].append((score, right))
    total = sum(map(len, bins))
    error = sum(abs(sum(s for s, _ in one) - sum(r for _, r in one)) for one in bins) / total if total else None
    assert curves.calibration_error == pytest.approx(error)
    assert [one["detections"] for one in curves.calibration_bins] == [len(one) for one in bins]


def test_best_thresholds_are_those_of_the_table_and_of_the_highest_f1():
    truth, results = random_case(3)
    curves, metrics = curves_of(truth, results), evaluate_coco(truth, results)
    of_all, *of_classes = curves.best_thresholds()
    assert of_all["confidence"] == metrics.best_f1_confidence
    assert (of_all["precision"], of_all["recall"]) == (metrics.precision, metrics.recall)
    by = curves.by_confidence
    for number, row in enumerate(of_classes):
        precision, recall = row["precision"], row["recall"]
        assert row["f1"] == by.f1[number].max() == pytest.approx(2 * precision * recall / (precision + recall))


def test_what_nothing_defines_is_null():
    for truth, results in (
        (one_image(), []),
        (one_image((7, [0, 0, 9, 9], 0)), []),
        (one_image(), [found(7, [0, 0, 9, 9], 1)]),
    ):
        curves = curves_of(clean_ground_truth(truth), results)
        content = json.loads(json.dumps(curves.to_dict(), allow_nan=False))
        assert content["classes"][1]["precision"] == [None] * 1000
        assert curves.calibration_error is None or results
        assert curves.best_thresholds()[2] == {
            "name": truth["categories"][1]["name"], "confidence": None, "precision": None, "recall": None, "f1": None,
        }  # fmt: skip
