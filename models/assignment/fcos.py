"""The rule of FCOS with centre sampling (arXiv 1904.01355 and 2006.09214), for heads without anchors.

Shape letters: L heads, P pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from models.assignment.candidates import SLACK, cell_centers_within
from models.assignment.grid import constant
from models.assignment.inputs import AssignmentInput, Pairs, best_target_of_slot, window_pairs
from models.assignment.strategy import Strategy

RANGE = (4, 8)  # strides: the farthest side of an object lies between them, on the first head from 0, on the last to ∞


@dataclass(frozen=True)
class Fcos:
    """Every slot whose point lies in the object, near its centre, and whose head has the object's size.

    Near: less than ``radius`` strides away, in x and in y. The size is the distance from the point to the farthest side
    of the object. Of several objects a slot learns from the smallest.
    """

    radius: float = 1.5  # strides

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch; no IoU decides, so that theirs is 0."""
        grid = inputs.grid
        strides = [float(head.stride) for head in grid.heads]
        low = constant((0.0, *(RANGE[0] * stride for stride in strides[1:])), grid.stride.device)  # L
        high = constant((*(RANGE[1] * stride for stride in strides[:-1]), math.inf), grid.stride.device)  # L
        reach = self.radius * grid.stride[grid.head_start]  # L, pixels
        chunks = []
        for pairs in window_pairs(inputs, *cell_centers_within(inputs, reach[:, None] / grid.cell_wh + SLACK)):
            head = grid.head[pairs.anchor]
            points = grid.points_xy(pairs.anchor, pairs.row, pairs.col)
            first, last = inputs.boxes_xyxy[pairs.target].split(2, dim=1)
            sides = torch.cat((points - first, last - points), dim=1)  # P 4, distances to the sides of the object
            farthest = sides.amax(dim=1)
            near = (points - (first + last) / 2).abs().amax(dim=1) < reach[head]
            fits = (farthest > low[head]) & (farthest < high[head])
            chunks.append(pairs.select(near & fits & (sides.amin(dim=1) > 0)))
        pairs = Pairs.join(chunks)
        size_wh = inputs.boxes_xyxy[:, 2:] - inputs.boxes_xyxy[:, :2]
        return best_target_of_slot(inputs, pairs, size_wh.prod(dim=1)[pairs.target])


STRATEGY = Strategy("fcos", Fcos, needs_anchors=False)
