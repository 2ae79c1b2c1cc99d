"""The rule of RetinaNet and Faster R-CNN (arXiv 1708.02002, section 4.1; arXiv 1506.01497): the IoU with whole anchors.

Shape letters: B images with objects, S slots of one image, T targets, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from models.assignment.candidates import cells_whose_anchors_touch
from models.assignment.inputs import AssignmentInput, Pairs, window_pairs
from models.assignment.strategy import Strategy
from utils.boxes import box_iou


@dataclass(frozen=True)
class MaxIou:
    """Every slot whose anchor, placed in its cell, has an IoU of at least ``iou_t`` with an object.

    A slot goes to the object with which its IoU is highest, of equal ones by label, then box. The slots that overlap an
    object most of all match, too, however low that IoU is: to their own best object, as torchvision's ``Matcher`` does.
    What is left from ``background_iou`` on is neither positive nor negative.
    """

    iou_t: float = 0.5
    background_iou: float = 0.4

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch, with the IoU of the anchor, and the slots that are undecided."""
        grid, count = inputs.grid, len(inputs.targets)
        num_slots = (int(inputs.targets.image.max()) + 1) * grid.slots_per_image  # B*S
        # One number per slot for its highest IoU and the target that has it: the bits of a float that is not negative,
        # read as a whole number, rise with the float, and the target's rank, below them, decides among equal ones.
        best = torch.zeros(num_slots, dtype=torch.int64, device=grid.head.device)
        is_best_of_target = torch.zeros_like(best, dtype=torch.bool)
        for pairs in window_pairs(inputs, *cells_whose_anchors_touch(inputs)):
            anchors = grid.anchors_xyxy(pairs.anchor, pairs.row, pairs.col)
            iou = box_iou(anchors, inputs.boxes_xyxy[pairs.target], elementwise=True)  # P
            slot = inputs.slots(pairs)
            key = iou.view(torch.int32).long() * count + (count - 1 - inputs.target_rank[pairs.target])
            best.scatter_reduce_(0, slot, key, "amax")
            # All pairs of a target come together, so that its highest IoU is known.
            highest = iou.new_zeros(count).scatter_reduce_(0, pairs.target, iou, "amax")
            is_best_of_target[slot[(iou == highest[pairs.target]) & (iou > 0)]] = True

        iou = torch.div(best, count, rounding_mode="floor").int().view(torch.float32)  # B*S
        positive = ((iou >= self.iou_t) & (iou > 0)) | is_best_of_target
        slot = positive.nonzero().squeeze(1)
        target = inputs.target_rank.argsort()[count - 1 - best[slot] % count]
        place = grid.locate(slot)
        pairs = Pairs(target, place.anchor, place.row, place.col, iou[slot]).sorted_by_anchor()
        return replace(pairs, undecided=((iou >= self.background_iou) & ~positive).nonzero().squeeze(1))


STRATEGY = Strategy("maxiou", MaxIou, needs_anchors=True)
