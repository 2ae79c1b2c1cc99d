"""Strategies that look at predictions: ``pure``, ``split`` and ``fast``, which add ``extra`` matches to the base ones.

``split`` enumerates the candidates of each target and thins them target by target; ``fast`` looks at all slots of an
image at once and never builds a pair that cannot reach the wanted IoU. With all slots as candidates and no other
option, both find the same pairs. docs/assignment.md defines the three strategies and works an example.

Shape letters: T targets, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.assignment.candidates import candidate_pairs, cells_that_can_reach
from models.assignment.inputs import AssignmentInput, Pairs, best_target_of_slot, ranks, window_pairs
from models.assignment.prior import Standard
from models.assignment.strategy import Strategy
from utils.boxes import box_iou

EPSILON = 1e-6  # so that 0.29 of 100 matches are 29, though 0.29 * 100 is 28.999999999999996


@dataclass(frozen=True)
class Pure:
    """Every candidate slot whose predicted box reaches an IoU with the target, whether or not its prior fits."""

    extra_iou: float = 0.5  # that IoU
    match_iou: str = "iou"  # its kind, a key of IOU_KINDS
    candidates: str = "cell"  # a key of CANDIDATES

    def __call__(self, inputs: AssignmentInput, base: Pairs) -> Pairs:
        """Return the extra pairs; they may repeat base pairs."""
        return predicted_above(inputs, candidate_pairs(inputs, self.candidates), self.extra_iou, self.match_iou)


@dataclass(frozen=True)
class Split:
    """As :class:`Pure`, but no pair is in both sets; the options remove extra pairs in the order of their fields."""

    extra_iou: float = 0.5
    match_iou: str = "iou"
    candidates: str = "neighbours"
    refilter: bool = False
    reduce_anchor: bool = False
    extra_topk: int | None = None
    assign_rate: float | None = None

    def __call__(self, inputs: AssignmentInput, base: Pairs) -> Pairs:
        """Return the extra pairs, given the base ones."""
        extra = predicted_above(inputs, candidate_pairs(inputs, self.candidates), self.extra_iou, self.match_iou)
        extra = without(inputs, extra, base)
        if self.refilter:
            extra = extra.select(extra.iou > self._worst_base(inputs, base)[extra.target])
        if self.reduce_anchor:
            # A number for each cell of each target: that of the cell's first anchor, the target being its owner.
            first = inputs.grid.head_start[inputs.grid.head[extra.anchor]]
            cell_of_target = inputs.grid.number(first, extra.row, extra.col, extra.target)
            extra = extra.select(ranks(cell_of_target, -extra.iou, extra.anchor) == 0)
        if self.extra_topk is not None:
            extra = extra.select(ranks(extra.target, -extra.iou, inputs.slots(extra)) < self.extra_topk)
        if self.assign_rate is not None:
            extra = _best_of_batch(inputs, extra, math.floor(self.assign_rate * len(base) + EPSILON))
        return extra

    def _worst_base(self, inputs: AssignmentInput, base: Pairs) -> Tensor:
        """Return the lowest predicted IoU among each target's base pairs, [T]; -inf for a target without any."""
        iou = predicted_iou(inputs, base, self.match_iou)
        worst = iou.new_full((len(inputs.targets),), torch.inf).scatter_reduce_(0, base.target, iou, "amin")
        return worst.masked_fill_(worst == torch.inf, -torch.inf)


