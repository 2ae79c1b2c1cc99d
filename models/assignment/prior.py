"""Strategies that look only at priors: ``standard``, ``ratio``, ``darknet``, and the fall-back for unmatched objects.

Shape letters: L heads, K anchors of all heads together, T targets, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.assignment.grid import constant
from models.assignment.inputs import AssignmentInput, Pairs
from models.assignment.strategy import Strategy
from models.heads import Head
from utils.boxes import shape_iou

OFFSETS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))  # own, left, up, right, down, as (x, y)


@dataclass(frozen=True)
class Standard:
    """YOLOv3 in PyTorch, cfg era: every anchor whose shape IoU is above ``iou_t``, in the centre's cell."""

    iou_t: float = 0.20
    match_anchors: str = "all"  # or "best": of each head, the best anchor alone may match

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        iou = shape_ious(inputs)
        keep = iou > self.iou_t
        if self.match_anchors == "best":
            keep &= _best_of_each_head(iou, inputs.grid.heads)
        return pairs_in_center_cell(inputs, keep, iou)


@dataclass(frozen=True)
class Ratio:
    """YOLOv5: no side of target and anchor differs by a factor of ``anchor_t``; up to two neighbouring cells match too.

    The recorded ``iou`` is the IoU of the shapes, as for the other strategies, though the side ratio decides.
    """

    anchor_t: float = 4.0

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        ratio = inputs.boxes[None, :, 2:] / inputs.grid.prior_wh[:, None, :]  # K T 2
        keep = torch.maximum(ratio, 1 / ratio).amax(dim=2) < self.anchor_t
        anchor, target = keep.nonzero(as_tuple=True)
        cells, wanted = _cell_and_neighbours(inputs)  # 5 T L 2, 5 T L
        pair, which = wanted[:, target, inputs.grid.head[anchor]].T.nonzero(as_tuple=True)
        anchor, target = anchor[pair], target[pair]
        cell = cells[which, target, inputs.grid.head[anchor]]
        iou = shape_ious(inputs)[anchor, target]
        return Pairs(target, anchor, cell[:, 1], cell[:, 0], iou)


def _cell_and_neighbours(inputs: AssignmentInput) -> tuple[Tensor, Tensor]:
    """Return the centre's cell and its four neighbours, [5 T L 2], and which of them YOLOv5 takes, [5 T L].

    Left where the fraction of x is below 1/2 and x > 1, right where that of (columns - x) is and columns - x > 1; up
    and down likewise. On an integer x both tests pass and "right" comes out as the own cell; it counts once.
    """
    center, last = inputs.centers, inputs.grid.head_wh - 1
    far = inputs.grid.head_wh - center
    near_low = (center % 1 < 0.5) & (center > 1)  # T L 2
    near_high = (far % 1 < 0.5) & (far > 1)
    offsets = constant(OFFSETS, center.device)[:, None, None, :]
    cells = (center - offsets).floor().clamp(min=0).minimum(last).long()
    wanted = torch.cat((torch.ones_like(near_low[..., :1]), near_low, near_high), dim=-1).permute(2, 0, 1)
    differs = (cells != cells[:1]).any(dim=-1)
    differs[0] = True
    return cells, wanted & differs


@dataclass(frozen=True)
class Darknet:
    """YOLOv3 as published: the best anchor of a head's whole list, if its mask holds it; others above ``iou_thresh``.

    The list is the cfg's ``anchors``, the same in every head of a usual cfg: then one anchor of all heads is the best.
    """

    iou_t: float | None = None  # None: each head's own iou_thresh from the cfg

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        heads, device = inputs.grid.heads, inputs.boxes.device
        joined = tuple(wh for head in heads for wh in head.anchors_wh)
        lists = [head.all_anchors_wh or joined for head in heads]  # as a rule all the same
        best_of = {every: shape_iou(constant(every, device), inputs.boxes[:, 2:]).argmax(dim=0) for every in set(lists)}
        best = torch.stack([best_of[every] for every in lists])  # L T, the first of equals
        numbers = constant(_anchor_numbers(heads), device, torch.int64)
        iou = shape_ious(inputs)
        thresholds = [head.iou_thresh if self.iou_t is None else self.iou_t for head in heads for _ in head.anchors_wh]
        keep = numbers[:, None] == best[inputs.grid.head]
        if min(thresholds) < 1:
            keep |= iou > constant(tuple(thresholds), device)[:, None]
        return pairs_in_center_cell(inputs, keep, iou)


def _anchor_numbers(heads: tuple[Head, ...]) -> tuple[int, ...]:
    """Number of each anchor in its head's whole list; where a head has none, among all heads' anchors in a row."""
    numbers: list[int] = []
    for head in heads:
        own = range(len(numbers), len(numbers) + head.num_anchors)
        numbers.extend(head.mask if head.all_anchors_wh else own)
    return tuple(numbers)


def with_fallback(inputs: AssignmentInput, pairs: Pairs) -> Pairs:
    """Give every target without a pair its single best anchor over all heads, in the centre's cell."""
    unmatched = torch.ones(len(inputs.targets), dtype=torch.bool, device=inputs.boxes.device)
    unmatched[pairs.target] = False
    iou = shape_ious(inputs)
    best = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, iou.argmax(dim=0, keepdim=True), True)
    return Pairs.join([pairs, pairs_in_center_cell(inputs, best & unmatched, iou)])


def shape_ious(inputs: AssignmentInput) -> Tensor:
    """IoU of every anchor's shape with every target's, [K T]."""
    return shape_iou(inputs.grid.prior_wh, inputs.boxes[:, 2:])


def pairs_in_center_cell(inputs: AssignmentInput, keep: Tensor, iou: Tensor) -> Pairs:
    """Return the (anchor, target) pairs that [K T] ``keep`` marks, in the cells of the targets' centres."""
    anchor, target = keep.nonzero(as_tuple=True)
    cell = inputs.cells[target, inputs.grid.head[anchor]]
    return Pairs(target, anchor, cell[:, 1], cell[:, 0], iou[anchor, target])


def _best_of_each_head(iou: Tensor, heads: tuple[Head, ...]) -> Tensor:
    parts = iou.split([head.num_anchors for head in heads])
    best = [
        torch.zeros_like(part, dtype=torch.bool).scatter_(0, part.argmax(dim=0, keepdim=True), True) for part in parts
    ]
    return torch.cat(best)


STRATEGIES = (
    Strategy("standard", Standard, anchor_rule="iou"),
    Strategy("ratio", Ratio, anchor_rule="ratio"),
    Strategy("darknet", Darknet, ignores_by_default=True),
)
