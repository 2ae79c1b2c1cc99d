"""Intervals: a resample's numbers are pycocotools' of the images written out as often as they were drawn."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.bootstrap import ResampledNumbers, resample
from evaluation.coco import TWELVE, evaluate_coco
from evaluation.comparison import Compared, Difference, coco_numbers, with_intervals
from evaluation.matches import CocoMatcher
from evaluation.parameters import COCO_AREAS, COCO_IOUS
from evaluation.results import clean_ground_truth
from tests.test_evaluation_coco import pycocotools_stats, random_case


def twelve(truth, results, backend="pycocotools"):
    metrics = evaluate_coco(truth, results, backend)
    return np.array([np.nan if getattr(metrics, row[0]) < 0 else getattr(metrics, row[0]) for row in TWELVE])


def without_ties(results, seed=0):
    """Other scores in the same order, all different: of two equal ones in a copy of an image the order would matter."""
    generator = np.random.default_rng(seed)
    return [{**result, "score": result["score"] + float(generator.random()) * 1e-3} for result in results]


def written_out(truth, results, weights):
    """The images as often as their weights say, each with its objects and results, under ids in the same order."""
    found, found_results = {**truth, "images": [], "annotations": []}, []
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            number = len(found["images"]) + 1
            found["images"].append({**image, "id": number})
            for row in truth["annotations"]:
                if row["image_id"] == image["id"]:
                    found["annotations"].append({**row, "id": len(found["annotations"]) + 1, "image_id": number})
            found_results += [{**row, "image_id": number} for row in results if row["image_id"] == image["id"]]
    return found, found_results


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3]))
def test_every_image_once_gives_the_evaluation_itself(seed, crowd_share):
    truth, results = random_case(seed, crowd_share=crowd_share)
    truth = clean_ground_truth(truth)
    ours = ResampledNumbers(truth, results).numbers(np.ones(len(truth["images"]), dtype=np.int32))
    np.testing.assert_allclose(ours, twelve(truth, results), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_resample_is_the_evaluation_of_images_written_out(seed):
    truth, results = random_case(seed, num_images=8)
    truth, results = clean_ground_truth(truth), without_ties(results, seed)
    drawn = np.random.default_rng(seed).integers(8, size=8)
    weights = np.bincount(drawn, minlength=8).astype(np.int32)
    ours = ResampledNumbers(truth, results).numbers(weights)
    np.testing.assert_allclose(ours, twelve(*written_out(truth, results, weights)), atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_matches_at_every_iou_and_area_are_those_of_pycocotools(seed):
    truth, results = random_case(seed)
    if not results:
        return
    evaluation, _ = pycocotools_stats(truth, results)
    matcher = CocoMatcher(clean_ground_truth(truth), results)
    for _, *area_range in COCO_AREAS:
        for index, iou in enumerate(COCO_IOUS):
            matches = matcher.matches(iou, tuple(area_range))
            for image in evaluation.evalImgs:
                if image and image["aRng"] == pytest.approx(area_range):
                    of_image = np.array(image["dtIds"], dtype=int) - 1
                    ignored = np.array(image["dtIgnore"][index], dtype=bool)
                    right = (np.array(image["dtMatches"][index]) > 0) & ~ignored
                    assert matches.correct[of_image].tolist() == right.tolist()
                    assert matches.ignored[of_image].tolist() == ignored.tolist()


def test_an_iou_below_the_kept_pairs_is_refused():
    truth, results = random_case(1)
    with pytest.raises(ValueError, match=r"0\.5"):
        CocoMatcher(clean_ground_truth(truth), results).matches(0.4)


def case_of(seed, num_images=20):
    truth, results = random_case(seed, num_images=num_images)
    return clean_ground_truth(truth), without_ties(results)


def column_of(name, truth, *files):
    return Compared(name, np.array([coco_numbers(truth, one) for one in files])), files


def test_intervals_are_percentiles_of_the_same_resamples_for_all():
    truth, results = case_of(3)
    worse = [row for number, row in enumerate(results) if number % 3]
    columns, (difference,) = with_intervals(
        truth, [column_of("a", truth, results), column_of("b", truth, worse)], 200, seed=5
    )
    drawn = resample([ResampledNumbers(truth, results), ResampledNumbers(truth, worse)], 200, seed=5)
    for index, column in enumerate(columns):
        np.testing.assert_allclose(column.interval[0], np.quantile(drawn[:, index, 0], (0.025, 0.975)))
    np.testing.assert_allclose(difference.interval[0], np.quantile(drawn[:, 1, 0] - drawn[:, 0, 0], (0.025, 0.975)))
    assert difference.numbers[0] == pytest.approx(columns[1].numbers[0] - columns[0].numbers[0])
    assert (difference.first, difference.second) == ("a", "b") and difference.numbers[0] < 0
    again, _ = with_intervals(truth, [column_of("a", truth, results)], 200, seed=5)
    assert np.array_equal(again[0].interval, columns[0].interval, equal_nan=True)


def test_the_same_results_differ_by_nothing():
    truth, results = case_of(4)
    _, (difference,) = with_intervals(
        truth, [column_of("a", truth, results), column_of("b", truth, copy.deepcopy(results))], 50
    )
    defined = ~np.isnan(difference.numbers)
    assert (difference.numbers[defined] == 0).all() and difference.holds_zero().all()
    assert (difference.interval[defined] == 0).all()


def test_files_of_one_name_are_averaged_and_have_an_interval_over_runs():
    truth, results = case_of(5)
    runs = [results, [row for number, row in enumerate(results) if number % 3], results[::2]]
    (column,), _ = with_intervals(truth, [column_of("a", truth, *runs)], 100)
    each = np.array([coco_numbers(truth, one)[0] for one in runs])
    assert column.numbers[0] == pytest.approx(each.mean())
    deviation, half = column.spread()
    assert deviation[0] == pytest.approx(np.sqrt(((each - each.mean()) ** 2).sum() / 2))
    assert half[0] == pytest.approx(4.302652729911275 * deviation[0] / np.sqrt(3))  # t(0.975, 2) of a table
    assert column.interval[0, 0] <= column.interval[0, 1]
    assert Compared("a", each[:1, None]).spread() is None


def test_what_too_few_resamples_define_has_no_interval():
    one = Difference("a", "b", np.array([0.1, np.nan]), np.array([[0.05, 0.2], [np.nan, np.nan]]))
    assert one.holds_zero().tolist() == [False, True]
    truth, _ = case_of(6)
    for row in truth["annotations"]:
        row["area"] = 10.0  # all are small
    (column,), _ = with_intervals(truth, [column_of("a", truth, [])], 20)
    assert np.isnan(column.interval[5]).all() and column.interval[3].tolist() == [0, 0]
    assert with_intervals(truth, [column_of("a", truth, [])], 0)[0][0].interval is None