@dataclass(frozen=True)
class Fast:
    """Every slot of the image whose predicted box reaches an IoU with a target, for all targets at once.

    The options remove or weigh extra pairs in the order of their fields.
    """

    extra_iou: float = 0.5
    match_iou: str = "iou"
    candidates: str = "map"
    remove_duplicate: bool = False
    reduce_anchor: bool = False
    linear_reweight: float | None = None

    def __call__(self, inputs: AssignmentInput, base: Pairs) -> Pairs:
        """Return the extra pairs, given the base ones."""
        if self.candidates == "map":
            # Not all slots, only those near enough to reach the IoU: the others could not match.
            pairs = window_pairs(inputs, *cells_that_can_reach(inputs, (self.extra_iou,) * len(inputs.grid.heads)))
        else:
            pairs = candidate_pairs(inputs, self.candidates)
        extra = without(inputs, predicted_above(inputs, pairs, self.extra_iou, self.match_iou), base)
        if self.remove_duplicate:
            extra = extra.select(~torch.isin(inputs.slots(extra), inputs.slots(base)))
            extra = best_target_of_slot(inputs, extra, -extra.iou)
        if self.reduce_anchor:
            extra = _best_anchor_of_cell(inputs, extra)
        if self.linear_reweight is not None:
            extra = replace(extra, weight=_rising_weight(extra.iou, self.extra_iou, self.linear_reweight))
        return extra


def predicted_iou(inputs: AssignmentInput, pairs: Pairs, kind: str) -> Tensor:
    """Return the IoU of each pair's predicted box with its target, [P]; ``kind`` is a key of ``IOU_KINDS``."""
    return box_iou(inputs.predicted_xyxy(pairs), inputs.boxes_xyxy[pairs.target], kind, elementwise=True)


def predicted_above(inputs: AssignmentInput, chunks: Iterable[Pairs], threshold: float, kind: str) -> Pairs:
    """Return the pairs whose predicted box has an IoU of at least ``threshold`` with the target, and that IoU."""
    found = []
    for pairs in chunks:
        pairs = replace(pairs, iou=predicted_iou(inputs, pairs, kind))
        found.append(pairs.select(pairs.iou >= threshold))
    return Pairs.join(found)


def without(inputs: AssignmentInput, pairs: Pairs, others: Pairs) -> Pairs:
    """Return the pairs that are not among the others."""
    return pairs.select(~torch.isin(inputs.keys(pairs), inputs.keys(others)))


def _best_of_batch(inputs: AssignmentInput, pairs: Pairs, limit: int) -> Pairs:
    """Return the ``limit`` pairs with the highest IoU of the whole batch, equal ones by slot, label, box and image.

    The place in the batch comes last, so that the order of a batch's targets changes nothing.
    """
    if len(pairs) <= limit:
        return pairs
    image = inputs.targets.image[pairs.target]
    slot_of_image = inputs.grid.number(pairs.anchor, pairs.row, pairs.col)
    everything = torch.zeros_like(image)  # one group
    return pairs.select(ranks(everything, -pairs.iou, slot_of_image, inputs.target_rank[pairs.target], image) < limit)


def _best_anchor_of_cell(inputs: AssignmentInput, pairs: Pairs) -> Pairs:
    """Keep, in each cell of an image, the pairs of the anchor that has the highest IoU there, with whatever target."""
    # Cells numbered from 0, and the highest IoU in each.
    cell = torch.unique(inputs.cell_slots(pairs), return_inverse=True)[1]  # P
    best = pairs.iou.new_full((len(cell),), -torch.inf).scatter_reduce_(0, cell, pairs.iou, "amax")
    # The anchor that reaches it, of equals the first; ``none`` is above every anchor's number.
    none = inputs.grid.num_anchors
    anchor = pairs.anchor.masked_fill(pairs.iou < best[cell], none)
    winner = torch.full_like(cell, none).scatter_reduce_(0, cell, anchor, "amin")
    return pairs.select(pairs.anchor == winner[cell])


def _rising_weight(iou: Tensor, start: float, lowest: float) -> Tensor:
    """Return each pair's weight, [P]: it rises linearly from ``lowest`` at the IoU ``start`` to 1 at IoU 1."""
    rise = (iou - start) / max(1 - start, 1e-6)
    return lowest + (1 - lowest) * rise.clamp(0, 1)


STRATEGIES = tuple(
    Strategy(name, Standard, extra, reads_predictions=True, anchor_rule="iou", needs_anchors=True)
    for name, extra in (("pure", Pure), ("split", Split), ("fast", Fast))
)
