"""What mending one image would gain: against pycocotools on the results in which it is mended."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.coco import evaluate_coco
from evaluation.error_kinds import CORRECT, CROWD, FOUND, error_kinds
from evaluation.image_losses import ap50_lost_by_image
from evaluation.matches import CocoMatcher
from evaluation.results import clean_ground_truth
from tests.test_evaluation_coco import random_case


def mended(truth, results, image, matcher, kinds):
    """The results without the errors of one image, and with its missing objects found first of all."""
    is_kept = (matcher.image != image) | (kinds.detection == CORRECT) | kinds.ignored
    found = [row for row, kept in zip(results, is_kept, strict=True) if kept]
    for row, one in enumerate(truth["annotations"]):
        if matcher.truth_image[row] == image and kinds.annotation[row] not in (FOUND, CROWD):
            found.append({key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 2.0})
    return found


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3]))
def test_against_the_evaluation_of_mended_results(seed, crowd_share):
    truth, results = random_case(seed, crowd_share=crowd_share)
    truth = clean_ground_truth(truth)
    matcher = CocoMatcher(truth, results)
    kinds = error_kinds(matcher)
    lost = ap50_lost_by_image(truth, kinds)
    if all(one["iscrowd"] for one in truth["annotations"]):
        assert not lost.any()
        return
    before = evaluate_coco(truth, results, "pycocotools").ap50
    gains = [
        evaluate_coco(truth, mended(truth, results, image, matcher, kinds), "pycocotools").ap50 - before
        for image in range(len(truth["images"]))
    ]
    np.testing.assert_allclose(lost, gains, atol=1e-12)


def test_small_blocks_change_nothing(monkeypatch):
    truth, results = random_case(5, num_images=20)
    truth = clean_ground_truth(truth)
    matcher = CocoMatcher(truth, results)
    whole = ap50_lost_by_image(truth, error_kinds(matcher))
    monkeypatch.setattr("evaluation.image_losses.NUMBERS_PER_BLOCK", 1)
    monkeypatch.setattr("evaluation.error_kinds.DETECTIONS_PER_BLOCK", 1)
    assert whole.max() > 0
    np.testing.assert_array_equal(ap50_lost_by_image(truth, error_kinds(matcher)), whole)
