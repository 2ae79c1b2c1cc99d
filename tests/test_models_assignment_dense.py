"""The heads of RetinaNet and FCOS: where their anchors stand, and every strategy against plain Python on them."""

from types import SimpleNamespace

import pytest
import torch
from assignment_cases import ANCHORS, as_dict, coco_targets, match_maps, random_raw_maps, random_rows, targets_of
from assignment_oracle import Oracle

from models.assignment.assigner import build_assigner
from models.assignment.grid import grid_of_maps, grid_shapes, slot_grid
from models.assignment.inputs import AssignmentInput
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import strategies_for
from models.families.dense_heads import DenseOutputs, dense_heads, object_of_slots, raw_maps, refuse_options
from models.heads import DenseRule, Head, decode_map
from models.loss import LossOptions
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError
from utils.structures import Targets

detection = pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
box_ops = pytest.importorskip("torchvision.ops.boxes", exc_type=(ImportError, RuntimeError))
CLEAR = 1e-4  # decisions closer than this to their threshold may differ between float32 and float64
WITH_ANCHORS = (Head(ANCHORS[3:], 32, 3, rule=DenseRule()), Head(ANCHORS[:3], 16, 3, rule=DenseRule()))
POINTS = tuple(Head(((8.0 * stride,) * 2,), stride, 3, rule=DenseRule(has_anchors=False)) for stride in (16, 32))


