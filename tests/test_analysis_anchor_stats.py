"""Matches per anchor and per object: a case worked by hand, plain-Python counts, and the loader's own targets."""

import numpy as np
import pytest
import torch

from analysis.anchor_stats import anchor_stats
from analysis.mode import AnalyzeOptions, Request
from analysis.strategies import StrategyOptions
from data.labels.annotations import Annotations
from data.objects import boxes_in_input, select_objects
from models.assignment.assigner import build_assigner
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import prior_strategies, strategies_for
from models.heads import Head
from tests.assignment_cases import match_maps
from utils.structures import Targets

NAMES = ("cat", "dog")
FINE = ((10.0, 10.0), (20.0, 40.0))
COARSE = ((64.0, 64.0),)
ALL = (*FINE, *COARSE)
HEADS = (
    Head(FINE, 8, 2, all_anchors_wh=ALL, mask=(0, 1), ignore_thresh=0.7),
    Head(COARSE, 32, 2, all_anchors_wh=ALL, mask=(2,), ignore_thresh=0.7),
)


def annotations_of(boxes, image, labels=None, crowd=None, image_wh=((64, 64),)):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    return Annotations(
        image_paths=[""] * len(image_wh),
        image_ids=np.arange(len(image_wh)) + 7,
        image_wh=np.array(image_wh, dtype=np.int32),
        box_image=np.array(image, dtype=np.int32),
        boxes_xyxy=boxes,
        labels=np.zeros(count, np.int32) if labels is None else np.array(labels, dtype=np.int32),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd, dtype=bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        annotation_ids=np.arange(count) + 1,
        names=NAMES,
        category_ids=(1, 2),
    )


def options_of(*names):
    return StrategyOptions().for_strategies(list(names))


def test_standard_by_hand():
    # 64 x 64 images at 64 px: no scaling. Anchors 10x10 (100), 20x40 (800) at stride 8, 64x64 (4096) at stride 32.
    annotations = annotations_of(
        [
            (0, 0, 10, 20),  # 200: 100/200 = .5, 200/800 = .25, 200/4096 = .05: anchors 0 and 1; cell (0, 1)
            (0, 0, 11, 21),  # 231: 100/231 = .43, 231/800 = .29, .06: anchors 0 and 1; centre (5.5, 10.5), cell (0, 1)
            (0, 0, 64, 64),  # 4096: .02, 800/4096 = .195, 1: anchor 2 alone, in cell (1, 1) of the coarse head
            (0, 0, 2, 2),  # 4: 4/100 = .04 at best: no match
            (0, 0, 64, 64),  # a crowd region: no object
        ],
        [0, 0, 1, 1, 1],
        labels=[0, 0, 1, 1, 1],
        crowd=[0, 0, 0, 0, 1],
        image_wh=((64, 64), (64, 64)),
    )
    result = anchor_stats(annotations, HEADS, options_of("standard"), (64, 64))
    statistics = result.statistics["strategies"]["standard"]

    assert result.statistics["objects"] == 4
    assert statistics["positives"] == 5
    assert statistics["positives_per_object"] == {"mean": 5 / 4, "max": 2, "counts": [1, 1, 2]}
    assert statistics["unmatched"]["objects"] == 1
    assert statistics["unmatched"]["by_class"][0] == {
        "name": "cat",
        "objects": 2,
        "unmatched": 0,
        "unmatched_share": 0.0,
    }
    assert statistics["unmatched"]["by_class"][1]["unmatched_share"] == 0.5
    # Sizes of the original boxes: 200, 231, 4 are small; 4096 is medium.
    assert [row["objects"] for row in statistics["unmatched"]["by_size"]] == [3, 1, 0]
    assert [row["unmatched"] for row in statistics["unmatched"]["by_size"]] == [1, 0, 0]
    # Both small boxes claim the slots (image 0, cell (0, 1)) of anchor 0 and of anchor 1; the third slot has one owner.
    assert statistics["collisions"] == {
        "slots": 3,
        "shared_slots": 2,
        "shared_slot_share": 2 / 3,
        "surplus_matches": 2,
        "surplus_match_share": 2 / 5,
    }
    first, second, third = statistics["anchors"]
    assert (first["head"], first["stride"], first["anchor"], first["width"], first["objects"]) == (0, 8, 0, 10.0, 2)
    assert first["mean_shape_iou"] == pytest.approx((100 / 200 + 100 / 231) / 2)
    assert second["mean_shape_iou"] == pytest.approx((200 / 800 + 231 / 800) / 2)
    assert (third["objects"], third["object_share"], third["mean_shape_iou"]) == (1, 0.25, 1.0)
    # Best shape IoU: .5, .43, 1, .04; best ratio of sides: 2, 2.1, 1, 5.
    recall = result.statistics["best_possible_recall"]
    assert recall["by_iou"] == 3 / 4
    assert recall["by_ratio"] == 3 / 4
    assert recall["mean_best_iou"] == pytest.approx((0.5 + 100 / 231 + 1 + 0.04) / 4)
    lost = next(table for table in result.tables if table.name == "unmatched_objects")
    assert lost.rows == (("standard", "8", "4", "dog", 2.0, 2.0, 0.04),)


