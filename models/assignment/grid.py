"""The numbers of the slots of all heads, and what is constant of them at one input size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.heads import Head


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
    first_slot: Tensor  # [K] int64, slot of the anchor at row 0, column 0 of image 0
    head_wh: Tensor  # [L 2] float32, columns and rows of each head
    head_start: Tensor  # [L] int64, first anchor of each head
    input_wh: Tensor  # [2] float32, network pixels
    slots_per_image: int

    @property
    def num_anchors(self) -> int:
        """Anchors of all heads together."""
        return len(self.head)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a constant that an evaluation made first must still serve a gradient
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tuple of numbers, nested or not, as a tensor that is kept on its device."""
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def slot_grid(heads: tuple[Head, ...], shapes: tuple[tuple[int, int], ...], device: torch.device) -> SlotGrid:
    """Return the constants of ``heads`` whose maps have ``shapes`` (rows, columns), as tensors on ``device``."""
    anchors = [(index, number) for index, head in enumerate(heads) for number in range(head.num_anchors)]
    sizes = torch.tensor([shapes[index][0] * shapes[index][1] for index, _ in anchors])
    counts = torch.tensor([head.num_anchors for head in heads])

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
        first_slot=(sizes.cumsum(0) - sizes).to(device),
        head_wh=real([(cols, rows) for rows, cols in shapes]),
        head_start=(counts.cumsum(0) - counts).to(device),
        input_wh=real([shapes[0][1] * heads[0].stride, shapes[0][0] * heads[0].stride]),
        slots_per_image=int(sizes.sum()),
    )
