"""Score and IoU of any detector's boxes, what suppression takes, and losses of single images: by hand and by loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.matching.suppression import SuppressionRule
from analysis.score_mismatch.boxes import FoundBoxes, ObjectBoxes
from analysis.score_mismatch.image_loss import ImageLoss
from analysis.score_mismatch.measure import DetectionMeasurement, measure_results
from analysis.score_mismatch.scores import (
    ComparedScores,
    compare_scores,
    histogram,
    rank_correlation,
    reliability,
    score_statistics,
)
from analysis.score_mismatch.statistics import detector_statistics
from analysis.score_mismatch.suppression import nms_rules
from data.labels.annotations import Annotations
from evaluation.results import clean_ground_truth
from models.assignment.options import AssignmentOptions
from models.checkpoints.load import LoadedNetwork
from models.checkpoints.report import LoadReport
from models.detector import Detector
from models.learner import BatchLoss, Learner
from models.loss import LossOptions
from models.nms_variants import NMS_KINDS, NmsRule
from tests.tiny_project import random_network
from utils.structures import Batch, ImageMeta, Targets

SIDE = 200  # of the images, pixels


def annotations_of(objects):
    """Annotations of objects (image, class, box, is crowd)."""
    objects = sorted(objects, key=lambda one: one[0])
    boxes = np.array([one[2] for one in objects], dtype=np.float64).reshape(-1, 4)
    images = max((one[0] for one in objects), default=0) + 1
    return Annotations(
        image_paths=[""] * images,
        image_ids=np.arange(images) + 10,
        image_wh=np.full((images, 2), SIDE),
        box_image=np.array([one[0] for one in objects], dtype=np.int32),
        boxes_xyxy=boxes,
        labels=np.array([one[1] for one in objects], dtype=np.int32),
        crowd=np.array([len(one) > 3 for one in objects], dtype=bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        annotation_ids=np.arange(len(objects)) + 1,
        names=("cat", "dog"),
        category_ids=(3, 7),
    )


def found_of(rows):
    """Boxes (image, class, box, score)."""
    image, label = (torch.tensor([row[index] for row in rows], dtype=torch.int64) for index in (0, 1))
    boxes = torch.tensor([row[2] for row in rows], dtype=torch.float64).reshape(-1, 4)
    return FoundBoxes(image, label, boxes, torch.tensor([row[3] for row in rows], dtype=torch.float64))


def results_of(rows):
    """The same as COCO's results."""
    return [
        {"image_id": image + 10, "category_id": (3, 7)[label], "score": score,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image, label, (x1, y1, x2, y2), score in rows
    ]  # fmt: skip


def compared(objects, rows, min_iou=0.1):
    return compare_scores(ObjectBoxes.of(annotations_of(objects)), found_of(rows), min_iou, 2)


def measured(objects, rows, kind="greedy", iou=0.6, confidence=0.25, agnostic=False):
    annotations = annotations_of(objects)
    nms = NmsRule(iou, None, kind, agnostic, confidence=confidence)
    truth = clean_ground_truth(annotations.to_coco())
    plan = DetectionMeasurement(annotations, truth, 0.1, SuppressionRule(confidence, iou), nms)
    return measure_results(plan, results_of(rows)), annotations


def plain_iou(a, b):
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / max(area_a + area_b - width * height, 1e-12)


CAT = (0, 0, (0, 0, 100, 100))


def test_the_strongest_box_is_not_the_best_one():
    # IoU 1 with score 0.5; 0.8 with 0.9; 0.05, which is too little; and a dog where the cat is.
    rows = [
        (0, 0, (0, 0, 100, 100), 0.5),
        (0, 0, (0, 0, 80, 100), 0.9),
        (0, 0, (0, 0, 5, 100), 0.95),
        (0, 1, (0, 0, 100, 100), 0.99),
        (1, 0, (0, 0, 100, 100), 0.99),  # another image
    ]
    alone = (0, 1, (150, 150, 190, 190))  # no dog is near it
    crowd = (0, 0, (0, 0, 80, 100), "crowd")  # no object
    found = compared([CAT, alone, crowd], rows)
    assert found.num_boxes.tolist() == [2, 0] and found.is_mismatch.tolist() == [True, False]
    np.testing.assert_allclose(found.best_iou, [1.0, np.nan])
    np.testing.assert_allclose(found.iou_of_strongest, [0.8, np.nan])
    numbers = score_statistics(found, np.array([True, True]))
    assert numbers["objects"] == 2 and numbers["with_box"] == {"objects": 1, "object_share": 0.5}
    assert numbers["mismatch"] == {"objects": 1, "object_share": 1.0, "several_share": 1.0}
    assert numbers["mean_iou_ratio"] == pytest.approx(0.8) and numbers["boxes"] == 2
    assert numbers["rank_correlation"] == pytest.approx(-1.0)  # the stronger of two fits worse
    nothing = score_statistics(found, np.array([False, True]))
    assert nothing["mismatch"]["object_share"] is None and nothing["mean_iou_ratio"] is None
    assert nothing["rank_correlation"] is None and nothing["mean_best_iou"] is None


def test_equal_scores_are_no_mismatch():
    rows = [(0, 0, (0, 0, 80, 100), 0.9), (0, 0, (0, 0, 100, 100), 0.9)]
    found = compared([CAT], rows)
    assert not found.is_mismatch.any() and found.iou_of_strongest.tolist() == [1.0]


def test_a_box_counts_once_in_the_picture_and_with_every_object_it_overlaps_in_the_comparison():
    # 0..100 and 50..150; the box 20..120 has an IoU of 80/120 with the first and of 70/130 with the second.
    found = compared([CAT, (0, 0, (50, 0, 150, 100))], [(0, 0, (20, 0, 120, 100), 0.97)])
    assert found.num_boxes.tolist() == [1, 1]
    assert found.box_object.tolist() == [0] and found.box_iou == pytest.approx(80 / 120)
    counts = np.array(histogram(found)["counts"])
    assert counts.sum() == 1 and counts[19, 13] == 1  # score 0.95 to 1, IoU 0.65 to 0.7
    last = reliability(found)[-1]
    assert (last["from"], last["boxes"], last["mean_score"]) == (0.95, 1, 0.97)
    assert reliability(found)[0]["mean_iou"] is None


def test_scores_beyond_one_are_in_the_last_bin():
    found = compared([CAT], [(0, 0, (0, 0, 100, 100), 7.5)])
    assert np.array(histogram(found)["counts"])[19, 19] == 1 and reliability(found)[-1]["boxes"] == 1


def test_no_box_and_no_object():
    assert compared([CAT], []).num_boxes.tolist() == [0]
    found = compared([], [(0, 0, (0, 0, 100, 100), 0.5)])
    assert score_statistics(found, np.zeros(0, dtype=bool))["with_box"] == {"objects": 0, "object_share": None}


def random_scene(seed, boxes_per_object=6):
    generator = np.random.default_rng(seed)
    objects, rows = [], []
    for _ in range(24):
        image, label = (int(generator.integers(2)) for _ in range(2))
        x1, y1 = generator.uniform(0, 120, 2)
        box = np.array((x1, y1, x1 + generator.uniform(15, 80), y1 + generator.uniform(15, 80)))
        objects.append((image, label, tuple(box.tolist())))
        for _ in range(boxes_per_object):
            corners = box + generator.normal(0, 6, 4)
            if (corners[2:] > corners[:2] + 1).all():
                score = round(float(generator.uniform(0.1, 1)), 2)  # with ties
                rows.append((image, label, tuple(corners.tolist()), score))
    return sorted(objects, key=lambda one: one[0]), rows


def plain_ranks(values):
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
            for value in values]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_plain_loop(seed):
    objects, rows = random_scene(seed)
    wanted, nearest = [], []
    for image, label, box in objects:
        mine = [(plain_iou(row[2], box), row[3]) for row in rows if row[:2] == (image, label)]
        mine = [one for one in mine if one[0] >= 0.1]
        best, sure = max(mine), max(mine, key=lambda one: (one[1], one[0]))
        wanted.append((len(mine), best[0], sure[0], best[1] < sure[1]))
    for image, label, box, score in rows:
        ious = [plain_iou(box, other[2]) for other in objects if other[:2] == (image, label)]
        if max(ious) >= 0.1:
            nearest.append((score, max(ious)))
    found = compared(objects, rows)
    assert found.num_boxes.tolist() == [one[0] for one in wanted]
    np.testing.assert_allclose(found.best_iou, [one[1] for one in wanted], rtol=1e-12)
    np.testing.assert_allclose(found.iou_of_strongest, [one[2] for one in wanted], rtol=1e-12)
    assert found.is_mismatch.tolist() == [one[3] for one in wanted] and any(found.is_mismatch)
    np.testing.assert_allclose(sorted(zip(found.box_score, found.box_iou, strict=True)), sorted(nearest), rtol=1e-12)
    scores, ious = zip(*nearest, strict=True)
    one, two = (np.array(plain_ranks(values)) for values in (scores, ious))
    one, two = one - one.mean(), two - two.mean()
    spearman = (one * two).sum() / math.sqrt((one**2).sum() * (two**2).sum())
    assert rank_correlation(found.box_score, found.box_iou) == pytest.approx(spearman, abs=1e-12)


