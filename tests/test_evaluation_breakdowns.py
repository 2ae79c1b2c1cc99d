"""AP of groups of objects: COCO's sizes, pycocotools with other areas, a plain loop for normalised precision."""

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.bootstrap import RECALLS
from evaluation.breakdowns import (
    Group,
    GroupEvaluation,
    all_objects,
    broken_down,
    groups_between,
    named_bins,
    side_groups,
    size_groups,
)
from evaluation.coco import evaluate_coco
from evaluation.matches import CocoMatcher
from evaluation.parameters import COCO_IOUS
from evaluation.results import clean_ground_truth
from tests.test_evaluation_coco import random_case
from tests.test_evaluation_error_kinds import iou_of


def nan_for(number):
    return np.nan if number < 0 else number


def evaluation_of(seed, **settings):
    truth, results = random_case(seed, **settings)
    truth = clean_ground_truth(truth)
    matcher = CocoMatcher(truth, results)
    return truth, results, matcher, GroupEvaluation(truth, matcher)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3]))
def test_all_objects_and_sizes_have_cocos_numbers(seed, crowd_share):
    truth, results, matcher, evaluation = evaluation_of(seed, crowd_share=crowd_share)
    coco = evaluate_coco(truth, results, "pycocotools")
    everything = evaluation.numbers(all_objects(matcher))
    ours = [everything.ap, everything.ap50, everything.ar]
    theirs = [coco.ap, coco.ap50, coco.ar100]
    for name, group in zip(("small", "medium", "large"), size_groups(matcher), strict=True):
        numbers = evaluation.numbers(group)
        ours += [numbers.ap, numbers.ar]
        theirs += [getattr(coco, f"ap_{name}"), getattr(coco, f"ar_{name}")]
    np.testing.assert_allclose(ours, list(map(nan_for, theirs)), atol=1e-12)
    by_class, _ = evaluation.by_class(all_objects(matcher))
    np.testing.assert_allclose(by_class[0], list(map(nan_for, coco.class_ap)), atol=1e-12)


