"""Slots by number: a number for every predictor of all heads, and back; and what is constant at one input size.

Within an image the slots are numbered by head, anchor, row and column, the column fastest.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes; L heads, K anchors of all heads
together, P slots, M matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.heads import Head
from utils.structures import Matches


@dataclass(frozen=True, eq=False)
class SlotGrid:
    """The constants of some heads at one input size on one device, built once and kept."""

    heads: tuple[Head, ...]
    shapes: tuple[tuple[int, int], ...]  # rows and columns of each head
    head: Tensor  # [K] int64, head of each anchor
    anchor: Tensor  # [K] int64, its index among the head's anchors
    prior_wh: Tensor  # [K 2] network pixels
    stride: Tensor  # [K] network pixels per cell
    cols: Tensor  # [K] int64, grid columns of the anchor's head
    first_slot: Tensor  # [K] int64, number of the anchor's slot at row 0, column 0
    head_wh: Tensor  # [L 2] float32, columns and rows of each head
    cell_wh: Tensor  # [L 2] float32, network pixels from one cell to the next
    cells_wh: Tensor  # [L 2] float32, width and height of the input in cells; no whole numbers where cells stick out
    first_xy: Tensor  # [L 1] float32, where the first cell begins: -1/2 cell where anchors stand at corners, else 0
    head_start: Tensor  # [L] int64, first anchor of each head
    input_wh: Tensor  # [2] float32, network pixels
    slots_per_image: int

    @property
    def num_anchors(self) -> int:
        """Anchors of all heads together."""
        return len(self.head)

    def number(self, anchor: Tensor, row: Tensor, col: Tensor, image: Tensor | int = 0) -> Tensor:
        """Return the number of each slot, [P] int64: unique in the batch, or, without ``image``, within its image.

        Args:
            anchor: [P] int64, among the anchors of all heads.
            row: [P] int64, grid row.
            col: [P] int64, grid column.
            image: [P] int64, index in the batch; any other owner of slots, such as a target, is numbered likewise.
        """
        return self.pack(image, self.first_slot[anchor] + row * self.cols[anchor] + col)

    def locate(self, number: Tensor) -> SlotPlace:
        """Return where the slots with these numbers [P] lie: the inverse of :meth:`number`."""
        image, slot = self.unpack(number)
        anchor = torch.searchsorted(self.first_slot, slot, right=True) - 1
        cell = slot - self.first_slot[anchor]
        row = torch.div(cell, self.cols[anchor], rounding_mode="floor")
        return SlotPlace(image, anchor, row, cell - row * self.cols[anchor])

    def pack(self, owner: Tensor | int, slot: Tensor) -> Tensor:
        """Return one number for a slot's number within its image and the slot's owner, an image or a target."""
        return owner * self.slots_per_image + slot

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Return owner and slot of numbers that :meth:`pack` made: its inverse."""
        owner = torch.div(packed, self.slots_per_image, rounding_mode="floor")
        return owner, packed - owner * self.slots_per_image

    def number_of_matches(self, matches: Matches) -> Tensor:
        """Return the number of each match's slot, [M] int64, unique in the batch."""
        return self.number(self.anchor_of_matches(matches), matches.row, matches.col, matches.image)

    def anchor_of_matches(self, matches: Matches) -> Tensor:
        """Return the anchor of each match, [M] int64, among the anchors of all heads."""
        return self.head_start[matches.head] + matches.anchor

    def cells_xyxy(self, place: SlotPlace) -> Tensor:
        """Return the cell of each slot as corners in network pixels, [P 4]."""
        head = self.head[place.anchor]
        corner = (torch.stack((place.col, place.row), dim=1) + self.first_xy[head]) * self.cell_wh[head]
        return torch.cat((corner, corner + self.cell_wh[head]), dim=1)

    def anchors_xyxy(self, anchor: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Return the anchor of each slot, in the middle of its cell, as corners in network pixels, [P 4]."""
        center, half = self.points_xy(anchor, row, col), self.prior_wh[anchor] / 2
        return torch.cat((center - half, center + half), dim=1)

    def points_xy(self, anchor: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Return the middle of the cell of each slot in network pixels, [P 2]."""
        head = self.head[anchor]
        return (torch.stack((col, row), dim=1) + (self.first_xy[head] + 0.5)) * self.cell_wh[head]


@dataclass(frozen=True)
class SlotPlace:
    """Where slots lie: image, anchor, row and column of each."""

    image: Tensor  # [P] int64
    anchor: Tensor  # [P] int64, among the anchors of all heads
    row: Tensor  # [P] int64
    col: Tensor  # [P] int64


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a constant first made by an evaluation must still be usable where gradients are taken
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tuple of numbers, nested or not, as a tensor that is kept on its device."""
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def slot_grid(heads: tuple[Head, ...], shapes: tuple[tuple[int, int], ...], device: torch.device) -> SlotGrid:
    """Return the constants of ``heads`` whose maps have ``shapes`` (rows, columns), as tensors on ``device``."""
    # Head, and index among its anchors, of each of the K anchors.
    anchors = [(index, number) for index, head in enumerate(heads) for number in range(head.num_anchors)]
    sizes = torch.tensor([shapes[index][0] * shapes[index][1] for index, _ in anchors])  # K, slots of each anchor
    counts = torch.tensor([head.num_anchors for head in heads])
    input_wh = shapes[0][1] * heads[0].stride, shapes[0][0] * heads[0].stride
    cell_wh = [
        # torchvision places anchors by whole pixels: 13 cells of 61 in 800, where the stride is 64.
        (input_wh[0] // cols, input_wh[1] // rows) if head.is_dense else (head.stride, head.stride)
        for head, (rows, cols) in zip(heads, shapes, strict=True)
    ]

    def whole(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    def real(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return SlotGrid(
        heads=heads,
        shapes=shapes,
        head=whole([index for index, _ in anchors]),
        anchor=whole([number for _, number in anchors]),
        prior_wh=real([heads[index].anchors_wh[number] for index, number in anchors]),
        stride=real([heads[index].stride for index, _ in anchors]),
        cols=whole([shapes[index][1] for index, _ in anchors]),
        first_slot=(sizes.cumsum(0) - sizes).to(device),  # the slots of all anchors before it
        head_wh=real([(cols, rows) for rows, cols in shapes]),
        head_start=(counts.cumsum(0) - counts).to(device),
        cell_wh=real(cell_wh),
        cells_wh=real(
            [
                (input_wh[0] / width, input_wh[1] / height) if head.is_dense else (cols, rows)
                for head, (width, height), (rows, cols) in zip(heads, cell_wh, shapes, strict=True)
            ]
        ),
        first_xy=real([[-0.5 if head.is_dense else 0.0] for head in heads]),
        input_wh=real(list(input_wh)),
        slots_per_image=int(sizes.sum()),
    )


def grid_shapes(heads: Sequence[Head], input_wh: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return rows and columns of each head's map at an input size in pixels."""
    width, height = input_wh
    return tuple((-(-height // head.stride), -(-width // head.stride)) for head in heads)  # rounded up


def grid_of_maps(heads: tuple[Head, ...], raw_maps: Sequence[Tensor]) -> SlotGrid:
    """Return the slots of some raw maps [B A H W 5+C], one per head."""
    return slot_grid(heads, tuple((raw.shape[2], raw.shape[3]) for raw in raw_maps), raw_maps[0].device)
