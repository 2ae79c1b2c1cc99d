"""COCO's evaluation against pycocotools, and precision and recall worked by hand."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.coco import TWELVE, evaluate_coco, has_objects
from evaluation.matches import CocoMatcher
from evaluation.operating_point import precision_recall_at_best_f1
from evaluation.results import clean_ground_truth
from utils.errors import UserError

TWELVE_NAMES = [row[0] for row in TWELVE]


def twelve(metrics):
    return [getattr(metrics, name) for name in TWELVE_NAMES]


def pycocotools_stats(ground_truth, results):
    """The twelve numbers and the text of pycocotools itself, used as its documentation says."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        truth = COCO()
        truth.dataset = json.loads(json.dumps(ground_truth))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation, printed.getvalue()


def random_case(seed, num_images=6, num_classes=3, crowd_share=0.2):
    """Random objects, crowds and detections near them; few score levels, so that ties are frequent."""
    generator = np.random.default_rng(seed)
    images = [{"id": 10 + 3 * i, "width": 300, "height": 200} for i in range(num_images)]
    categories = [{"id": 1 + 2 * c, "name": f"c{c}"} for c in range(num_classes)]
    annotations, results = [], []
    for image in images:
        for _ in range(int(generator.integers(0, 7))):
            size = generator.integers(1, 130, 2)
            corner = generator.integers(0, 150, 2)
            box = [*map(float, corner), *map(float, size)]
            category = int(generator.choice([c["id"] for c in categories]))
            crowd = int(generator.random() < crowd_share)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": box}
                | {"area": float(size.prod() * generator.choice([1, 0.5])), "iscrowd": crowd}
            )
            for _ in range(int(generator.integers(0, 4))):
                shift = generator.integers(-12, 13, 4)
                found = [float(v) for v in np.maximum(np.array(box) + shift, 0)]
                score = float(generator.integers(1, 20)) / 20
                other = int(generator.choice([c["id"] for c in categories]))
                label = category if generator.random() < 0.8 else other
                results.append({"image_id": image["id"], "category_id": label, "bbox": found, "score": score})
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, results


def test_reference_results_of_the_coco_api(shared):
    folder = shared / "data/cocoapi"
    ground_truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    printed = (folder / "val2014_fake_eval_res.txt").read_text().split("type=bbox")[1].splitlines()
    reference = [line for line in printed if line.startswith(" Average")][:12]
    for backend in ("hotcoco", "pycocotools"):
        metrics = evaluate_coco(ground_truth, results, backend)
        ours = metrics.summary().splitlines()
        # The file is older than pycocotools' present spacing of the titles, so words are compared.
        assert [line.split() for line in ours] == [line.replace("(AP)", " (AP)").split() for line in reference]
        evaluation, text = pycocotools_stats(ground_truth, results)
        assert metrics.summary() in text
        assert twelve(metrics) == evaluation.stats.tolist()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3, 1.0]))
def test_hotcoco_equals_pycocotools_to_the_last_bit(seed, crowd_share):
    ground_truth, results = random_case(seed, crowd_share=crowd_share)
    fast = evaluate_coco(ground_truth, results, "hotcoco")
    referee = evaluate_coco(ground_truth, results, "pycocotools")
    assert dataclasses.replace(fast, evaluator="pycocotools") == referee
    if results and any(not a["iscrowd"] for a in ground_truth["annotations"]):
        assert twelve(fast) == pycocotools_stats(ground_truth, results)[0].stats.tolist()


