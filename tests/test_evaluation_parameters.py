"""pycocotools' parameters: what the options say, and the numbers against pycocotools with the same parameters."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.bootstrap import ResampledNumbers
from evaluation.comparison import coco_numbers
from evaluation.parameters import COCO_PARAMETERS, chosen_parameters
from evaluation.results import as_one_class, clean_ground_truth
from tests.test_evaluation_coco import random_case

TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def referee(truth, results, kind="bbox", **parameters):
    """pycocotools' arrays of precision [T R K A D] and recall [T K A D] with some of its own parameters set."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = copy.deepcopy(truth)
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes(copy.deepcopy(list(results))), kind)
        for name, value in parameters.items():
            assert hasattr(evaluation.params, name)
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def mean(values):
    defined = values[values > -1]
    return defined.mean() if len(defined) else np.nan


def check(truth, results, options, expected):
    """Both roads to the numbers, hotcoco's and that of the intervals, against what pycocotools' arrays say."""
    parameters = chosen_parameters(*options)
    assert parameters.names == tuple(expected)
    numbers = coco_numbers(truth, results, parameters)
    np.testing.assert_allclose(numbers, list(expected.values()), atol=1e-12)
    once = np.ones(len(truth["images"]), dtype=np.int32)
    np.testing.assert_allclose(ResampledNumbers(truth, results, parameters).numbers(once), numbers, atol=1e-12)


def other_parameters(truth, results, kind):
    """Check limits, areas and thresholds that are not COCO's, and one that nothing but equality reaches."""
    ranges, limits, ious = [[0, 1e10], [0, 3000], [2000, 40000]], [1, 2, 3], np.array([0.3, 0.5, 0.62, 1.0])
    labels = ["all", "tiny", "rest"]
    precision, recall = referee(truth, results, kind, areaRng=ranges, areaRngLbl=labels, maxDets=limits, iouThrs=ious)
    expected = {
        "AP": mean(precision[..., 0, 2]),
        "AP50": mean(precision[1, ..., 0, 2]),
        "AP_tiny": mean(precision[..., 1, 2]),
        "AP_rest": mean(precision[..., 2, 2]),
        "AR1": mean(recall[..., 0, 0]),
        "AR2": mean(recall[..., 0, 1]),
    }
    expected |= (
        {"AR": mean(recall[..., 0, 2]), "AR50": mean(recall[1, ..., 0, 2])}
        if kind == "keypoints"
        else {"AR3": mean(recall[..., 0, 2])}
    )
    expected |= {"AR_tiny": mean(recall[..., 1, 2]), "AR_rest": mean(recall[..., 2, 2])}
    options = (kind, ("0.5:0.62:0.12", "1", "0.3"), ("tiny=0:3e3", "rest=2000:40000"), (3, 1, 2))
    check(truth, results, options, expected)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_other_limits_areas_and_thresholds_are_those_of_pycocotools(seed):
    truth, results = random_case(seed, num_classes=2)
    if results:
        other_parameters(clean_ground_truth(truth), results, "bbox")


@pytest.mark.parametrize(
    "kind, results, truth",
    [
        ("bbox", "instances_val2014_fakebbox100_results.json", "instances_val2014_100.json"),
        ("segm", "instances_val2014_fakesegm100_results.json", "instances_val2014_100.json"),
        ("keypoints", "keypoints_dt.json", "keypoints_gt.json"),
    ],
)
def test_other_parameters_of_real_files(shared, kind, results, truth):
    folder = shared / "data/cocoapi"
    other_parameters(json.loads((folder / truth).read_text()), json.loads((folder / results).read_text()), kind)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_all_classes_as_one_is_pycocotools_without_categories(seed):
    truth, results = random_case(seed)
    if not results:
        return
    truth = clean_ground_truth(truth)
    truth["annotations"] = [truth["annotations"][i] for i in np.random.default_rng(seed).permutation(
        len(truth["annotations"]))]  # fmt: skip
    precision, recall = referee(truth, results, useCats=0)
    one_class, columns = as_one_class(truth, {"a": [results]})
    expected = [mean(precision[..., 0, 2]), mean(precision[0, ..., 0, 2]), mean(precision[5, ..., 0, 2])]
    expected += [mean(precision[..., area, 2]) for area in (1, 2, 3)]
    expected += [mean(recall[..., 0, limit]) for limit in range(3)] + [mean(recall[..., area, 2]) for area in (1, 2, 3)]
    check(one_class, columns["a"][0], ("bbox", (), (), ()), dict(zip(TWELVE, expected, strict=True)))


