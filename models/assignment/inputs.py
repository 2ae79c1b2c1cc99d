"""What every assignment strategy sees of a batch and returns, and the few operations that the strategies share.

A slot is one predictor (image, head, anchor, row, column); a pair is a target with a slot of its own image. The anchors
of all heads are numbered through, so that one tensor operation serves every head at once.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes; L heads, K anchors of all heads
together, T targets, P pairs, E entries (an anchor with a target) of a chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.assignment.grid import SlotGrid
from models.heads import decode_boxes
from models.raw_maps import gather_numbers, gather_rows
from utils.boxes import cxcywh_to_xyxy
from utils.structures import Matches, Targets

PAIRS_AT_ONCE = 400_000  # pairs looked at in one go: bounds the memory of every strategy


@dataclass(frozen=True)
class Pairs:
    """Pairs of a target and a slot of its image, in rising order of ``anchor``."""

    target: Tensor  # [P] int64
    anchor: Tensor  # [P] int64, number among the anchors of all heads
    row: Tensor  # [P] int64
    col: Tensor  # [P] int64
    iou: Tensor  # [P] float32, the value that decides
    weight: Tensor | None = None  # [P] float32; None means 1 everywhere
    undecided: Tensor | None = None  # int64 numbers of the slots, unique in the batch, that must not be negatives

    def __len__(self) -> int:
        return len(self.target)

    def select(self, index: Tensor) -> Pairs:
        """Return the pairs where the [P] bool mask is True, or at the indices."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        weight = None if self.weight is None else self.weight[index]
        return Pairs(self.target[index], self.anchor[index], self.row[index], self.col[index], self.iou[index], weight)

    def sorted_by_anchor(self) -> Pairs:
        """Return the same pairs in rising order of anchor, otherwise as they were."""
        return self.select(torch.argsort(self.anchor, stable=True))

    @staticmethod
    def join(parts: list[Pairs]) -> Pairs:
        """Return the pairs of all parts, none of which has weights, as one record."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*((part.target, part.anchor, part.row, part.col, part.iou) for part in parts), strict=True)
        return Pairs(*(torch.cat(column) for column in columns)).sorted_by_anchor()

    @staticmethod
    def none(device: torch.device) -> Pairs:
        """Return no pairs."""
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Pairs(empty, empty, empty, empty, torch.zeros(0, device=device))


@dataclass(frozen=True, eq=False)
class AssignmentInput:
    """What a strategy sees of one batch."""

    targets: Targets
    grid: SlotGrid
    raw_maps: tuple[Tensor, ...] = ()  # one [B A H W 5+C] per head, detached; none where only priors are looked at

    @cached_property
    def boxes(self) -> Tensor:
        """Targets as centre and size in network pixels, [T 4]."""
        return self.targets.boxes_cxcywh * self.grid.input_wh.repeat(2)

    @cached_property
    def boxes_xyxy(self) -> Tensor:
        """Targets as corners in network pixels, [T 4]."""
        return cxcywh_to_xyxy(self.boxes)

    @cached_property
    def centers(self) -> Tensor:
        """Centres of the targets in each head's cells from where the first one begins, [T L 2] as (x, y)."""
        return self.targets.boxes_cxcywh[:, None, :2] * self.grid.cells_wh - self.grid.first_xy

    @cached_property
    def cells(self) -> Tensor:
        """Cell that holds each target's centre, [T L 2] int64 as (column, row), clamped to the grid."""
        return self.centers.floor().clamp(min=0).minimum(self.grid.head_wh - 1).long()

    @cached_property
    def target_rank(self) -> Tensor:
        """Rank of each target by label, then box, [T]: breaks ties without looking at the order in the batch."""
        # Stable sorts, the least significant key first.
        order = torch.arange(len(self.targets), device=self.boxes.device)
        for key in (*self.targets.boxes_cxcywh.unbind(dim=1), self.targets.label):
            order = order[torch.argsort(key[order], stable=True)]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))

    def slots(self, pairs: Pairs) -> Tensor:
        """Return the number of each pair's slot, [P] int64, unique in the batch."""
        return self.grid.number(pairs.anchor, pairs.row, pairs.col, self.targets.image[pairs.target])

    def cell_slots(self, pairs: Pairs) -> Tensor:
        """Return a number for each pair's cell, [P] int64, unique in the batch: its slot of the head's first anchor."""
        first = self.grid.head_start[self.grid.head[pairs.anchor]]
        return self.grid.number(first, pairs.row, pairs.col, self.targets.image[pairs.target])

    def keys(self, pairs: Pairs) -> Tensor:
        """Return a number for each pair, [P] int64: equal where both the target and the slot are."""
        return self.grid.number(pairs.anchor, pairs.row, pairs.col, pairs.target)

    def split_by_head(self, pairs: Pairs) -> list[int]:
        """Return the number of pairs of each head; they follow one another, because anchors rise."""
        bounds = [*torch.searchsorted(pairs.anchor, self.grid.head_start).tolist(), len(pairs)]
        return [stop - start for start, stop in itertools.pairwise(bounds)]

    def raw_rows(self, pairs: Pairs, columns: slice) -> list[Tensor]:
        """Return some columns of the raw numbers of the pairs' slots: per head [P' columns], P' being its pairs."""
        sizes = self.split_by_head(pairs)
        place = (self.targets.image[pairs.target], self.grid.anchor[pairs.anchor], pairs.row, pairs.col)
        per_head = zip(self.raw_maps, *(part.split(sizes) for part in place), strict=True)
        return [gather_rows(raw, *where, columns=columns) for raw, *where in per_head]

    def class_logits(self, pairs: Pairs) -> Tensor:
        """Return the logit that each pair's slot gives to the class of its target, [P] float32."""
        sizes = self.split_by_head(pairs)
        place = (self.targets.image[pairs.target], self.grid.anchor[pairs.anchor], pairs.row, pairs.col)
        column = (self.targets.label[pairs.target] + 5).split(sizes)  # after the box's four numbers and objectness
        per_head = zip(self.raw_maps, column, *(part.split(sizes) for part in place), strict=True)
        return torch.cat([gather_numbers(raw, class_column, *where) for raw, class_column, *where in per_head])

    def predicted_xyxy(self, pairs: Pairs) -> Tensor:
        """Return the predicted boxes of the pairs' slots as corners in network pixels, [P 4] float32."""
        sizes = self.split_by_head(pairs)
        prior_wh = (self.grid.prior_wh / self.grid.stride[:, None])[pairs.anchor].split(sizes)  # in cells
        cell_xy = torch.stack((pairs.col, pairs.row), dim=1).float().split(sizes)
        per_head = zip(self.raw_rows(pairs, slice(0, 4)), cell_xy, prior_wh, self.grid.heads, strict=True)
        boxes = [decode_boxes(rows, xy, wh, head) * head.stride for rows, xy, wh, head in per_head]
        return cxcywh_to_xyxy(torch.cat(boxes))

    def matches(self, pairs: Pairs) -> Matches:
        """Return the pairs as the record that the loss and the analyses take."""
        return Matches(
            target=pairs.target,
            image=self.targets.image[pairs.target],
            head=self.grid.head[pairs.anchor],
            anchor=self.grid.anchor[pairs.anchor],
            row=pairs.row,
            col=pairs.col,
            iou=pairs.iou,
            weight=torch.ones_like(pairs.iou) if pairs.weight is None else pairs.weight,
            per_head=tuple(self.split_by_head(pairs)),
        )