@pytest.mark.parametrize(
    "box", [[50, 50, 0, 10], [50, 50, 10, 0], [50, 50, 0, 0], [50, 50, -10, 10], [50, 50, -10, -10], [500, 50, 10, 10]]
)
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_a_box_without_size_or_outside_can_be_missed(box, backend):
    # Two objects of class 7, of which the second has a box that nothing overlaps: AP is that of a recall of 1/2, 51 of
    # the 101 points.
    ground_truth = one_image((7, [0, 0, 10, 10], 0), (7, box, 0))
    ground_truth["annotations"][1]["area"] = max(0, box[2]) * max(0, box[3])
    results = [found(7, [0, 0, 10, 10], 0.9), found(7, [50, 50, 10, 10], 0.8), found(7, [90, 50, 10, 10], 0.7)]
    metrics = evaluate_coco(ground_truth, results, backend)
    assert twelve(metrics) == pycocotools_stats(ground_truth, results)[0].stats.tolist()
    assert metrics.ap == pytest.approx(51 / 101) and metrics.recall == 0.5
    assert metrics.num_instances == 2


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_matching_at_half_equals_pycocotools(seed):
    ground_truth, results = random_case(seed)
    if not results:
        return
    evaluation, _ = pycocotools_stats(ground_truth, results)
    expected = {}
    for image in evaluation.evalImgs:
        if image and image["aRng"] == [0, 1e10]:
            for number, found in enumerate(image["dtIds"]):
                matched, ignored = image["dtMatches"][0, number] > 0, image["dtIgnore"][0, number]
                expected[found - 1] = (bool(matched and not ignored), bool(ignored))
    matches = CocoMatcher(clean_ground_truth(ground_truth), results).matches(0.5)
    ours = list(zip(matches.correct.tolist(), matches.ignored.tolist(), strict=True))
    assert {number: ours[number] for number in expected} == expected
    assert len(expected) == len(results)


