"""Masks and key points: overlaps, matches and resampled numbers are those of pycocotools on images written out."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as masks

from evaluation.bootstrap import ResampledNumbers
from evaluation.comparison import Compared, coco_numbers, with_intervals
from evaluation.overlaps import OKS_SIGMAS
from evaluation.parameters import COCO_PARAMETERS
from tests.test_evaluation_bootstrap import without_ties, written_out
from tests.test_evaluation_coco import random_case
from tests.test_evaluation_parameters import mean, referee
from utils.errors import UserError

SIZE_HW = (200, 300)


def numbers_of_pycocotools(truth, results, kind):
    """The numbers that pycocotools' summary would print, NaN for its -1."""
    if not results or not truth["annotations"]:
        return None
    precision, recall = referee(truth, results, kind)
    last = precision.shape[-1] - 1
    sizes = range(1, precision.shape[-2])
    numbers = [mean(precision[..., 0, last]), mean(precision[0, ..., 0, last]), mean(precision[5, ..., 0, last])]
    numbers += [mean(precision[..., area, last]) for area in sizes]
    if kind == "keypoints":
        numbers += [mean(recall[..., 0, last]), mean(recall[0, ..., 0, last]), mean(recall[5, ..., 0, last])]
    else:
        numbers += [mean(recall[..., 0, limit]) for limit in range(3)]
    return np.array(numbers + [mean(recall[..., area, last]) for area in sizes])