def test_all_classes_as_one_of_a_real_file(shared):
    folder = shared / "data/cocoapi"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    precision, _ = referee(truth, results, useCats=0)
    one_class, columns = as_one_class(truth, {"a": [results]})
    assert coco_numbers(one_class, columns["a"][0])[0] == pytest.approx(mean(precision[..., 0, 2]), abs=1e-12)
    assert {row["category_id"] for row in results} != {1}, "what was given stays unchanged"


def test_without_options_they_are_pycocotools_own():
    for kind in COCO_PARAMETERS:
        ours, theirs = chosen_parameters(kind, (), (), ()), COCOeval(iouType=kind).params
        assert (
            list(ours.ious) == theirs.iouThrs.tolist() == list(chosen_parameters(kind, ("0.5:0.95:0.05",), (), ()).ious)
        )
        assert [[low, high] for _, low, high in ours.areas] == theirs.areaRng
        assert [name for name, *_ in ours.areas] == theirs.areaRngLbl
        assert list(ours.limits) == theirs.maxDets
    assert COCO_PARAMETERS["bbox"].names == COCO_PARAMETERS["segm"].names == TWELVE
    assert COCO_PARAMETERS["keypoints"].names == (
        "AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")  # fmt: skip


def test_the_first_area_is_all_and_may_be_another_one():
    areas = chosen_parameters("bbox", (), ("small=0:1024", "all=100:1e5"), ()).areas
    assert areas == (("all", 100, 1e5), ("small", 0, 1024))
    assert chosen_parameters("bbox", (), ("small=0:1024",), ()).areas[0] == ("all", 0, 1e10)


@pytest.mark.parametrize(
    "ious, areas, limits, words",
    [
        (("0",), (), (), "--iou-thresholds 0: give numbers above 0"),
        (("1.5",), (), (), "--iou-thresholds 1.5"),
        (("half",), (), (), "--iou-thresholds half"),
        (("0.5:0.9",), (), (), "--iou-thresholds 0.5:0.9: .*FIRST:LAST:STEP"),
        (("0.5:0.9:0",), (), (), "--iou-thresholds 0.5:0.9:0"),
        (("0.5:0.9:0.3",), (), (), "do not reach 0.9"),
        (("0.1:0.9:1e-9",), (), (), "--iou-thresholds"),
        (("nan",), (), (), "--iou-thresholds nan"),
        (("0.5", "0.5"), (), (), "twice"),
        ((), ("0:1024",), (), "--area 0:1024: give NAME=MIN:MAX"),
        ((), ("a=5:1",), (), "--area a=5:1"),
        ((), ("a=0:nan",), (), "--area a=0:nan"),
        ((), ("s=0:1", "small=0:9"), (), None),
        ((), ("a=0:1", "a=0:9"), (), "--area: .*twice"),
        ((), (), (0,), "--max-dets must be between 1"),
        ((), (), (5, 5), "--max-dets: 5 5 names one of them twice"),
    ],
)
def test_what_cannot_be_read_is_named(ious, areas, limits, words):
    if words is None:
        assert len(set(chosen_parameters("bbox", ious, areas, limits).names)) == 10
        return
    with pytest.raises(ValueError, match=words):
        chosen_parameters("bbox", ious, areas, limits)