def one_image(*annotations, categories=(7, 3)):
    rows = [
        {"id": i, "image_id": 5, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for i, (c, box, crowd) in enumerate(annotations, start=1)
    ]
    return {
        "images": [{"id": 5, "width": 100, "height": 100}],
        "categories": [{"id": c, "name": f"name{c}"} for c in categories],
        "annotations": rows,
    }


def found(category, box, score):
    return {"image_id": 5, "category_id": category, "bbox": box, "score": score}


def test_precision_and_recall_worked_by_hand():
    # Class 7 has two objects; scores .9 right, .8 wrong, .6 right. Class 3 has one object, found at .7.
    ground_truth = one_image((7, [0, 0, 10, 10], 0), (7, [50, 0, 10, 10], 0), (3, [0, 50, 20, 20], 0))
    results = [
        found(7, [0, 0, 10, 10], 0.9),
        found(7, [80, 80, 10, 10], 0.8),
        found(7, [50, 0, 10, 10], 0.6),
        found(3, [0, 50, 20, 20], 0.7),
    ]
    # Up to .6: class 7 has P 2/3, R 1, F1 .8, class 3 has F1 1, mean .9.
    # Between .6 and .7: class 7 has P 1/2, R 1/2, F1 .5, mean .75.
    point = precision_recall_at_best_f1(clean_ground_truth(ground_truth), results)
    assert 0 <= point.confidence <= 0.6
    assert point.precision == (pytest.approx(2 / 3), 1.0) and point.recall == (1.0, 1.0)
    metrics = evaluate_coco(ground_truth, results)
    assert metrics.precision == pytest.approx((2 / 3 + 1) / 2) and metrics.recall == 1.0
    # AP50 of class 7: recall .5 at precision 1, recall 1 at precision 2/3: 51 points of 1 (0..0.50), 50 of 2/3.
    assert metrics.class_ap50 == (pytest.approx((51 + 50 * 2 / 3) / 101), pytest.approx(1.0))
    # The order of the categories is that of the file, not that of the ids.
    assert metrics.names == ("name7", "name3")
    assert metrics.class_instances == (2, 1) and metrics.class_images == (1, 1) and metrics.num_instances == 3


def test_a_crowd_region_makes_detections_neither_right_nor_wrong():
    ground_truth = one_image((7, [0, 0, 10, 10], 0), (7, [40, 40, 50, 50], 1))
    inside_crowd = [found(7, [50 + i, 50, 10, 10], 0.95) for i in range(5)]
    metrics = evaluate_coco(ground_truth, [found(7, [0, 0, 10, 10], 0.5), *inside_crowd])
    assert metrics.ap == pytest.approx(1.0) and metrics.precision == 1.0
    assert metrics.num_instances == 1  # the crowd is no instance


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_detections_give_zero_and_no_objects_give_minus_one(backend):
    ground_truth = one_image((7, [0, 0, 10, 10], 0))
    metrics = evaluate_coco(ground_truth, [], backend)
    assert metrics.ap == metrics.ap50 == metrics.recall == metrics.precision == 0
    assert metrics.class_ap == (0.0, -1.0) and metrics.ap_large == -1.0  # nothing of class 3, nothing large
    for empty in (one_image(), one_image((7, [0, 0, 10, 10], 1))):
        for results in ([], [found(7, [0, 0, 10, 10], 0.5)]):
            metrics = evaluate_coco(empty, results, backend)
            assert set(twelve(metrics)) == {-1.0} and metrics.precision == metrics.recall == -1.0
    nothing = {"images": [], "categories": [], "annotations": []}
    assert evaluate_coco(nothing, [], backend).num_images == 0


def test_what_nothing_defines_is_null_in_files():
    values = evaluate_coco(one_image((7, [0, 0, 10, 10], 0)), []).to_dict()
    assert (values["ap"], values["ap_small"], values["ap_large"], values["precision"]) == (0, 0, None, 0)
    assert values["classes"][1] == {"name": "name3", "ap": None, "ap50": None, "precision": None, "recall": None,
                                    "images": 0, "instances": 0}  # fmt: skip
    empty = one_image((7, [0, 0, 10, 10], 1))
    assert not has_objects(empty) and has_objects(one_image((7, [0, 0, 10, 10], 0)))
    values = evaluate_coco(empty, [found(7, [0, 0, 10, 10], 0.5)]).to_dict()
    assert {values[row[0]] for row in TWELVE} == {None} and values["best_f1_confidence"] is None
    assert "-1" not in json.dumps(values)


def test_an_object_with_id_zero_is_not_lost():
    # pycocotools stores the id of the match and reads 0 as "no match".
    ground_truth = one_image((7, [0, 0, 10, 10], 0))
    ground_truth["annotations"][0]["id"] = 0
    for backend in ("hotcoco", "pycocotools"):
        assert evaluate_coco(ground_truth, [found(7, [0, 0, 10, 10], 0.5)], backend).ap == pytest.approx(1.0)
    assert ground_truth["annotations"][0]["id"] == 0  # the caller's data stays as it was


def test_only_the_strongest_hundred_of_an_image_and_class_count():
    ground_truth = one_image((7, [0, 0, 10, 10], 0))
    wrong = [found(7, [50, 50, 10, 10], 0.9) for _ in range(100)]
    metrics = evaluate_coco(ground_truth, [*wrong, found(7, [0, 0, 10, 10], 0.1)])
    assert metrics.ap == 0 and metrics.recall == 0


def test_results_are_not_changed_and_dict_is_plain_json():
    ground_truth, results = random_case(1)
    copy = json.dumps([ground_truth, results])
    metrics = evaluate_coco(ground_truth, results, "pycocotools")
    assert json.dumps([ground_truth, results]) == copy
    values = json.loads(json.dumps(metrics.to_dict()))
    assert values["ap"] == metrics.ap and values["classes"][1]["name"] == "c1"
    assert values["classes"][1]["ap50"] == metrics.class_ap50[1] and "class_ap" not in values


def test_mistakes_are_named():
    ground_truth = one_image((7, [0, 0, 10, 10], 0))
    with pytest.raises(UserError, match="image_id 99"):
        evaluate_coco(ground_truth, [found(7, [0, 0, 1, 1], 0.5) | {"image_id": 99}])
    with pytest.raises(UserError, match="category_id 4"):
        evaluate_coco(ground_truth, [found(4, [0, 0, 1, 1], 0.5)])
    with pytest.raises(UserError, match="hotcoco, pycocotools"):
        evaluate_coco(ground_truth, [], "mine")


def test_of_two_equal_overlaps_the_later_annotation_is_taken():
    # Objects at x 10..20 and 14..24; the stronger detection at 12..22 overlaps both by 80/120, the weaker one at 8..18
    # only the first (80/120; the second by 40/160). pycocotools gives the second to the stronger, so both are right.
    ground_truth = one_image((7, [10, 0, 10, 10], 0), (7, [14, 0, 10, 10], 0))
    results = [found(7, [12, 0, 10, 10], 0.9), found(7, [8, 0, 10, 10], 0.8)]
    assert CocoMatcher(clean_ground_truth(ground_truth), results).matches(0.5).correct.tolist() == [True, True]
    assert evaluate_coco(ground_truth, results, "pycocotools").class_ap50[0] == pytest.approx(1.0)
