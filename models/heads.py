"""Detection heads: what a slot's raw numbers mean as a box.

Training, inference and matching all decode by the functions of this file.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

EXP_LIMIT = 1e3  # exp(tw) is at most this in training, as in ultralytics/yolov3 v7: unbounded, it makes losses infinite


@dataclass(frozen=True)
class Head:
    """One ``[yolo]`` section: its anchors, its stride and how its raw map decodes."""

    anchors_wh: tuple[tuple[float, float], ...]  # pixels of the network input, those that the mask selects
    stride: int  # pixels of the network input per grid cell
    num_classes: int
    scale_x_y: float = 1.0
    new_coords: bool = False  # False: Darknet's exp for sizes; True: (2 sigmoid)^2, as YOLOv4-csp and YOLOv5
    all_anchors_wh: tuple[tuple[float, float], ...] = ()  # its section's whole list, in a usual cfg that of every head
    mask: tuple[int, ...] = ()  # which of them are this head's
    ignore_thresh: float = 0.5  # Darknet's: predictions above it are no negatives
    iou_thresh: float = 1.0  # Darknet's: below 1, further anchors of the mask above it match too
    nms_beta: float | None = None  # Darknet's greedynms and diounms, see models/nms.py; None: plain IoU

    @property
    def num_anchors(self) -> int:
        """Predictors per grid cell."""
        return len(self.anchors_wh)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a constant first made by an evaluation must still be usable where gradients are taken
def priors_wh(head: Head, device: torch.device) -> Tensor:
    """Return the head's anchors in grid units, [A 2] float32; kept per device so that decoding moves no data."""
    return torch.tensor(head.anchors_wh, dtype=torch.float32, device=device) / head.stride


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def cell_grid(rows: int, cols: int, device: torch.device) -> Tensor:
    """Return the (column, row) of every cell, [H W 2] float32."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(cols, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).float()


def decode_boxes(
    raw_xywh: Tensor, cell_xy: Tensor, prior_wh: Tensor, head: Head, exp_limit: float = EXP_LIMIT
) -> Tensor:
    """Decode raw outputs into ``cxcywh`` boxes in grid units, in float32 and differentiably.

    Args:
        raw_xywh: [... 4], the first four raw numbers of each slot.
        cell_xy: [... 2], column and row of each slot.
        prior_wh: [... 2], each slot's anchor in grid units.
        head: says which of the two decodes applies.
        exp_limit: clamp of ``exp(tw)``; ``math.inf`` gives Darknet's unclamped inference.

    Darknet (src/yolo_layer.c): ``x = s sigma(tx) - (s-1)/2 + i``, ``w = pw exp(tw)`` with ``s`` for scale_x_y, column
    ``i`` and anchor width ``pw``; with new_coords, as in ultralytics/yolov5 v7.0, ``w = pw (2 sigma(tw))^2``.
    """
    raw_xywh = raw_xywh.float()
    scale = head.scale_x_y
    center_xy = raw_xywh[..., :2].sigmoid() * scale - (scale - 1) / 2 + cell_xy
    if head.new_coords:
        size_wh = (raw_xywh[..., 2:].sigmoid() * 2).square() * prior_wh
    else:
        # Clamped before exp: where exp overflows, a clamp after it has the gradient 0 * inf.
        size_wh = raw_xywh[..., 2:].clamp(max=math.log(exp_limit)).exp() * prior_wh
    return torch.cat((center_xy, size_wh), dim=-1)


def decode_map(raw: Tensor, head: Head, exp_limit: float = EXP_LIMIT) -> Tensor:
    """Decode a whole raw map [B A H W 5+C] into ``cxcywh`` boxes in grid units, [B A H W 4] float32."""
    rows, cols = raw.shape[2:4]
    prior_wh = priors_wh(head, raw.device)[:, None, None, :]  # A 1 1 2
    return decode_boxes(raw[..., :4], cell_grid(rows, cols, raw.device), prior_wh, head, exp_limit)