def run_lengths(box, generator, encoded=True):
    """An ellipse in a box with a bite out of it, as run lengths."""
    x, y, w, h = box
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    inside = ((columns - x - w / 2) / max(w, 1)) ** 2 + ((rows - y - h / 2) / max(h, 1)) ** 2 < 0.25
    inside[:, int(x + w * generator.random()) :][:, : int(w // 4)] = False
    found = masks.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()} if encoded else found


def mask_case(seed):
    """Boxes of a random case as masks: polygons and run lengths of objects, run lengths of crowds and detections."""
    truth, results = random_case(seed, num_images=5, num_classes=2)
    generator = np.random.default_rng(seed)
    for row in truth["annotations"]:
        x, y, w, h = row["bbox"]
        corners = [x, y, x + w, y, x + w / 2, y + h, x, y + h / 2]
        row["segmentation"] = run_lengths(row["bbox"], generator) if row["iscrowd"] or seed % 2 else [corners]
    for row in results:
        row["segmentation"] = run_lengths(row["bbox"], generator)
    kept = ("image_id", "category_id", "segmentation", "score")
    return truth, without_ties([{key: row[key] for key in kept} for row in results], seed)


def key_point_case(seed):
    """People with some, all or none of the 17 key points labelled, and detections near them."""
    truth, results = random_case(seed, num_images=6, num_classes=1)
    generator = np.random.default_rng(seed)

    def points(box, spread):
        x, y, w, h = box
        where = np.array([x, y]) + generator.random((17, 2)) * np.array([w, h]) * spread
        return np.concatenate((where.round(1), generator.integers(0, 3, (17, 1))), axis=1)

    for row in truth["annotations"]:
        found = points(row["bbox"], 1)
        if generator.random() < 0.3:
            found[:] = 0
        row |= {"keypoints": found.ravel().tolist(), "num_keypoints": int((found[:, 2] > 0).sum())}
    rows = []
    for row in results:
        near = [one for one in truth["annotations"] if one["image_id"] == row["image_id"]]
        found = np.array(near[int(generator.integers(len(near)))]["keypoints"]).reshape(17, 3)
        found = found if found.any() else points(row["bbox"], 1.5)
        found = found + np.array([1, 1, 0]) * generator.normal(scale=generator.choice([1, 5, 20]), size=(17, 3))
        category = truth["categories"][0]["id"]
        rows.append({"image_id": row["image_id"], "category_id": category, "score": row["score"],
                     "keypoints": found.round(2).ravel().tolist()})  # fmt: skip
    return truth, without_ties(rows, seed)


CASES = {"segm": mask_case, "keypoints": key_point_case}


@pytest.mark.parametrize("kind", CASES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_resample_is_the_evaluation_of_images_written_out(kind, seed):
    truth, results = CASES[kind](seed)
    ours = ResampledNumbers(truth, results, COCO_PARAMETERS[kind])
    images = len(truth["images"])
    drawn = np.random.default_rng(seed).integers(images, size=images)
    for weights in (np.ones(images, dtype=np.int32), np.bincount(drawn, minlength=images).astype(np.int32)):
        expected = numbers_of_pycocotools(*written_out(truth, results, weights), kind)
        if expected is not None:
            np.testing.assert_allclose(ours.numbers(weights), expected, atol=1e-12)


@pytest.mark.parametrize(
    "kind, results, truth",
    [
        ("segm", "instances_val2014_fakesegm100_results.json", "instances_val2014_100.json"),
        ("keypoints", "keypoints_dt.json", "keypoints_gt.json"),
    ],
)
def test_resamples_of_the_real_files(shared, kind, results, truth):
    folder = shared / "data/cocoapi"
    truth, results = json.loads((folder / truth).read_text()), json.loads((folder / results).read_text())
    if kind == "keypoints":  # one image: its people dealt out to four, so that there is something to draw
        truth["images"] = [{**truth["images"][0], "id": number} for number in range(1, 5)]
        for row in (*truth["annotations"], *results):
            row["image_id"] = 1 + int(row["bbox"][0]) % 4
    results = without_ties(results)
    images = len(truth["images"])
    weights = np.bincount(np.random.default_rng(1).integers(images, size=images), minlength=images).astype(np.int32)
    ours = ResampledNumbers(truth, results, COCO_PARAMETERS[kind]).numbers(weights)
    np.testing.assert_allclose(ours, numbers_of_pycocotools(*written_out(truth, results, weights), kind), atol=1e-12)


@pytest.mark.parametrize("kind", CASES)
def test_a_box_beside_gives_the_area_as_in_pycocotools(kind):
    truth, results = CASES[kind](11)
    results = [{**row, "bbox": [0, 0, 5 + number % 90, 40]} for number, row in enumerate(results)]
    once = np.ones(len(truth["images"]), dtype=np.int32)
    expected = numbers_of_pycocotools(truth, results, kind)
    np.testing.assert_allclose(
        ResampledNumbers(truth, results, COCO_PARAMETERS[kind]).numbers(once), expected, atol=1e-12
    )
    np.testing.assert_allclose(coco_numbers(truth, results, COCO_PARAMETERS[kind]), expected, atol=1e-12)


def test_intervals_of_masks_hold_the_number():
    truth, results = mask_case(6)
    parameters = COCO_PARAMETERS["segm"]
    columns = [
        (Compared(name, coco_numbers(truth, rows, parameters)[None]), [rows])
        for name, rows in (("a", results), ("b", copy.deepcopy(results)))
    ]
    (first, _), (difference,) = with_intervals(truth, columns, 100, parameters)
    assert first.interval[0, 0] <= first.numbers[0] <= first.interval[0, 1]
    assert (difference.numbers[~np.isnan(difference.numbers)] == 0).all() and difference.holds_zero().all()


def test_other_key_points_than_those_of_coco_are_refused():
    truth, results = key_point_case(2)
    results = [{**row, "keypoints": row["keypoints"][:15]} for row in results]
    with pytest.raises(UserError, match="5 key points; OKS is defined for COCO's 17"):
        ResampledNumbers(truth, results, COCO_PARAMETERS["keypoints"])


def test_the_sigmas_are_those_of_pycocotools():
    from pycocotools.cocoeval import Params

    assert OKS_SIGMAS.tolist() == Params("keypoints").kpt_oks_sigmas.tolist()