def window_pairs(inputs: AssignmentInput, low: Tensor, high: Tensor, at_once: int = PAIRS_AT_ONCE) -> Iterator[Pairs]:
    """Yield every pair of a target with the slots of a rectangle of cells, a bounded number at a time.

    Args:
        inputs: the batch.
        low: [T L 2] int64, first column and row of the rectangle on each head; clipped to the grid here.
        high: [T L 2] int64, last column and row, inclusive; a rectangle may be empty.
        at_once: about how many pairs come at once; the pairs of a target always come together.

    The pairs' ``iou`` is zero: the caller fills it in.
    """
    grid = inputs.grid
    low, high = low.clamp(min=0), high.minimum((grid.head_wh - 1).long())
    size = (high - low + 1).clamp(min=0)  # T L 2, columns and rows

    # Consecutive targets share a chunk as long as the running sum of their pairs does not pass a multiple of at_once.
    pairs_per_target = size.prod(dim=2)[:, grid.head].sum(dim=1)  # T
    chunk = (pairs_per_target.cumsum(0) - 1).clamp(min=0) // at_once
    targets = torch.arange(len(chunk), device=chunk.device)
    for part in targets.split(torch.unique_consecutive(chunk, return_counts=True)[1].tolist()):
        # Every anchor with every target of the chunk, the anchor slowest: so the pairs come in rising order of anchor.
        size_of_entry = size[part][:, grid.head].transpose(0, 1).flatten(0, 1)  # E 2
        start = low[part][:, grid.head].transpose(0, 1).flatten(0, 1)  # E 2
        count = size_of_entry.prod(dim=1)  # E, cells of each rectangle

        # One pair per entry and cell; a pair's position counts the cells of its rectangle row by row.
        entry = torch.repeat_interleave(count)  # P
        position = torch.arange(len(entry), device=entry.device) - (count.cumsum(0) - count)[entry]
        width = size_of_entry[:, 0][entry]
        row = torch.div(position, width, rounding_mode="floor")
        col = position - row * width

        # An entry's number is anchor * (targets of the chunk) + place of the target among them.
        anchor = torch.div(entry, len(part), rounding_mode="floor")
        target = part[entry - anchor * len(part)]
        zero = torch.zeros(1, device=entry.device).expand(len(entry))
        yield Pairs(target, anchor, start[:, 1][entry] + row, start[:, 0][entry] + col, zero)


def ranks(group: Tensor, *keys: Tensor) -> Tensor:
    """Return each element's rank within its group, from 0, by rising keys, [P] int64.

    Args:
        group: [P], equal for the elements of a group.
        keys: [P] each, the most significant first.
    """
    # Stable sorts from the least significant key up to the group, which so becomes the most significant one.
    order = torch.argsort(keys[-1], stable=True)
    for key in (*keys[-2::-1], group):
        order = order[torch.argsort(key[order], stable=True)]
    # A group's elements now follow one another; an element's rank is its distance from where they begin.
    in_order = group[order]
    position = torch.arange(len(order), device=order.device)
    begins = torch.ones_like(in_order, dtype=torch.bool)
    begins[1:] = in_order[1:] != in_order[:-1]
    start = torch.where(begins, position, 0).cummax(dim=0).values if len(order) else position
    # Back to the order of the arguments.
    return torch.empty_like(order).scatter_(0, order, position - start)


def best_target_of_slot(inputs: AssignmentInput, pairs: Pairs, cost: Tensor) -> Pairs:
    """Keep, of the pairs that share a slot, the one with the lowest cost [P]; equal costs go by label, then box."""
    return pairs.select(ranks(inputs.slots(pairs), cost, inputs.target_rank[pairs.target]) == 0)


def marked(rows: Tensor, count: int) -> Tensor:
    """Return [count] bool, True at the indices ``rows`` [M], which may repeat."""
    result = torch.zeros(count, dtype=torch.bool, device=rows.device)
    result[rows] = True
    return result
