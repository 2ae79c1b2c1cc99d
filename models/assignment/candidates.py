"""Which slots a strategy looks at for a target, as rectangles of cells for ``window_pairs``.

Shape letters: L heads, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.assignment.grid import constant
from models.assignment.inputs import AssignmentInput, Pairs, window_pairs

EVERY_CELL = 1e6  # a distance in cells, longer than any map
SLACK = 0.01  # cells by which a rectangle is widened on every side, so that rounding never loses a slot

Window = tuple[Tensor, Tensor]  # first and last (column, row) of a rectangle, both inside it, [T L 2] int64 each


def center_cell(inputs: AssignmentInput) -> Window:
    """Return the cell that holds the target's centre."""
    return inputs.cells, inputs.cells


def neighbourhood(inputs: AssignmentInput) -> Window:
    """Return the 3 x 3 cells around the one that holds the target's centre."""
    return inputs.cells - 1, inputs.cells + 1


def whole_map(inputs: AssignmentInput) -> Window:
    """Return all cells of every head."""
    return torch.zeros_like(inputs.cells), (inputs.grid.head_wh - 1).long().expand_as(inputs.cells)


CANDIDATES: dict[str, Callable[[AssignmentInput], Window]] = {
    "cell": center_cell,
    "neighbours": neighbourhood,
    "map": whole_map,
}


def candidate_pairs(inputs: AssignmentInput, kind: str) -> Iterator[Pairs]:
    """Yield every target with its candidate slots, a bounded number of pairs at a time.

    Args:
        kind: a key of ``CANDIDATES``; says which slots are candidates.
    """
    yield from window_pairs(inputs, *CANDIDATES[kind](inputs))


def cells_that_can_reach(inputs: AssignmentInput, iou: tuple[float, ...]) -> Window:
    """Return the cells whose predictions can reach an IoU with the target; ``iou`` is one number per head.

    The IoU of two boxes is at most the overlap of their x-intervals over the longer of the two, and likewise in y.
    With a target of width w, an IoU of t therefore needs a prediction between tw and w/t wide, whose centre is at
    most ``w · max(1 − t, (1/t − 1) / 2)`` away. GIoU, DIoU and CIoU are never above the IoU, so this holds for them
    too. An IoU of 0 is reached at any distance: then every cell of the map is returned.
    """
    reach = tuple(max(1 - t, (1 / t - 1) / 2) if t > 0 else 0.0 for t in iou)
    anywhere = tuple(0.0 if t > 0 else EVERY_CELL for t in iou)
    size = inputs.targets.boxes_cxcywh[:, None, 2:] * inputs.grid.cells_wh  # T L 2
    half = size * constant(reach, size.device)[:, None] + constant(anywhere, size.device)[:, None]
    return _cells_with_centers_in(inputs, half)


def cells_that_can_predict_inside(inputs: AssignmentInput) -> Window:
    """Return the cells whose predictions can have their centre inside the target's box."""
    return _cells_with_centers_in(inputs, inputs.targets.boxes_cxcywh[:, None, 2:] * inputs.grid.cells_wh / 2)


def _cells_with_centers_in(inputs: AssignmentInput, half: Tensor) -> Window:
    """Return the cells that can predict a centre at most ``half`` [T L 2] cells away from the target's.

    The centre that a cell predicts lies in the cell, or up to ``(scale_x_y − 1) / 2`` cells outside of its borders;
    that of a RetinaNet or an FCOS lies anywhere.
    """
    overhang = tuple(EVERY_CELL if head.is_dense else (head.scale_x_y - 1) / 2 for head in inputs.grid.heads)
    half = half + constant(overhang, half.device)[:, None] + SLACK
    # Column c covers c to c + 1: the first must not end before the lower bound, the last not start after the upper one.
    return (inputs.centers - half - 1).ceil().long(), (inputs.centers + half).floor().long()


def cell_centers_inside(inputs: AssignmentInput) -> Window:
    """Return the cells whose own centre lies inside the target's box, its border excluded."""
    half = inputs.targets.boxes_cxcywh[:, None, 2:] * inputs.grid.cells_wh / 2
    return _cell_centers_between(inputs.centers - half, inputs.centers + half)


def cells_whose_anchors_touch(inputs: AssignmentInput) -> Window:
    """Return the cells any of whose anchors can overlap the target's box."""
    largest = tuple(tuple(max(side) for side in zip(*head.anchors_wh, strict=True)) for head in inputs.grid.heads)
    sides = inputs.boxes[:, None, 2:] + constant(largest, inputs.boxes.device)  # T L 2
    half = sides / 2 / inputs.grid.cell_wh + SLACK
    return _cell_centers_between(inputs.centers - half, inputs.centers + half)


def cell_centers_within(inputs: AssignmentInput, radius: float | Tensor) -> Window:
    """Return the cells whose own centre is less than ``radius`` cells away from the target's, in x and in y.

    Args:
        inputs: the batch.
        radius: one for all, or one for x and y of each head, [L 2].
    """
    return _cell_centers_between(inputs.centers - radius, inputs.centers + radius)


def _cell_centers_between(low: Tensor, high: Tensor) -> Window:
    """Return the cells whose centre, at column + 1/2 and row + 1/2, lies strictly between two corners [T L 2]."""
    return (low - 0.5).floor().long() + 1, (high - 0.5).ceil().long() - 1