def test_the_threshold_is_an_option():
    annotations = annotations_of([(0, 0, 10, 20)], [0])  # .5, .25 and .05, as above
    for iou_t, positives in ((0.04, 3), (0.3, 1), (0.5, 0)):
        strategies = StrategyOptions(match="standard", iou_t=iou_t).for_strategies(["standard"])
        result = anchor_stats(annotations, HEADS, strategies, (64, 64))
        assert result.statistics["strategies"]["standard"]["positives"] == positives
        assert result.statistics["best_possible_recall"]["by_iou"] == float(positives > 0)


def random_annotations(seed):
    rng = np.random.default_rng(seed)
    image_wh = rng.integers(30, 200, (6, 2))
    image = np.sort(rng.integers(0, 6, 60))
    size = np.maximum(rng.random((60, 2)) ** 2 * image_wh[image], 1)
    low = rng.random((60, 2)) * (image_wh[image] - size)
    boxes = np.concatenate((low, low + size), axis=1)
    return annotations_of(boxes, image, rng.integers(0, 2, 60), rng.random(60) < 0.1, image_wh)


def targets_of(objects, image, size):
    """The targets of one image, worked out one box at a time from the definition of a letterbox."""
    rows = [row for row in range(len(objects)) if objects.image[row] == image]
    width, height = map(int, objects.image_wh[image])
    ratio = min(size / width, size / height)
    new_w, new_h = round(width * ratio), round(height * ratio)
    boxes = []
    for row in rows:
        x1, y1, x2, y2 = objects.boxes_xyxy[row]
        x1, x2 = (x * new_w / width + (size - new_w) // 2 for x in (x1, x2))
        y1, y2 = (y * new_h / height + (size - new_h) // 2 for y in (y1, y2))
        boxes.append(((x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size))
    return rows, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_plain_python_counts(seed, monkeypatch):
    """One image at a time, with sets of slots; blocks of a few objects against one block."""
    monkeypatch.setattr("analysis.anchor_stats.OBJECTS_PER_BLOCK", 7)
    annotations, size = random_annotations(seed), 96
    names = prior_strategies()
    result = anchor_stats(annotations, HEADS, options_of(*names), (size, size))
    objects = select_objects(annotations, crowd=False)
    for name in names:
        assigner = build_assigner(AssignmentOptions(match=name), HEADS)
        owners, anchors_of = {}, {row: [] for row in range(len(objects))}
        for image in range(objects.num_images):
            rows, boxes = targets_of(objects, image, size)
            raw_maps = [torch.randn(1, head.num_anchors, size // head.stride, size // head.stride, 7) for head in HEADS]
            targets = Targets(torch.zeros(len(rows), dtype=torch.int64), torch.tensor(objects.labels[rows]), boxes)
            found = match_maps(assigner, targets, raw_maps).base
            slots = torch.stack((found.target, found.head, found.anchor, found.row, found.col), dim=1)
            for t, head, a, j, i in slots.tolist():
                owners.setdefault((image, head, a, j, i), set()).add(rows[t])
                anchors_of[rows[t]].append((head, a))
        statistics = result.statistics["strategies"][name]
        matches = [len(found) for found in anchors_of.values()]
        assert statistics["positives"] == sum(matches)
        assert statistics["positives_per_object"]["counts"] == [matches.count(n) for n in range(max(matches) + 1)]
        assert statistics["unmatched"]["objects"] == matches.count(0)
        assert statistics["collisions"]["slots"] == len(owners)
        assert statistics["collisions"]["shared_slots"] == sum(len(owner) > 1 for owner in owners.values())
        for row in statistics["anchors"]:
            slot = (row["head"], row["anchor"])
            matched = [index for index, found in anchors_of.items() if slot in found]
            assert row["objects"] == len(matched)
            assert row["positives"] == sum(found.count(slot) for found in anchors_of.values())
            if matched:
                ious = [wh_iou_of(objects, index, (row["width"], row["height"]), size) for index in matched]
                assert row["mean_shape_iou"] == pytest.approx(sum(ious) / len(ious), rel=1e-5)


def wh_iou_of(objects, row, anchor, size):
    image_w, image_h = map(int, objects.image_wh[objects.image[row]])
    ratio = min(size / image_w, size / image_h)
    w, h = objects.boxes_xyxy[row, 2:] - objects.boxes_xyxy[row, :2]
    w, h = w * round(image_w * ratio) / image_w, h * round(image_h * ratio) / image_h
    inter = min(w, anchor[0]) * min(h, anchor[1])
    return inter / (w * h + anchor[0] * anchor[1] - inter)


def test_recall_equals_the_share_of_matched_objects():
    """Best possible recall is a property of the anchors alone; standard and ratio reach it by definition."""
    result = anchor_stats(random_annotations(9), HEADS, options_of("standard", "ratio"), (96, 96))
    recall, strategies = result.statistics["best_possible_recall"], result.statistics["strategies"]
    assert recall["by_iou"] == 1 - strategies["standard"]["unmatched"]["object_share"]
    assert recall["by_ratio"] == 1 - strategies["ratio"]["unmatched"]["object_share"]
    assert 0 < recall["by_iou"] < recall["by_ratio"]


def test_boxes_lie_where_the_loader_puts_them(shared):
    from data.dataset import BatchPlan, DetectionDataset
    from data.labels.read import read_dataset
    from data.splits import open_data

    path = shared / "data/coco/annotations/instances_val2017.json"
    annotations = read_dataset(open_data(str(path)), "valid").select_images(np.arange(12))
    objects = select_objects(annotations, crowd=False)
    batch = DetectionDataset(annotations).plain_batch(BatchPlan(tuple(range(12)), (416, 416)))
    np.testing.assert_allclose(boxes_in_input(objects, (416, 416)), batch.targets.boxes_cxcywh.numpy(), atol=1e-6)
    assert objects.image.tolist() == batch.targets.image.tolist()


def test_coco_at_416_and_640_is_what_others_counted(shared):
    """At 416 counted by separate numpy code, at 640 by ultralytics/yolov5 v5.0 (tutorial.ipynb, on the same images)."""
    path = str(shared / "data/coco/annotations/instances_train2017.json")
    about = AnalyzeOptions(data=path, cfg="yolov3.cfg", img_size=(416,))
    request = Request(about, about, {}, {})
    annotations, (heads, *_) = request.annotations(), request.heads(80)
    result = anchor_stats(annotations, heads, options_of("standard", "ratio", "darknet"), (416, 416))
    statistics = result.statistics["strategies"]
    assert statistics["standard"]["unmatched"]["object_share"] == pytest.approx(0.034, abs=5e-4)
    assert statistics["ratio"]["unmatched"]["object_share"] == pytest.approx(0.018, abs=5e-4)
    assert statistics["ratio"]["positives_per_object"]["mean"] == pytest.approx(12.5, abs=0.05)
    assert statistics["ratio"]["collisions"]["surplus_match_share"] == pytest.approx(0.063, abs=1e-3)
    assert statistics["darknet"]["collisions"]["surplus_match_share"] == pytest.approx(0.024, abs=1e-3)
    assert result.statistics["best_possible_recall"]["by_ratio"] == pytest.approx(1 - 0.018, abs=5e-4)
    # 4.26 anchors per target and a best possible recall of 0.9946 at 640.
    at_640 = anchor_stats(annotations, heads, options_of("ratio"), (640, 640)).statistics
    assert at_640["best_possible_recall"]["by_ratio"] == pytest.approx(0.9946, abs=5e-5)
    per_object = sum(row["objects"] for row in at_640["strategies"]["ratio"]["anchors"]) / at_640["objects"]
    assert per_object == pytest.approx(4.26, abs=5e-3)


@pytest.mark.parametrize("boxes", [[], [(0, 0, 2, 2)]])
def test_no_object_or_none_matched(boxes):
    result = anchor_stats(annotations_of(boxes, [0] * len(boxes)), HEADS, options_of("standard"), (64, 64))
    statistics = result.statistics["strategies"]["standard"]
    assert statistics["positives"] == 0
    assert statistics["collisions"]["shared_slot_share"] is None
    assert statistics["unmatched"]["objects"] == len(boxes)
    assert all(row["mean_shape_iou"] is None for row in statistics["anchors"])


@pytest.mark.parametrize("name", strategies_for())
def test_prior_strategies_are_those_that_do_not_look_at_predictions(name):
    """Random and other random predictions give other matches exactly where the strategy is not listed."""
    torch.manual_seed(3)
    boxes = torch.rand(40, 4) * 0.5 + 0.1
    targets = Targets(torch.arange(40) % 4, torch.arange(40) % 2, boxes)
    assigner = build_assigner(AssignmentOptions(match=name), HEADS)
    found = []
    for _ in range(2):
        raw_maps = [torch.randn(4, head.num_anchors, 96 // head.stride, 96 // head.stride, 7) for head in HEADS]
        assignment = match_maps(assigner, targets, raw_maps)
        found.append(
            [
                torch.stack((m.target, m.head, m.anchor, m.row, m.col)).tolist()
                for m in (assignment.base, assignment.extra)
            ]
        )
    assert (found[0] == found[1]) == (name in prior_strategies())


def test_each_strategy_takes_the_options_it_uses():
    options = StrategyOptions(match="standard,ratio", iou_t=0.3, anchor_t=3.0)
    each = options.for_strategies(["standard", "ratio"])
    assert (each["standard"].iou_t, each["standard"].anchor_t) == (0.3, None)
    assert (each["ratio"].iou_t, each["ratio"].anchor_t) == (None, 3.0)
    with pytest.raises(ValueError, match="--extra-iou is used by none of --match standard,ratio"):
        StrategyOptions(match="standard,ratio", extra_iou=0.6)
    with pytest.raises(ValueError, match="did you mean 'ratio'"):
        StrategyOptions(match="standard,ratoi")