def test_batches_of_images_give_what_all_images_give():
    objects, rows = random_scene(7)
    annotations = annotations_of(objects)
    parts = [
        compare_scores(ObjectBoxes.of(annotations, [image]), found_of([row for row in rows if row[0] == image]), 0.1, 2)
        for image in (0, 1)
    ]
    joined, whole = ComparedScores.joined(parts), compared(objects, rows)
    for name in ("num_boxes", "best_iou", "iou_of_strongest", "is_mismatch"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name
    pairs = [sorted(zip(one.box_object, one.box_score, one.box_iou, strict=True)) for one in (joined, whole)]
    assert pairs[0] == pairs[1]


def test_an_object_that_loses_its_box_to_a_neighbour_and_one_that_loses_its_best_box():
    # Two cats, 0..60 and 12..72 wide: IoU 48/72. Both are predicted exactly; the second one's box is the weaker.
    neighbours = [(0, 0, (0, 0, 60, 60)), (0, 0, (12, 0, 72, 60))]
    rows = [(0, 0, (0, 0, 60, 60), 0.9), (0, 0, (12, 0, 72, 60), 0.6)]
    # A dog of which the stronger box has an IoU of 0.8, the better one of 1.
    neighbours.append((1, 1, (0, 0, 100, 100)))
    rows += [(1, 1, (0, 0, 80, 100), 0.9), (1, 1, (0, 0, 100, 100), 0.7), (1, 1, (0, 0, 100, 100), 0.2)]
    found, annotations = measured(neighbours, rows)
    greedy = found.suppression["greedy"]
    assert (greedy.boxes_before, greedy.boxes_after, greedy.num_merged) == (4, 2, 1)
    assert greedy.found.all() and greedy.detected.tolist() == [True, False, True]
    assert greedy.suppressed.tolist() == [False, True, False] and not greedy.removed_by_none.any()
    np.testing.assert_allclose(greedy.best_before, [1, 1, 1])
    np.testing.assert_allclose(greedy.best_after, [1, 48 / 72, 0.8])
    numbers = detector_statistics(found, annotations, ["class"])
    of_all = numbers["suppression"]["greedy"]
    assert of_all["best_box_lost"] == {"objects": 2, "found_share": pytest.approx(2 / 3)}
    assert of_all["mean_iou_ratio"] == pytest.approx((1 + 48 / 72 + 0.8) / 3)
    assert of_all["suppressed"] == {"objects": 1, "object_share": pytest.approx(1 / 3)}
    assert numbers["by"]["class"]["dog"]["suppression"]["best_box_lost"] == {"objects": 1, "found_share": 1.0}
    # Of the boxes on the second cat, that of the first one is the stronger.
    assert numbers["by"]["class"]["cat"]["scores"]["detections"]["mismatch"]["objects"] == 1
    # The kinds that lower scores: 0.6 x (1 - 2/3) = 0.2 is below 0.25, 0.6 x exp(-(2/3)^2 / 0.5) = 0.247, too.
    for kind in ("soft-linear", "soft-gaussian"):
        assert found.suppression[kind].suppressed.tolist() == [False, True, False]
    # Averaged, the dog's box is (0.9 x 80 + 0.7 x 100) / 1.6 wide.
    assert found.suppression["merge"].best_after[2] == pytest.approx((0.9 * 80 + 0.7 * 100) / 160)


def test_a_box_of_another_class_suppresses_only_where_classes_do_not_matter():
    objects = [CAT, (0, 1, (0, 0, 100, 90))]
    rows = [(0, 0, (0, 0, 100, 100), 0.9), (0, 1, (0, 0, 100, 90), 0.8)]
    assert not measured(objects, rows)[0].suppression
    agnostic = measured(objects, rows, agnostic=True)[0].suppression["greedy"]
    assert agnostic.suppressed.tolist() == [False, True] and agnostic.detected.tolist() == [True, False]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(0, 0, (0, 0, 100, 100), 0.9), (0, 0, (60, 0, 150, 100), 0.8)], "drops none of its boxes"),
        ([(0, 0, (0, 0, 100, 100), 0.2), (0, 0, (0, 0, 100, 99), 0.2)], "above --conf-thres 0.25"),
    ],
)
def test_of_boxes_without_duplicates_no_suppression_is_told(rows, why):
    found, annotations = measured([CAT], rows)
    assert why in found.note
    numbers = detector_statistics(found, annotations, ["size"])
    assert numbers["suppression"] is None and numbers["by"]["size"]["large"]["suppression"] is None


