"""The matches of one head with what they compare: for losses that each head computes by itself.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M matches of one head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from models.assignment.grid import SlotGrid
from models.heads import Head, decode_boxes, priors_wh
from utils.structures import Assignment, Targets


@dataclass(frozen=True, eq=False)
class HeadMatches:
    """The base matches of one head."""

    head: Head
    raw: Tensor  # [B A H W 5+C]
    ignore: Tensor | None  # [B A H W] bool
    image: Tensor  # [M] int64
    anchor: Tensor  # [M] int64
    row: Tensor  # [M] int64
    col: Tensor  # [M] int64
    target: Tensor  # [M] int64, row among the objects of the batch
    label: Tensor  # [M] int64
    boxes_cxcywh: Tensor  # [M 4] the objects, in cells of the head

    def __len__(self) -> int:
        return len(self.target)

    def select(self, index: Tensor) -> HeadMatches:
        """Return the matches at the indices."""
        columns = ("image", "anchor", "row", "col", "target", "label", "boxes_cxcywh")
        return replace(self, **{name: getattr(self, name)[index] for name in columns})

    @property
    def place(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index of each match in a map [B A H W]."""
        return self.image, self.anchor, self.row, self.col

    @property
    def slots(self) -> Tensor:
        """Number of each match's slot, [M] int64, unique in the batch."""
        anchors, rows, cols = self.raw.shape[1:4]
        return ((self.image * anchors + self.anchor) * rows + self.row) * cols + self.col

    @property
    def rows(self) -> Tensor:
        """The raw numbers of the matches' slots, [M 5+C] float32, with gradient."""
        return self.raw[self.place].float()

    @property
    def prior_wh(self) -> Tensor:
        """The anchors of the matches in cells, [M 2]."""
        return priors_wh(self.head, self.raw.device)[self.anchor]

    @property
    def cell_xy(self) -> Tensor:
        """Column and row of each match, [M 2] float32."""
        return torch.stack((self.col, self.row), dim=1).float()

    @property
    def offset_xy(self) -> Tensor:
        """Where the object's centre lies in its cell, [M 2]."""
        return self.boxes_cxcywh[:, :2] - self.cell_xy

    @property
    def log_size_wh(self) -> Tensor:
        """Logarithm of the object's size over the anchor's, [M 2]."""
        return (self.boxes_cxcywh[:, 2:] / self.prior_wh).log()

    def predicted_cxcywh(self) -> Tensor:
        """The predictions of the matches' slots in cells, [M 4]."""
        return decode_boxes(self.rows[:, :4], self.cell_xy, self.prior_wh, self.head)


def matches_per_head(
    raw_maps: Sequence[Tensor], assignment: Assignment, targets: Targets, grid: SlotGrid
) -> Iterator[HeadMatches]:
    """Yield the base matches of every head."""
    base = assignment.base
    target_per_head = base.target.split(base.per_head)
    per_head = zip(
        grid.heads, raw_maps, assignment.ignore, base.place_per_head(), target_per_head, grid.head_wh, strict=True
    )
    for head, raw, ignore, (image, anchor, row, col), target, size_wh in per_head:
        boxes = targets.boxes_cxcywh[target] * size_wh.repeat(2)
        yield HeadMatches(head, raw, ignore, image, anchor, row, col, target, targets.label[target], boxes)


def last_of_each(key: Tensor, rank: Tensor) -> Tensor:
    """Return the index of the highest rank [M] among those of each key [M], in rising order of key."""
    order = torch.argsort(rank, stable=True)
    order = order[torch.argsort(key[order], stable=True)]
    in_order = key[order]
    is_last = torch.ones_like(in_order, dtype=torch.bool)
    is_last[:-1] = in_order[1:] != in_order[:-1]
    return order[is_last]


def sum_of_parts(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the sum of each part of a loss over the heads."""
    return {name: reduce(torch.add, [one[name] for one in parts]) for name in parts[0]}
