"""Strategies that look only at priors: ``standard``, ``ratio``, ``darknet``, and the fall-back for unmatched objects.

Shape letters: L heads, K anchors of all heads together, T targets, F (anchor, target) that fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.assignment.grid import constant
from models.assignment.inputs import AssignmentInput, Pairs, marked
from models.assignment.strategy import Strategy
from models.heads import Head, RegionRule
from utils.boxes import shape_iou

# Subtracted from a centre to reach its own cell and its neighbours: own, left, up, right, down, as (x, y).
OFFSETS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))


@dataclass(frozen=True)
class Standard:
    """In the cell of the target's centre, every anchor whose shape IoU with the target is above ``iou_t``.

    The rule of ultralytics/yolov3 v7 (cfg era: 2019-2020). A target may match several anchors of every head, or none.
    ``match_anchors="best"`` is its ``use_all_anchors = False``: of each head only the best anchor may match.
    """

    iou_t: float = 0.20
    match_anchors: str = "all"  # or "best"

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        iou = shape_ious(inputs)
        keep = iou > self.iou_t
        if self.match_anchors == "best":
            keep &= _best_of_each_head(iou, inputs.grid.heads)
        return pairs_in_center_cell(inputs, keep, iou)


@dataclass(frozen=True)
class Ratio:
    """Every anchor none of whose sides differs from the target's by a factor of ``anchor_t`` or more, in 1 to 3 cells.

    The rule of ultralytics/yolov5 v7.0 (utils/loss.py): the centre's cell and up to two of its neighbours match. The
    recorded ``iou`` is the shape IoU, as for the other strategies here, though the ratio of the sides decides.
    """

    anchor_t: float = 4.0

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        ratio = inputs.boxes[None, :, 2:] / inputs.grid.prior_wh[:, None, :]  # K T 2
        keep = torch.maximum(ratio, 1 / ratio).amax(dim=2) < self.anchor_t  # K T
        anchor, target = keep.nonzero(as_tuple=True)  # F each
        # Repeat every (anchor, target) that fits in each of the target's cells on the anchor's head.
        cells, wanted = _cell_and_neighbours(inputs)  # 5 T L 2, 5 T L
        fit, which = wanted[:, target, inputs.grid.head[anchor]].T.nonzero(as_tuple=True)  # of F 5
        anchor, target = anchor[fit], target[fit]
        cell = cells[which, target, inputs.grid.head[anchor]]
        iou = shape_ious(inputs)[anchor, target]
        return Pairs(target, anchor, cell[:, 1], cell[:, 0], iou)


def _cell_and_neighbours(inputs: AssignmentInput) -> tuple[Tensor, Tensor]:
    """Return the centre's cell and its four neighbours, [5 T L 2], and which of them YOLOv5 takes, [5 T L].

    The left one where the fraction of x is below 1/2 and x > 1, the right one where that of (columns - x) is and
    columns - x > 1; above and below likewise. Where x is an integer both tests pass, and "right" comes out as the
    centre's own cell, which counts once here (twice in YOLOv5).
    """
    center, last = inputs.centers, inputs.grid.head_wh - 1  # T L 2, in cells from the left and top border
    far = inputs.grid.head_wh - center  # from the right and bottom border
    near_low = (center % 1 < 0.5) & (center > 1)  # T L 2: left, above
    near_high = (far % 1 < 0.5) & (far > 1)  # T L 2: right, below
    offsets = constant(OFFSETS, center.device)[:, None, None, :]  # 5 1 1 2
    cells = (center - offsets).floor().clamp(min=0).minimum(last).long()  # 5 T L 2
    wanted = torch.cat((torch.ones_like(near_low[..., :1]), near_low, near_high), dim=-1).permute(2, 0, 1)  # 5 T L
    # A neighbour that comes out as the own cell is dropped; the own cell itself always stays.
    differs = (cells != cells[:1]).any(dim=-1)
    differs[0] = True
    return cells, wanted & differs


@dataclass(frozen=True)
class Darknet:
    """In the centre's cell, the best anchor of a head's whole list, if the head has it; others above ``iou_thresh``.

    The rule of Darknet (src/yolo_layer.c), as YOLOv3 was published with it. The list is the section's ``anchors``, of
    which ``mask`` says which are the head's own. In a usual cfg all heads have the same list: then every target has
    one best anchor over all heads, and an anchor that no mask names trains nothing.

    Of a ``[region]`` (src/region_layer.c) the anchors are the head's own. Without ``bias_match`` it compares not their
    shapes but those of the boxes that the cell predicts; without predictions, the anchors after all.
    """

    iou_t: float | None = None  # None: each head's own iou_thresh from the cfg

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        heads, device = inputs.grid.heads, inputs.boxes.device
        # The best number of each target in each head's list; the lists are mostly equal, so each is looked at once.
        joined = tuple(wh for head in heads for wh in head.anchors_wh)
        lists = [head.all_anchors_wh or joined for head in heads]
        best_of = {every: shape_iou(constant(every, device), inputs.boxes[:, 2:]).argmax(dim=0) for every in set(lists)}
        best = torch.stack([best_of[every] for every in lists])  # L T, the first of equals
        # An anchor of a head matches where its own number in that list is the best one.
        numbers = constant(_anchor_numbers(heads), device, torch.int64)  # K
        iou = shape_ious(inputs)
        thresholds = [head.iou_thresh if self.iou_t is None else self.iou_t for head in heads for _ in head.anchors_wh]
        keep = numbers[:, None] == best[inputs.grid.head]  # K T
        for index, head in enumerate(heads):
            if isinstance(head.rule, RegionRule) and not head.rule.bias_match and inputs.raw_maps:
                of_head = inputs.grid.head == index
                keep[of_head] = _best_predicted_shape(inputs, of_head)
        if min(thresholds) < 1:
            keep |= iou > constant(tuple(thresholds), device)[:, None]
        return pairs_in_center_cell(inputs, keep, iou)


def _best_predicted_shape(inputs: AssignmentInput, of_head: Tensor) -> Tensor:
    """Return [anchors T] bool, True at the anchor of a head whose predicted shape fits best in the centre's cell.

    Args:
        inputs: the batch, with its raw maps.
        of_head: [K] bool, the anchors of the head.
    """
    of_pair = of_head[:, None].expand(-1, len(inputs.targets))  # K T
    pairs = pairs_in_center_cell(inputs, of_pair, torch.zeros_like(of_pair, dtype=torch.float32))
    low, high = inputs.predicted_xyxy(pairs).split(2, dim=1)
    truth_wh = inputs.boxes[pairs.target, 2:]
    iou = shape_iou((high - low)[:, None], truth_wh[:, None]).flatten()  # of each pair
    return _best_anchor(iou.view(-1, len(inputs.targets)))


def _anchor_numbers(heads: tuple[Head, ...]) -> tuple[int, ...]:
    """Return the number of each anchor in its head's whole list or, without one, among the anchors of all heads."""
    numbers: list[int] = []
    for head in heads:
        own = range(len(numbers), len(numbers) + head.num_anchors)
        numbers.extend(head.mask if head.all_anchors_wh else own)
    return tuple(numbers)


