"""Slots that are no negatives although nothing matched them: predictions that fit an object, or lie in a crowd region.

Shape letters: B images, A anchors per cell, H W grid rows and columns, S slots of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.assignment.candidates import cells_that_can_predict_inside, cells_that_can_reach
from models.assignment.grid import constant
from models.assignment.inputs import AssignmentInput, window_pairs
from models.assignment.predicted import predicted_iou
from utils.boxes import intersection_over_first
from utils.structures import Targets

CROWD_COVER = 0.5  # a prediction is inside a crowd region if more than this share of it is covered


def ignored_slots(
    inputs: AssignmentInput,
    thresholds: tuple[float, ...] | None,
    crowd: Targets | None,
    undecided: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return one [B A H W] bool map per head, True where a slot's prediction must not count as a negative.

    Args:
        inputs: the objects and the raw maps of a batch.
        thresholds: one per head; a prediction whose IoU with any object of its image is above it is ignored. None
            ignores no slot for that reason. This is ``ignore_thresh`` as published with YOLOv3; AlexeyAB's Darknet
            (src/yolo_layer.c) also asks for a class probability above 0.25.
        crowd: crowd regions; a prediction more than half of which lies in a region of its image is ignored.
        undecided: numbers of the slots that the strategy itself leaves out, unique in the batch.
    """
    grid = inputs.grid
    batch_size = len(inputs.raw_maps[0])
    ignored = torch.zeros(batch_size * grid.slots_per_image, dtype=torch.bool, device=grid.head.device)  # B*S
    if undecided is not None:
        ignored[undecided] = True
    if thresholds is not None and len(inputs.targets):
        limit = constant(thresholds, ignored.device)[grid.head]  # one per anchor
        for pairs in window_pairs(inputs, *cells_that_can_reach(inputs, thresholds)):
            above = predicted_iou(inputs, pairs, "iou") > limit[pairs.anchor]
            ignored[inputs.slots(pairs.select(above))] = True
    if crowd is not None and len(crowd):
        regions = AssignmentInput(crowd, grid, inputs.raw_maps)
        for pairs in window_pairs(regions, *cells_that_can_predict_inside(regions)):
            cover = intersection_over_first(regions.predicted_xyxy(pairs), regions.boxes_xyxy[pairs.target])
            ignored[regions.slots(pairs.select(cover > CROWD_COVER))] = True
    # The numbers of an image's slots run through the heads: cut them into one map per head.
    sizes = [head.num_anchors * rows * cols for head, (rows, cols) in zip(grid.heads, grid.shapes, strict=True)]
    parts = ignored.view(batch_size, grid.slots_per_image).split(sizes, dim=1)  # B A*H*W each
    return tuple(part.unflatten(1, raw.shape[1:4]) for part, raw in zip(parts, inputs.raw_maps, strict=True))