def suppression_by_loops(objects, rows, iou):
    """Greedy suppression and the definitions of docs/analysis.md, one box at a time."""
    rows = sorted((row for row in rows if row[3] > 0.25), key=lambda row: -row[3])
    kept = []
    for row in rows:
        if all(row[:2] != other[:2] or plain_iou(row[2], other[2]) <= iou for other in kept):
            kept.append(row)

    def owner(row):
        fits = [(plain_iou(row[2], one[2]), -t) for t, one in enumerate(objects) if one[:2] == row[:2]]
        return -max(fits)[1] if max(fits)[0] >= 0.5 else None

    wanted = []
    for t, one in enumerate(objects):
        own = [row for row in rows if owner(row) == t]
        one_of_mine = [row for row in kept if owner(row) == t]
        by = "none"
        if own and not one_of_mine:
            stronger = [row for row in kept if row[:2] == own[0][:2] and row[3] >= own[0][3]]
            by = owner(max(stronger, key=lambda row, own=own: plain_iou(row[2], own[0][2])))
        best = [
            max((plain_iou(row[2], one[2]) for row in some if row[:2] == one[:2]), default=0) for some in (rows, kept)
        ]
        wanted.append((bool(own), bool(one_of_mine), by not in ("none", None), by is None, *best))
    return wanted, len(rows), len(kept)