def with_fallback(inputs: AssignmentInput, pairs: Pairs) -> Pairs:
    """Give every target without a pair its single best anchor over all heads, in the centre's cell."""
    unmatched = ~marked(pairs.target, len(inputs.targets))
    iou = shape_ious(inputs)
    return Pairs.join([pairs, pairs_in_center_cell(inputs, _best_anchor(iou) & unmatched, iou)])


def shape_ious(inputs: AssignmentInput) -> Tensor:
    """Return the IoU of every anchor's shape with every target's, [K T]."""
    return shape_iou(inputs.grid.prior_wh, inputs.boxes[:, 2:])


def pairs_in_center_cell(inputs: AssignmentInput, keep: Tensor, iou: Tensor) -> Pairs:
    """Return the (anchor, target) pairs that [K T] ``keep`` marks, in the cells of the targets' centres."""
    anchor, target = keep.nonzero(as_tuple=True)
    cell = inputs.cells[target, inputs.grid.head[anchor]]
    return Pairs(target, anchor, cell[:, 1], cell[:, 0], iou[anchor, target])


def _best_of_each_head(iou: Tensor, heads: tuple[Head, ...]) -> Tensor:
    """Return [K T] bool, True where an anchor has the highest IoU of its head with the target."""
    return torch.cat([_best_anchor(part) for part in iou.split([head.num_anchors for head in heads])])


def _best_anchor(iou: Tensor) -> Tensor:
    """Return bool in the shape of [anchors T], True at each target's anchor of the highest IoU, the first of equals."""
    return torch.zeros_like(iou, dtype=torch.bool).scatter_(0, iou.argmax(dim=0, keepdim=True), True)


STRATEGIES = (
    Strategy("standard", Standard, anchor_rule="iou", needs_anchors=True),
    Strategy("ratio", Ratio, anchor_rule="ratio", needs_anchors=True),
    Strategy("darknet", Darknet, ignores_by_default=True, needs_anchors=True),
)
