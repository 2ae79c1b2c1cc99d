"""Scenes for the tests of the analyses: raw maps made by hand or by chance, and a plain-Python reading of them.

The reading is an implementation of its own: loops over single slots, the formulas of docs/assignment.md and the IoU
family written out, in Python's numbers. Nothing of the code under test is used for it.
"""

import math
from types import SimpleNamespace

import torch

from analysis.matching.measure import MeasurementPlan, Measurements, measure_raw_maps
from analysis.matching.suppression import SuppressionRule
from models.assignment.assigner import build_assigner
from models.assignment.options import AssignmentOptions
from models.heads import Head
from tests.assignment_cases import match_maps
from utils.structures import Batch, ImageMeta, Targets


def targets_of(objects, input_wh):
    """Targets from rows (image, label, x1, y1, x2, y2) in network pixels."""
    width, height = input_wh
    boxes = [[(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
             for _, _, x1, y1, x2, y2 in objects]  # fmt: skip
    image, label = ([row[i] for row in objects] for i in (0, 1))
    return Targets(torch.tensor(image, dtype=torch.int64), torch.tensor(label, dtype=torch.int64),
                   torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))  # fmt: skip


def quiet_maps(heads, images, input_wh):
    """Raw maps whose slots predict their anchor in the middle of their cell, without any confidence."""
    maps = []
    for head in heads:
        shape = (images, head.num_anchors, input_wh[1] // head.stride, input_wh[0] // head.stride, 5 + head.num_classes)
        raw = torch.zeros(shape)
        raw[..., 4:] = -9.0
        maps.append(raw)
    return maps


def say(raw_maps, heads, slot, box, objectness=-9.0, classes=()):
    """Let a slot (image, head, anchor, row, col) predict a box (x1, y1, x2, y2) whose centre lies inside its cell."""
    image, index, anchor, row, col = slot
    head = heads[index]
    x, y = (box[0] + box[2]) / 2 / head.stride - col, (box[1] + box[3]) / 2 / head.stride - row
    assert 0 < x < 1 and 0 < y < 1, "a slot predicts centres inside its own cell only"
    wh = head.anchors_wh[anchor]
    values = [math.log(x / (1 - x)), math.log(y / (1 - y)),
              math.log((box[2] - box[0]) / wh[0]), math.log((box[3] - box[1]) / wh[1]), objectness]  # fmt: skip
    raw_maps[index][image, anchor, row, col, :5] = torch.tensor(values)
    for label, logit in enumerate(classes):
        raw_maps[index][image, anchor, row, col, 5 + label] = logit


def random_scene(seed, images=3, objects=14, input_wh=(96, 64), classes=3):
    """Random objects and predictions; images without objects and objects sharing cells occur."""
    generator = torch.Generator().manual_seed(seed)
    heads = (
        Head(((22.0, 30.0), (60.0, 40.0)), 32, classes),
        Head(((9.0, 14.0), (20.0, 9.0), (25.0, 24.0)), 16, classes, scale_x_y=1.2),
    )
    rows = []
    for _ in range(objects):
        w, h = (4 + 40 * torch.rand(2, generator=generator) ** 2).tolist()
        x, y = torch.rand(2, generator=generator).tolist()
        x, y = x * (input_wh[0] - w), y * (input_wh[1] - h)
        image = int(torch.randint(images - 1 if images > 1 else 1, (1,), generator=generator))
        label = int(torch.randint(classes, (1,), generator=generator))
        rows.append((image, label, x, y, x + w, y + h))
    rows.sort(key=lambda row: row[0])
    raw_maps = quiet_maps(heads, images, input_wh)
    raw_maps = [torch.randn(raw.shape, generator=generator) * torch.tensor([1.5, 1.5, 0.4, 0.4, 2.0] + [1.5] * classes)
            for raw in raw_maps]  # fmt: skip
    return heads, raw_maps, targets_of(rows, input_wh), rows


def measured(heads, raw_maps, targets, strategies, kinds=("iou",), **settings):
    """Columns of one batch as :class:`Measurements`, measured by the code under test; ``settings`` of its plan."""
    options = {name: one if isinstance(one, AssignmentOptions) else AssignmentOptions(match=name)
               for name, one in strategies.items()}  # fmt: skip
    settings = {"candidates": "cell", "score_candidates": "map", "min_q": 0.1, "suppression": SuppressionRule(),
                "loss": None} | settings  # fmt: skip
    plan = MeasurementPlan(SimpleNamespace(heads=heads, device=torch.device("cpu")), options, kinds, **settings)
    images = len(raw_maps[0])
    metas = tuple(ImageMeta(i, "", (64, 64)) for i in range(images))
    batch = Batch(torch.zeros(images, 3, 1, 1, dtype=torch.uint8), targets, Targets.empty(), metas)
    assigners = {name: build_assigner(one, heads) for name, one in options.items()}
    objects, per_image, seconds = measure_raw_maps(batch, raw_maps, plan, assigners)
    objects = {name: value.numpy() for name, value in objects.items()}
    objects |= {"row": torch.arange(len(targets)).numpy(), "image": targets.image.numpy()}
    per_image = {name: value.numpy() for name, value in per_image.items()} | {"index": torch.arange(images).numpy()}
    batches = {"milliseconds": torch.tensor([seconds]).numpy()}
    return Measurements(objects, per_image, batches, tuple(options), kinds, heads)


def match_sets(heads, raw_maps, targets, options):
    """The set of (target, slot) that a strategy matches, slots as (image, head, anchor, row, col)."""
    assignment = match_maps(build_assigner(options, heads), targets, raw_maps, Targets.empty())
    pairs = set()
    for matches in (assignment.base, assignment.extra):
        columns = (matches.target, matches.image, matches.head, matches.anchor, matches.row, matches.col)
        pairs |= {(target, tuple(slot)) for target, *slot in zip(*(one.tolist() for one in columns), strict=True)}
    return pairs


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def read_slots(heads, raw_maps, image):
    """Every slot of an image: its name (image, head, anchor, row, col) -> box, objectness logit and class logits."""
    slots = {}
    for index, (head, raw) in enumerate(zip(heads, raw_maps, strict=True)):
        for anchor, (width, height) in enumerate(head.anchors_wh):
            for row in range(raw.shape[2]):
                for col in range(raw.shape[3]):
                    tx, ty, tw, th, objectness, *classes = raw[image, anchor, row, col].tolist()
                    s = head.scale_x_y
                    x = (sigmoid(tx) * s - (s - 1) / 2 + col) * head.stride
                    y = (sigmoid(ty) * s - (s - 1) / 2 + row) * head.stride
                    w, h = width * math.exp(tw), height * math.exp(th)
                    box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                    slots[image, index, anchor, row, col] = (box, objectness, classes)
    return slots


def plain_iou(a, b, kind):
    """IoU, GIoU, DIoU and CIoU of two boxes (x1, y1, x2, y2), as their papers write them."""
    aw, ah, bw, bh = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = aw * ah + bw * bh - overlap
    iou = overlap / union
    hull_w, hull_h = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - (hull_w * hull_h - union) / (hull_w * hull_h)
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    diou = iou - distance / (hull_w**2 + hull_h**2)
    if kind == "diou":
        return diou
    v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    return diou - v * v / (1 - iou + v)


def center_cell(box, head, raw):
    """(row, column) of the cell that holds a box's centre."""
    col = min(max(int((box[0] + box[2]) / 2 // head.stride), 0), raw.shape[3] - 1)
    row = min(max(int((box[1] + box[3]) / 2 // head.stride), 0), raw.shape[2] - 1)
    return row, col


def candidate_slots(heads, raw_maps, image, box, kind):
    """Names of the slots that are candidates of an object."""
    names = []
    for index, (head, raw) in enumerate(zip(heads, raw_maps, strict=True)):
        row, col = center_cell(box, head, raw)
        reach = {"cell": 0, "neighbours": 1, "map": 10**6}[kind]
        for anchor in range(head.num_anchors):
            for r in range(raw.shape[2]):
                for c in range(raw.shape[3]):
                    if abs(r - row) <= reach and abs(c - col) <= reach:
                        names.append((image, index, anchor, r, c))
    return names