@pytest.mark.parametrize("seed", range(3))
def test_suppression_equals_a_plain_loop(seed):
    objects, rows = random_scene(seed + 20, boxes_per_object=3)
    rows = [(*row[:3], row[3] + 1e-4 * number) for number, row in enumerate(rows)]  # no ties: their order is NMS's
    wanted, before, after = suppression_by_loops(objects, rows, 0.3)
    greedy = measured(objects, rows, iou=0.3)[0].suppression["greedy"]
    assert (greedy.boxes_before, greedy.boxes_after) == (before, after)
    names = ("found", "detected", "suppressed", "removed_by_none", "best_before", "best_after")
    for name, column in zip(names, zip(*wanted, strict=True), strict=True):
        np.testing.assert_allclose(getattr(greedy, name), column, err_msg=name, atol=1e-12)
    assert greedy.suppressed.any() or greedy.removed_by_none.any()


def test_the_chosen_kind_of_suppression_comes_first_and_cfg_only_where_it_says_something():
    assert next(iter(nms_rules(NmsRule(0.6)))) == "greedy" and "cfg" not in nms_rules(NmsRule(0.6))
    assert list(nms_rules(NmsRule(0.6, kind="merge")))[:2] == ["merge", "greedy"]
    assert set(nms_rules(NmsRule(0.6, cfg_beta=0.6))) == set(NMS_KINDS)


