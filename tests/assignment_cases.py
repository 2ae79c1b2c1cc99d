"""Small batches for the assignment tests: two heads on non-square grids, targets at awkward places."""

from __future__ import annotations

import json
import random

import torch
from hypothesis import strategies as st

from models.assignment.grid import grid_of_maps
from models.heads import Head
from utils.structures import Targets

ANCHORS = ((12.0, 18.0), (30.0, 22.0), (50.0, 60.0), (75.0, 40.0), (130.0, 90.0))
CLASSES = 3
SHAPES = ((3, 5), (6, 10))  # rows and columns at 96 x 160 pixels
AWKWARD = (0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.95, 1.0)  # on borders of cells, in their middle, on the image's border


def two_heads(scale_x_y=1.0, new_coords=False, iou_thresh=1.0):
    """A coarse head with two anchors and a fine one with three, in cfg order."""
    common = {"num_classes": CLASSES, "scale_x_y": scale_x_y, "new_coords": new_coords, "iou_thresh": iou_thresh}
    return (
        Head(ANCHORS[3:], 32, all_anchors_wh=ANCHORS, mask=(3, 4), **common),
        Head(ANCHORS[:3], 16, all_anchors_wh=ANCHORS, mask=(0, 1, 2), **common),
    )


def random_raw_maps(heads, batch_size, seed, spread=0.6, shapes=SHAPES):
    """Raw maps [B A H W 5+C] in the memory order of a channels-last convolution."""
    generator = torch.Generator().manual_seed(seed)
    raw_maps = []
    for head, (rows, cols) in zip(heads, shapes, strict=True):
        raw = torch.randn(batch_size, rows, cols, head.num_anchors, 5 + head.num_classes, generator=generator) * spread
        raw_maps.append(raw.permute(0, 3, 1, 2, 4))
    return raw_maps


def targets_of(rows):
    """Targets from rows (image, label, x, y, w, h)."""
    if not rows:
        return Targets.empty()
    image, label, *box = zip(*rows, strict=True)
    return Targets(torch.tensor(image), torch.tensor(label), torch.tensor(list(zip(*box, strict=True))).float())


def place():
    """A centre coordinate, often exactly on the border of a cell or of the image."""
    return st.sampled_from(AWKWARD) | st.floats(0, 1, width=32)


def side():
    """A normalised width or height, from a few pixels to larger than the image."""
    return st.floats(0.015625, 1.5, width=32)


def rows(max_size=6, batch_size=3):
    """Rows of targets in random order of images; some images get none."""
    row = st.tuples(st.integers(0, batch_size - 1), st.integers(0, CLASSES - 1), place(), place(), side(), side())
    return st.lists(row, max_size=max_size)


def random_rows(seed, max_size=6, batch_size=3):
    """Rows of targets at places and of sizes without ties, but for one in six, which is at an awkward place."""
    generator = random.Random(seed)

    def place():
        return generator.choice(AWKWARD) if generator.random() < 1 / 6 else generator.random()

    return [
        (generator.randrange(batch_size), generator.randrange(CLASSES), place(), place(),
         generator.uniform(0.02, 1.2), generator.uniform(0.02, 1.2))
        for _ in range(generator.randrange(1, max_size + 1))
    ]  # fmt: skip


def match_maps(assigner, targets, raw_maps, crowd=None):
    """The assignment of a batch with these raw maps."""
    return assigner.match(targets, grid_of_maps(assigner.heads, raw_maps), raw_maps, crowd)


def as_dict(matches):
    """{(target, head, anchor, row, col): iou} of an assignment's base or extra matches; a pair must not repeat."""
    columns = (matches.target, matches.head, matches.anchor, matches.row, matches.col)
    pairs = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, matches.iou.tolist(), strict=True))


def coco_targets(shared, size):
    """The 929 non-crowd objects of the 128 train images, letterboxed into a square, and their original areas."""
    content = json.loads((shared / "data/coco/annotations/instances_train2017.json").read_text())
    images = {image["id"]: (n, image["width"], image["height"]) for n, image in enumerate(content["images"])}
    rows_, areas = [], []
    for item in content["annotations"]:
        if not item["iscrowd"]:
            number, width, height = images[item["image_id"]]
            scale = size / max(width, height)
            left, top = (size - width * scale) / 2, (size - height * scale) / 2
            x, y, w, h = item["bbox"]
            box = ((x + w / 2) * scale + left, (y + h / 2) * scale + top, w * scale, h * scale)
            rows_.append((number, 0, *(value / size for value in box)))
            areas.append(item["area"])
    return targets_of(rows_), torch.tensor(areas)