def pycocotools_of_groups(truth, results, of_object, of_detection, count):
    """AP [G] by pycocotools, whose areas are numbers of groups; what is in no group has an area outside of all."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = copy.deepcopy(truth)
        for row, number in zip(index.dataset["annotations"], of_object, strict=True):
            row["area"] = float(number)
        index.createIndex()
        found = index.loadRes(copy.deepcopy(results))
        for row, number in zip(found.dataset["annotations"], of_detection, strict=True):
            row["area"] = float(number)
        evaluation = COCOeval(index, found, "bbox")
        evaluation.params.areaRng = [[number - 0.25, number + 0.25] for number in range(count)]
        evaluation.params.areaRngLbl = list(map(str, range(count)))
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    groups = [precision[:, :, :, group, 2] for group in range(count)]
    return [values[values > -1].mean() if (values > -1).any() else np.nan for values in groups]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3]))
def test_groups_that_detections_can_be_told_are_pycocotools_areas(seed, crowd_share):
    truth, results, _, evaluation = evaluation_of(seed, crowd_share=crowd_share)
    if not results:
        return
    generator = np.random.default_rng(seed)
    of_object = generator.integers(-1, 3, len(truth["annotations"]))
    of_detection = generator.integers(-1, 3, len(results))
    ours = [evaluation.numbers(group).ap for group in groups_between("abc", of_object, of_detection)]
    np.testing.assert_allclose(ours, pycocotools_of_groups(truth, results, of_object, of_detection, 3), atol=1e-12)


def ap_by_a_loop(truth, results, members, iou, category):
    """AP of one class at one IoU for a group that detections cannot be told, one detection after the other."""
    objects = [a for a in truth["annotations"] if a["category_id"] == category and not a["iscrowd"]]
    inside = [a for a in objects if a["id"] in members]
    if not inside:
        return np.nan
    place = {image: number for number, image in enumerate(sorted(one["id"] for one in truth["images"]))}
    chosen = [row for row in results if row["category_id"] == category]
    chosen = sorted(chosen, key=lambda row: (-row["score"], place[row["image_id"]]))  # stable, as pycocotools
    taken, right, wrong, points = set(), 0, 0.0, []
    for row in chosen:
        here = [a for a in truth["annotations"] if a["image_id"] == row["image_id"] and a["category_id"] == category]
        fits = [
            (a["id"] in members and not a["iscrowd"], iou_of(row["bbox"], a["bbox"], a["iscrowd"]), a["id"], a)
            for a in here
            if a["id"] not in taken
        ]
        fits = [fit for fit in fits if fit[1] >= iou]
        if not fits:
            wrong += len(inside) / len(objects)
            continue
        is_member, _, _, annotation = max(fits, key=lambda fit: fit[:3])
        if not annotation["iscrowd"]:
            taken.add(annotation["id"])
        if is_member:
            right += 1
            points.append((right / len(inside), right / (right + wrong)))
    return np.mean([max((p for reached, p in points if reached >= recall), default=0) for recall in RECALLS])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), crowd_share=st.sampled_from([0.0, 0.3]))
def test_groups_that_detections_cannot_be_told_against_a_plain_loop(seed, crowd_share):
    truth, results, _, evaluation = evaluation_of(seed, num_images=3, crowd_share=crowd_share)
    members = np.random.default_rng(seed).random(len(truth["annotations"])) < 0.4
    ids = {a["id"] for a, member in zip(truth["annotations"], members, strict=True) if member}
    by_class, _ = evaluation.by_class(Group("some", members))
    loop = np.array(
        [[ap_by_a_loop(truth, results, ids, iou, c["id"]) for c in truth["categories"]] for iou in COCO_IOUS]
    )
    np.testing.assert_allclose(by_class[:2], [loop.mean(axis=0), loop[0]], atol=1e-12)


def test_the_normalised_precision_by_hand():
    """Four objects, two of them in the group; found are one inside, then a false detection, then the other one."""
    images = [{"id": 1, "width": 400, "height": 100}]
    boxes = [[100.0 * n, 0.0, 50.0, 50.0] for n in range(4)]
    annotations = [{"id": n + 1, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    truth = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    truth = clean_ground_truth(truth)
    found = [boxes[0], [0.0, 60.0, 30.0, 30.0], boxes[3], boxes[1]]  # the third is outside of the group: ignored
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - n / 10} for n, box in enumerate(found)]
    matcher = CocoMatcher(truth, results)
    numbers = GroupEvaluation(truth, matcher).numbers(Group("left", np.array([True, True, False, False])))
    # Half a false detection: precision 1 up to recall 0.5 (51 of the 101 recalls), then 2 / 2.5.
    assert numbers.ap50 == pytest.approx((51 * 1 + 50 * 2 / 2.5) / 101)
    assert (numbers.objects, numbers.found, numbers.ar) == (2, 1, 1)


def test_rows_and_names():
    assert named_bins((0.1, 0.5)) == ["below 0.1", "0.1 to 0.5", "0.5 and more"]
    truth, _, matcher, _ = evaluation_of(3)
    rows = broken_down(truth, matcher, {"side": side_groups(matcher)})
    objects = sum(not one["iscrowd"] for one in truth["annotations"])
    for breakdown in ("all", "side", "class"):
        assert sum(row["objects"] for row in rows[breakdown]) == objects
    areas = {row["group"] for row in rows["side"]}
    assert areas <= set(named_bins((8, 16, 32, 64, 96, 128, 256, 512)))


def test_without_objects_or_detections():
    truth, _, _, _ = evaluation_of(3)
    empty = CocoMatcher(truth, [])
    assert broken_down(truth, empty, {"size": size_groups(empty)})["all"][0]["ap"] == 0
    nothing = clean_ground_truth({**truth, "annotations": []})
    matcher = CocoMatcher(nothing, [])
    (row,) = broken_down(nothing, matcher, {})["all"]
    assert row["objects"] == 0 and np.isnan(row["ap"])
