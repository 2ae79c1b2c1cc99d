"""Heads that detect and cannot be trained: boxes by Darknet's formulas where those of ``heads.py`` do not hold.

A :class:`CellHead` knows the size of its cells, which no whole stride gives, or reads probabilities where other heads
read logits; a :class:`GridHead` is YOLOv1's, whose boxes come from a connected layer.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M slots that are kept.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from models.heads import Head, cell_grid
from utils.boxes import cxcywh_to_xyxy


@dataclass(frozen=True)
class DecodingHead(Head):
    """A head that turns its raw map into boxes and scores by itself."""

    @abstractmethod
    def boxes_and_rows(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, the logits that decide which slots are kept, and rows with logits from the fifth number on.

        Args:
            raw: the head's map [B A H W 5+C], float32.

        Returns:
            ``cxcywh`` in network pixels [B H W A 4], [B H W A], and [B H W A 5+C].
        """

    def decode(self, raw: Tensor, least_logit: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [M 4] as corners in network pixels, rows [M 5+C] and images [M] of the slots above a logit."""
        boxes_cxcywh, deciding, rows = self.boxes_and_rows(raw.float())
        kept = (deciding > least_logit) & boxes_cxcywh.isfinite().all(dim=-1)
        image = torch.arange(len(raw), device=raw.device)[:, None, None, None].expand_as(kept)
        return cxcywh_to_xyxy(boxes_cxcywh[kept]), rows[kept], image[kept]


@dataclass(frozen=True)
class CellHead(DecodingHead):
    """A ``[yolo]`` head with cells of any size, and with numbers that may be probabilities already.

    Darknet's ``src/yolo_layer.c``: the size of a cell is that of the network input over the number of cells.
    """

    cell_wh: tuple[float, float] = (1.0, 1.0)  # network pixels
    probabilities: bool = False  # new_coords=1 without the logistic before it

    def boxes_and_rows(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DecodingHead.boxes_and_rows`."""
        raw = raw.permute(0, 2, 3, 1, 4)  # B H W A 5+C
        rows, cols = raw.shape[1:3]
        numbers = raw[..., :4] if self.probabilities else raw[..., :4].sigmoid()
        center_xy = numbers[..., :2] * self.scale_x_y - (self.scale_x_y - 1) / 2
        center_xy = (center_xy + cell_grid(rows, cols, raw.device)[:, :, None]) * raw.new_tensor(self.cell_wh)
        size_wh = (numbers[..., 2:] * 2).square() if self.new_coords else raw[..., 2:4].exp()
        boxes = torch.cat((center_xy, size_wh * raw.new_tensor(self.anchors_wh)), dim=-1)
        if self.probabilities:
            return boxes, raw[..., 4].logit(eps=0.0), with_products(raw)
        return boxes, raw[..., 4], raw


def with_products(raw: Tensor) -> Tensor:
    """Turn probabilities [... 5+C] into logits: of each class times the objectness, and +inf for the objectness.

    Either number may lie outside of 0..1; only the product is meant to be a probability.
    """
    products = (raw[..., 4:5] * raw[..., 5:]).logit(eps=0.0)
    return torch.cat((raw[..., :4], torch.full_like(raw[..., 4:5], torch.inf), products), dim=-1)


@dataclass(frozen=True)
class GridHead(DecodingHead):
    """A ``[detection]`` section: per cell some boxes, which share the cell's classes; every number is used as it is.

    Darknet's ``src/detection_layer.c``: the centre counts in cells, the size is a share of the image or its root.
    """

    boxes_per_cell: int = 1
    input_wh: tuple[int, int] = (1, 1)  # network pixels
    root_sizes: bool = False

    @property
    def num_anchors(self) -> int:
        """Predictors per grid cell."""
        return self.boxes_per_cell

    def boxes_and_rows(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DecodingHead.boxes_and_rows`."""
        raw = raw.permute(0, 2, 3, 1, 4)  # B H W A 5+C
        rows, cols = raw.shape[1:3]
        cells = raw.new_tensor((cols, rows))
        center_xy = (raw[..., :2] + cell_grid(rows, cols, raw.device)[:, :, None]) / cells
        size_wh = raw[..., 2:4].square() if self.root_sizes else raw[..., 2:4].clamp(min=0)
        boxes = torch.cat((center_xy, size_wh), dim=-1) * raw.new_tensor(self.input_wh * 2)
        products = with_products(raw)
        return boxes, products[..., 4], products  # the objectness alone decides nothing
