"""Masks of detected objects: kept as small grids over their boxes, laid onto the image one by one when asked for.

A mask of a whole image takes a thousand times the memory. Shape letters: N objects, m cells along the side of a grid,
h w pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

COVERED = 0.5  # a pixel belongs to an object where the grid says more than this


@dataclass(frozen=True)
class BoxMasks:
    """The masks of the objects of one image."""

    grids: Tensor  # [N m m] float32, 0..1: the probability that the object covers the cell
    boxes_xyxy: Tensor  # [N 4] pixels of the image, over which the grids lie; they may reach out of it
    image_wh: tuple[int, int]

    def __len__(self) -> int:
        return len(self.grids)

    def select(self, index: Tensor) -> BoxMasks:
        """Return the masks at ``index``, a [N] bool mask or an index tensor."""
        return BoxMasks(self.grids[index], self.boxes_xyxy[index], self.image_wh)

    def cpu(self) -> BoxMasks:
        """Return the same masks on the CPU."""
        return BoxMasks(self.grids.cpu(), self.boxes_xyxy.cpu(), self.image_wh)

    def of_object(self, index: int) -> np.ndarray:
        """Return the pixels [h w] bool that one object covers.

        Interpolated and rounded as ``paste_masks_in_image`` of torchvision 0.29 (models/detection/roi_heads.py): with a
        border of one empty cell, in a box of whole pixels whose last row and column belong to it.
        """
        width, height = self.image_wh
        whole = np.zeros((height, width), dtype=bool)
        grid = functional.pad(self.grids[index].float().cpu(), (1, 1, 1, 1))
        box = self.boxes_xyxy[index].float().cpu()
        half = (box[2:] - box[:2]) * 0.5 * (len(grid) / (len(grid) - 2))
        center = (box[2:] + box[:2]) * 0.5
        left, top, right, bottom = torch.cat((center - half, center + half)).long().tolist()
        size_hw = max(bottom - top + 1, 1), max(right - left + 1, 1)
        pasted = functional.interpolate(grid[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0]
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
        if x1 < x2 and y1 < y2:
            whole[y1:y2, x1:x2] = (pasted[y1 - top : y2 - top, x1 - left : x2 - left] > COVERED).numpy()
        return whole

    def whole(self) -> np.ndarray:
        """Return all masks, [N h w] bool."""
        width, height = self.image_wh
        masks = np.zeros((len(self), height, width), dtype=bool)
        for index, out in enumerate(masks):
            out[:] = self.of_object(index)
        return masks
