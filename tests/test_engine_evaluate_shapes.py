"""Masks and key points are evaluated as pycocotools evaluates the files that are written."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.labels.annotations import Annotations, KeyPoints
from data.labels.polygons import Polygons
from engine.evaluate_shapes import evaluate_shapes, truth_with_shapes, write_shape_results
from evaluation.results import clean_ground_truth, coco_results
from utils.files import write_json_atomically
from utils.masks import BoxMasks
from utils.structures import KEY_POINTS, MASKS, Detections, ImageMeta

NUM_IMAGES, WIDTH, HEIGHT = 6, 200, 160


def scene(seed=0):
    """Return annotated images with masks and key points, and what a good detector finds in them."""
    generator = np.random.default_rng(seed)
    boxes, polygons, points, found = [], [], [], []
    for _ in range(NUM_IMAGES):
        sizes = generator.uniform(10, 110, (5, 2))
        start = generator.uniform(0, 1, (5, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
        of_image = np.concatenate((start, start + sizes), axis=1)
        boxes.append(of_image)
        middle = (of_image[:, :2] + of_image[:, 2:]) / 2
        polygons += [
            [np.array([[x1, cy], [cx, y1], [x2, cy], [cx, y2]])]
            for (x1, y1, x2, y2), (cx, cy) in zip(of_image, middle, strict=True)
        ]
        xy = start[:, None] + generator.uniform(0, 1, (5, 17, 2)) * sizes[:, None]
        points.append(np.concatenate((xy, generator.integers(0, 3, (5, 17, 1))), axis=2))
        noisy = torch.tensor(of_image + generator.normal(0, 4, (5, 4)), dtype=torch.float32)
        grid = 1 - (torch.arange(28) - 13.5).abs()[:, None] / 14 - (torch.arange(28) - 13.5).abs() / 14 + 0.5
        moved = torch.tensor(xy + generator.normal(0, 3, xy.shape), dtype=torch.float32)
        shapes = {
            "masks": BoxMasks(grid.clamp(0, 1).expand(5, -1, -1), noisy, (WIDTH, HEIGHT)),
            "key_points": torch.cat((moved, torch.ones(5, 17, 1)), dim=2),
        }
        scores = torch.tensor(generator.uniform(0.1, 1, 5), dtype=torch.float32)
        found.append(Detections(noisy, scores, torch.arange(5) % 2, **shapes))
    count = 5 * NUM_IMAGES
    all_boxes = np.concatenate(boxes)
    crowd = np.zeros(count, dtype=bool)
    crowd[7] = True
    annotations = Annotations(
        [""] * NUM_IMAGES, np.arange(1, NUM_IMAGES + 1), np.tile((WIDTH, HEIGHT), (NUM_IMAGES, 1)),
        np.repeat(np.arange(NUM_IMAGES), 5), all_boxes, np.arange(count) % 5 % 2, crowd,
        (all_boxes[:, 2:] - all_boxes[:, :2]).prod(axis=1) / 2, np.arange(1, count + 1), ("a", "b"), (1, 2),
        polygons=Polygons.of(polygons), key_points=KeyPoints(np.concatenate(points), np.arange(17)),
    )  # fmt: skip
    metas = [ImageMeta(number, "", (WIDTH, HEIGHT)) for number in range(1, NUM_IMAGES + 1)]
    results = [one for meta, of_image in zip(metas, found, strict=True) for one in coco_results(of_image, meta, (1, 2))]
    return annotations, results


def network(*finds, num_key_points=17):
    return SimpleNamespace(finds=frozenset(finds), num_key_points=num_key_points)


@pytest.mark.parametrize(("what", "kind"), [(MASKS, "segm"), (KEY_POINTS, "keypoints")])
def test_numbers_are_pycocotools_of_the_files(what, kind, tmp_path, capsys):
    annotations, results = scene()
    truth = truth_with_shapes(clean_ground_truth(annotations.to_coco()), annotations)
    found = evaluate_shapes(network(what), annotations, truth, results)
    printed = capsys.readouterr().out
    write_json_atomically(tmp_path / "ground_truth.json", truth)
    write_shape_results(tmp_path, network(what), results)
    rows = json.loads((tmp_path / f"detections_{kind}.json").read_text())
    assert len(rows) == 5 * NUM_IMAGES and "bbox" not in rows[0]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        index = COCO(str(tmp_path / "ground_truth.json"))
        evaluation = COCOeval(index, index.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = [None if value == -1 else value for value in evaluation.stats]
    assert list(found) == [kind] and list(found[kind].values()) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < found[kind]["AP"] < 1
    assert printed.splitlines()[0] == f"{what}:"
    assert printed.splitlines()[1:] == [line for line in text.getvalue().splitlines() if " @[ " in line]


def test_what_cannot_be_compared_is_said(capsys):
    annotations, results = scene()
    truth = truth_with_shapes(clean_ground_truth(annotations.to_coco()), annotations)
    boxes_alone = Annotations(**{**vars(annotations), "polygons": None, "key_points": None})
    assert truth_with_shapes(truth, boxes_alone) is truth
    assert evaluate_shapes(network(), annotations, truth, results) == {} and capsys.readouterr().out == ""
    for finder, data, reason in (
        (network(MASKS), boxes_alone, "masks are not evaluated: the data have no masks"),
        (network(KEY_POINTS), boxes_alone, "key points are not evaluated: the data have no key points"),
        (network(KEY_POINTS, num_key_points=5), annotations, "the network finds 5 of an object, the data have 17"),
    ):
        assert evaluate_shapes(finder, data, truth, results) == {} and reason in capsys.readouterr().out
    five = Annotations(**{**vars(annotations), "key_points": KeyPoints(np.zeros((30, 5, 3)), np.arange(5))})
    evaluate_shapes(network(KEY_POINTS, num_key_points=5), five, truth, results)
    assert "OKS is defined for COCO's 17, not for 5" in capsys.readouterr().out


def test_images_that_could_not_be_read_are_left_out_of_the_truth():
    annotations, _ = scene()
    truth = clean_ground_truth(annotations.to_coco())
    fewer = truth_with_shapes(truth | {"images": truth["images"][1:]}, annotations)
    assert len(fewer["annotations"]) == 25 and "segmentation" in fewer["annotations"][0]