def batch_of(count):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 64, 96), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.4]]).repeat(count, 1)
    targets = Targets(torch.arange(count), torch.zeros(count, dtype=torch.int64), boxes)
    return Batch(images, targets, Targets.empty(), tuple(ImageMeta(i, "", (96, 64)) for i in range(count)))


def test_the_loss_of_an_image_is_that_of_a_training_step_with_it_alone():
    network, batch = random_network(), batch_of(2)
    loss = ImageLoss(network.learner(LossOptions(), AssignmentOptions(), (96, 64)))
    found = loss.parts(Detector(network), batch)
    for number in (0, 1):
        one = batch_of(2)
        targets = Targets(torch.zeros(1, dtype=torch.int64), one.targets.label[:1], one.targets.boxes_cxcywh[:1])
        learner = network.learner(LossOptions(), AssignmentOptions(), (96, 64)).eval()
        wanted = learner(one.images[number : number + 1] / 255, targets, Targets.empty()).parts
        assert found[number] == pytest.approx({name: part.item() for name, part in wanted.items()}, rel=1e-3)


@pytest.mark.parametrize(
    ("cfg", "trained", "match"),
    [
        ("fcos_resnet50_fpn", {}, "fcos"),
        ("retinanet_resnet50_fpn", {}, "maxiou"),
        ("retinanet_resnet50_fpn", {"match": "atss", "match_fallback": True, "epochs": 3}, "atss"),
        ("centernet_resnet18", {}, "standard"),  # which takes no other
        ("tiny.cfg", {}, "standard"),
        ("tiny.cfg", {"match": "tal"}, "tal"),
    ],
)
def test_single_images_are_assigned_as_the_network_learned(cfg, trained, match):
    asked = []

    class AskedNetwork(torch.nn.Module):
        cfg_path = cfg

        def require_trainable(self):
            pass

        def learner(self, loss, assignment, input_wh):
            asked.append(assignment)
            return DrawingLearner(self)

    ImageLoss.of(LoadedNetwork(AskedNetwork(), LoadReport("", 1, 1), options=trained), (64, 64))
    assert [one.match for one in asked] == [match]
    assert asked[0].match_fallback == ("match_fallback" in trained)


def test_the_loss_of_an_image_knows_the_masks_and_key_points_of_its_objects():
    batch, seen = batch_of(2), []
    masks, points = torch.arange(2)[:, None, None].expand(2, 64, 96), torch.arange(2.0)[:, None, None].expand(2, 5, 3)
    batch = replace(batch, targets=replace(batch.targets, masks=masks, key_points=points))
    learner = DrawingLearner(torch.nn.Identity())
    learner.forward = lambda images, targets, crowd: seen.append(targets) or BatchLoss({})
    ImageLoss(learner).parts(Detector(random_network()), batch)
    assert [one.masks.unique().tolist() for one in seen] == [one.key_points.unique().tolist() for one in seen]
    assert [(one.masks.shape, one.masks.max(), one.image.tolist()) for one in seen] == [
        ((1, 64, 96), 0, [0]),
        ((1, 64, 96), 1, [0]),
    ]


class DrawingLearner(Learner):
    """A loss of a network with a batch norm that looks at random numbers, and that only training computes."""

    def forward(self, images, targets, crowd):
        assert self.training
        return BatchLoss({"drawn": self.network(images).sum() + torch.rand(()), "objects": torch.tensor(len(targets))})


def test_a_loss_that_only_training_computes_is_the_same_every_time():
    norm = torch.nn.BatchNorm2d(3)
    loss = ImageLoss(DrawingLearner(torch.nn.Sequential(norm)))
    detector = Detector(random_network())
    before = torch.random.get_rng_state()
    first, again = (loss.parts(detector, batch_of(2)) for _ in range(2))
    assert first == again and [one["objects"] for one in first] == [1, 1]
    assert norm.running_mean.abs().sum() == 0  # nothing was learned
    drawn = torch.rand((), generator=torch.Generator().manual_seed(0))
    wanted = (batch_of(2).images[0] / 255 / math.sqrt(1 + norm.eps)).sum() + drawn
    assert first[0]["drawn"] == pytest.approx(float(wanted), rel=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)
