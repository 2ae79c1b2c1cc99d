"""ATSS, adaptive training sample selection (arXiv 1912.02424, algorithm 1), on the slots of an anchor head.

Shape letters: L heads, K anchors of all heads together, T targets, k cells taken per head, W side of a window of cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.assignment.inputs import AssignmentInput, Pairs, best_target_of_slot
from models.assignment.strategy import Strategy
from utils.boxes import box_iou


@dataclass(frozen=True)
class Atss:
    """Of the slots in the k closest cells of every head, those whose IoU reaches the mean + standard deviation of all.

    The IoU is that of the slot's anchor, placed at the centre of its cell, with the target. Mean and (sample) standard
    deviation are taken over the slots of all heads, so that every target has a threshold of its own. The centre of the
    cell must lie inside the target. A slot wanted by several targets goes to the one whose IoU is highest.

    The paper's k counts anchors, of which its networks have one per cell; where a cell has several, k counts cells
    here, as in the authors' code.
    """

    closest: int = 9  # k

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch."""
        grid = inputs.grid
        col, row, exists = self._closest_cells(inputs)  # T L k each

        # Every anchor of a head at the centres of the head's closest cells.
        exists = exists[:, grid.head]  # T K k
        x, y = (  # T K k, network pixels
            ((part + (grid.first_xy + 0.5)) * side[:, None])[:, grid.head]
            for part, side in zip((col, row), grid.cell_wh.unbind(dim=1), strict=True)
        )
        half_w, half_h = (grid.prior_wh / 2).T[..., None]  # K 1
        # Stacked in front, so that the IoU reads all boxes' x1, then all y1, without gaps.
        anchors = torch.stack((x - half_w, y - half_h, x + half_w, y + half_h)).movedim(0, -1)  # T K k 4
        iou = box_iou(anchors, inputs.boxes_xyxy[:, None, None, :], elementwise=True) * exists

        # Cells outside of a small grid have IoU 0 and are left out of the count and of the deviation.
        count = exists.sum(dim=(1, 2), keepdim=True)  # T 1 1
        mean = iou.sum(dim=(1, 2), keepdim=True) / count
        spread = ((iou - mean).square() * exists).sum(dim=(1, 2), keepdim=True) / (count - 1).clamp(min=1)
        left, top, right, bottom = inputs.boxes_xyxy.T[:, :, None, None]  # T 1 1
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        keep = (iou >= mean + spread.sqrt()) & inside & exists  # T K k

        # The anchor in front, because pairs come in rising order of anchor.
        anchor, target, which = keep.transpose(0, 1).nonzero(as_tuple=True)
        place = (target, grid.head[anchor], which)
        pairs = Pairs(target, anchor, row[place].long(), col[place].long(), iou[target, anchor, which])
        return best_target_of_slot(inputs, pairs, -pairs.iou)

    def _closest_cells(self, inputs: AssignmentInput) -> tuple[Tensor, Tensor, Tensor]:
        """Return columns and rows of the cells closest to each target's centre, [T L k], and which of them exist."""
        grid = inputs.grid
        # Up to nine closest cells lie in the 7 x 7 around the centre's, moved into the grid, unless the grid is narrow:
        # then they may all lie in one row or column.
        narrow = min(min(shape) for shape in grid.shapes) < 3 or self.closest > 9
        window = 2 * self.closest + 1 if narrow else 7
        start = (inputs.cells - window // 2).minimum((grid.head_wh - window).long()).clamp(min=0)  # T L 2
        cells = start[..., None] + torch.arange(window, device=start.device)  # T L 2 W
        distance = (cells + 0.5 - inputs.centers[..., None]).square()
        distance = distance.masked_fill(cells >= grid.head_wh[:, :, None], torch.inf)  # T L 2 W
        square = (distance[:, :, 1, :, None] + distance[:, :, 0, None, :]).flatten(2)  # T L W*W, by row, then column
        # topk breaks ties in no fixed order, so keys must be unique: the bits of a float that is not negative, read as
        # a whole number, rise with the float, and the place in the window, below them, decides among equal distances.
        key = square.view(torch.int32).long() * window**2 + torch.arange(window**2, device=start.device)
        order = key.topk(self.closest, largest=False).indices  # T L k, places in the window
        row = torch.div(order, window, rounding_mode="floor")
        col = order - row * window
        return start[..., :1] + col, start[..., 1:] + row, square.gather(2, order).isfinite()


STRATEGY = Strategy("atss", Atss)