def maps_of(heads, seed):
    """Random raw maps; where there is no objectness, it is certain."""
    shapes = tuple((96 // head.stride, 160 // head.stride) for head in heads)
    maps = random_raw_maps(heads, 3, seed, shapes=shapes)
    for raw in maps:
        raw[..., 4] = raw[..., 4] if heads[0].has_objectness else torch.inf
    return maps


@pytest.mark.parametrize(
    "heads, match",
    [*((WITH_ANCHORS, name) for name in ("standard", "ratio", "maxiou", "atss", "simota", "tal")),
     *((POINTS, name) for name in ("fcos", "atss", "simota", "tal"))],
)  # fmt: skip
def test_every_strategy_equals_the_oracle(heads, match):
    clear = 0
    for seed in range(10):
        rows_, maps = random_rows(seed), maps_of(heads, seed)
        oracle = Oracle(rows_, maps, heads)
        expected = getattr(oracle, match)()
        expected = expected[0] if match == "maxiou" else expected
        if oracle.margin < CLEAR:
            continue
        clear += 1
        found = match_maps(build_assigner(AssignmentOptions(match=match), heads), targets_of(rows_), maps)
        assert as_dict(found.base) == pytest.approx(expected, abs=1e-4)
    assert clear >= 4


@pytest.mark.parametrize("stride", [8, 32])
def test_atss_is_that_of_a_darknet_head_half_a_cell_further(stride):
    """A level of a RetinaNet and a ``[yolo]`` of the same anchors: theirs stand half a cell further right and down."""
    anchors = ((40.0, 24.0), (30.0, 60.0), (96.0, 80.0))
    generator = torch.Generator().manual_seed(stride)
    boxes = torch.rand(40, 4, generator=generator) * 0.4 + 0.2
    image, label = torch.arange(40) % 4, torch.arange(40) % 3
    shift = torch.tensor([stride / 2 / 256, stride / 2 / 256, 0, 0])
    found = []
    for head, moved in ((Head(anchors, stride, 3, rule=DenseRule()), boxes), (Head(anchors, stride, 3), boxes + shift)):
        grid = slot_grid((head,), ((256 // stride,) * 2,), torch.device("cpu"))
        assigner = build_assigner(AssignmentOptions(match="atss"), (head,))
        found.append(as_dict(assigner.match(Targets(image, label, moved), grid).base))
    assert len(found[0]) > 80 and found[0] == pytest.approx(found[1], abs=1e-5)


# --- torchvision's own, on the same slots

SIZES = ((96, 160), (800, 1088), (32, 32), (640, 640))  # height, width; 800 is 13 cells of 61 and 7 of 114 pixels


def generator_of(has_anchors):
    """torchvision's own anchors of RetinaNet, or of FCOS."""
    if has_anchors:
        return detection.retinanet._default_anchorgen()
    return detection.anchor_utils.AnchorGenerator(tuple((8 << level,) for level in range(5)), ((1.0,),) * 5)


def levels(has_anchors, height, width):
    """Heads, their grid, and torchvision's anchors [N 4]."""
    generator = generator_of(has_anchors)
    heads = dense_heads(SimpleNamespace(anchor_generator=generator), 3, has_anchors)
    shapes = grid_shapes(heads, (width, height))
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    images = detection.image_list.ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    return heads, slot_grid(heads, shapes, torch.device("cpu")), generator(images, maps)[0]


def in_their_order(grid, numbers):
    """Numbers [S ...] of the slots by head, anchor, row, column, in torchvision's order: head, row, column, anchor."""
    sizes = [head.num_anchors * rows_ * cols for head, (rows_, cols) in zip(grid.heads, grid.shapes, strict=True)]
    parts = zip(numbers.split(sizes), grid.heads, grid.shapes, strict=True)
    return torch.cat([part.unflatten(0, (head.num_anchors, -1)).transpose(0, 1).flatten(0, 1)
                      for part, head, _ in parts])  # fmt: skip


@pytest.mark.parametrize("height, width", SIZES)
def test_anchors_stand_where_torchvision_puts_them(height, width):
    _, grid, anchors = levels(True, height, width)
    place = grid.locate(torch.arange(grid.slots_per_image))
    assert torch.equal(in_their_order(grid, grid.anchors_xyxy(place.anchor, place.row, place.col)), anchors)
    _, grid, squares = levels(False, height, width)
    place = grid.locate(torch.arange(grid.slots_per_image))
    centers = (squares[:, :2] + squares[:, 2:]) / 2
    assert torch.equal(grid.points_xy(place.anchor, place.row, place.col), centers)


@pytest.mark.parametrize("has_anchors", [True, False])
def test_raw_maps_decode_to_the_boxes_and_scores_of_torchvision(has_anchors):
    height, width = 160, 96  # two cells of 48 in the width, where the stride is 64
    heads, grid, anchors = levels(has_anchors, height, width)
    coders = detection._utils
    coder = coders.BoxCoder((1.0,) * 4) if has_anchors else coders.BoxLinearCoder(normalize_by_size=True)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(2, len(anchors), 4, generator=generator)
    logits = torch.randn(2, len(anchors), 3, generator=generator)
    said = {"cls_logits": logits, "bbox_regression": numbers if has_anchors else numbers.relu()}
    if not has_anchors:
        said["bbox_ctrness"] = torch.randn(2, len(anchors), 1, generator=generator)
    numbers[0, :5, 2] = 9.0  # torchvision lets no box be 62.5 times as wide as its anchor
    maps = raw_maps(SimpleNamespace(box_coder=coder), DenseOutputs(said, anchors, grid.shapes), heads)
    boxes = [cxcywh_to_xyxy(decode_map(raw, head) * head.stride) for raw, head in zip(maps, heads, strict=True)]
    scores = [raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid() for raw in maps]
    for image in range(2):
        decode = coder.decode_single if has_anchors else coder.decode
        expected = decode(said["bbox_regression"][image], anchors)
        found = in_their_order(grid, torch.cat([part[image].flatten(0, 2) for part in boxes]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
        wanted = logits[image].sigmoid()
        wanted = wanted if has_anchors else (wanted * said["bbox_ctrness"][image].sigmoid()).sqrt()
        found = in_their_order(grid, torch.cat([part[image].flatten(0, 2) for part in scores]))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def objects_of_slots(heads, grid, anchors, targets, images, match):
    """What the loss would be given, [B N], and the boxes of the objects in pixels."""
    maps = [torch.zeros(()).expand(images, head.num_anchors, *shape, 5)
            for head, shape in zip(heads, grid.shapes, strict=True)]  # fmt: skip
    assignment = build_assigner(AssignmentOptions(match=match), heads).match(targets, grid, maps)
    outputs = DenseOutputs({"cls_logits": torch.empty(images, len(anchors), 0)}, anchors, grid.shapes)
    boxes_xyxy = AssignmentInput(targets, grid).boxes_xyxy
    return object_of_slots(assignment, targets, boxes_xyxy, grid, outputs), boxes_xyxy


def by_torchvision(has_anchors, grid, anchors, boxes_xyxy):
    """The same of one image, by torchvision: [N]."""
    if has_anchors:
        matcher = detection._utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
        return matcher(box_ops.box_iou(boxes_xyxy, anchors))
    head = SimpleNamespace(compute_loss=lambda targets, outputs, anchors, matched: matched[0])
    model = SimpleNamespace(center_sampling_radius=1.5, head=head)
    per_level = [rows_ * cols for rows_, cols in grid.shapes]
    return detection.fcos.FCOS.compute_loss(model, [{"boxes": boxes_xyxy}], {}, [anchors], per_level)


def compare(has_anchors, targets, images, height, width):
    """Compare every slot of every image with torchvision; return how many slots had an object, and were undecided."""
    heads, grid, anchors = levels(has_anchors, height, width)
    counts = torch.zeros(2, dtype=torch.int64)
    for start in range(0, images, 8):
        rows_ = (targets.image >= start) & (targets.image < start + 8)
        some = Targets(targets.image[rows_] - start, targets.label[rows_], targets.boxes_cxcywh[rows_])
        found, boxes_xyxy = objects_of_slots(heads, grid, anchors, some, 8, "maxiou" if has_anchors else "fcos")
        for image in range(8):
            mine = boxes_xyxy[some.image == image]
            if len(mine):
                expected = by_torchvision(has_anchors, grid, anchors, mine)
                other = found[image] != expected
                if not has_anchors and other.any():  # their areas are rounded to multiples of 8
                    size = (mine[:, 2:] - mine[:, :2]).prod(dim=1)
                    assert (found[image][other].min(), expected[other].min()) >= (0, 0)
                    assert (size[found[image][other]] - size[expected[other]]).abs().max() <= 8
                else:
                    assert not other.any()
            counts += torch.stack(((found[image] >= 0).sum(), (found[image] == -2).sum()))
    return counts.tolist()


@pytest.mark.parametrize("has_anchors", [True, False])
def test_random_objects_as_torchvision(has_anchors):
    generator = torch.Generator().manual_seed(4)
    size = torch.rand(60, 2, generator=generator) ** 2 * 0.6 + 0.02
    center = torch.rand(60, 2, generator=generator) * (1 - size) + size / 2
    targets = Targets(torch.arange(60) % 8, torch.zeros(60, dtype=torch.int64), torch.cat((center, size), dim=1))
    positive, undecided = compare(has_anchors, targets, 8, 224, 288)
    assert positive > 100 and (undecided > 100) == has_anchors


@pytest.mark.parametrize("has_anchors", [True, False])
def test_the_objects_of_128_images_as_torchvision(shared, has_anchors):
    targets, _ = coco_targets(shared, 640)
    assert len(targets) == 929
    positive, undecided = compare(has_anchors, targets, 128, 640, 640)
    assert positive > 5000 and (undecided > 1000) == has_anchors


# --- what is refused


def test_a_slot_wanted_by_several_learns_from_the_one_that_fits_best():
    heads, grid, anchors = levels(True, 64, 64)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]])  # 25.6 and 32 pixels: the anchor 3 of level 0
    targets = Targets(torch.tensor([0, 0]), torch.tensor([0, 1]), boxes)
    found, _ = objects_of_slots(heads, grid, anchors, targets, 1, "standard")
    slot = (4 * 8 + 4) * 9
    assert found[0, slot + 3] == 1  # shape IoU 1 and 0.64


@pytest.mark.parametrize(
    "heads, options, message",
    [
        (WITH_ANCHORS, {"match": "fcos"}, "whose heads have anchors; use one of standard"),
        (POINTS, {"match": "standard"}, "whose heads have no anchors; use one of atss, simota, tal, fcos"),
        (POINTS, {"match": "atss+ratio"}, "whose heads have no anchors"),
        (POINTS, {"match": "fcos", "match_fallback": True}, "^--match-fallback: leave it out"),
    ],
)
def test_a_strategy_for_other_heads_is_refused(heads, options, message):
    with pytest.raises(UserError, match=message):
        build_assigner(AssignmentOptions(**options), heads)


@pytest.mark.parametrize(
    "heads, loss, options, message",
    [
        (WITH_ANCHORS, {}, {"match": "fast"}, "^--match fast: makes extra matches, .*; use one of standard, ratio"),
        (WITH_ANCHORS, {}, {"match": "atss+tal"}, "^--match atss.tal: makes extra"),
        (WITH_ANCHORS, {}, {"match": "atss", "alpha": 0.3}, "^--alpha: leave it out; the loss of it is its own"),
        (WITH_ANCHORS, {"box": 2.0}, {"match": "atss"}, "^--box: leave it out"),
        (POINTS, {}, {"match": "fcos", "ignore_thresh": 0.5}, "^--ignore-thresh: leave it out"),
    ],
)  # fmt: skip
def test_what_the_loss_has_no_place_for_is_refused(heads, loss, options, message):
    with pytest.raises(UserError, match=message):
        refuse_options("it", LossOptions(**loss), AssignmentOptions(**options), heads)


def test_the_strategies_for_each_kind_of_head():
    assert strategies_for(has_anchors=False) == ["atss", "simota", "tal", "fcos"]
    assert "fcos" not in strategies_for() and "maxiou" in strategies_for()
    assert grid_of_maps(POINTS, maps_of(POINTS, 0)).shapes == ((6, 10), (3, 5))
