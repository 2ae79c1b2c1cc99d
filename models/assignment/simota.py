"""SimOTA, simplified optimal transport assignment (YOLOX, arXiv 2107.08430), on the slots of an anchor head.

Shape letters: C classes, T targets, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.assignment.candidates import cell_centers_inside, cell_centers_within
from models.assignment.inputs import AssignmentInput, Pairs, best_target_of_slot, ranks, window_pairs
from models.assignment.strategy import Strategy
from utils.boxes import box_iou

NUMBERS_AT_ONCE = 8_000_000  # raw numbers gathered at once: bounds the memory
LOWEST_LOG = -100.0  # logarithms are clamped here, as in torch's binary cross-entropy


@dataclass(frozen=True)
class SimOta:
    """The k cheapest slots near the target's centre; k is the sum of the ten highest IoUs, rounded down, at least 1.

    cost = binary cross-entropy of sqrt(class × objectness), summed over classes, + 3 · (−log IoU), where IoU is that of
    the prediction with the target. A slot wanted by several targets goes to the one for which it is cheapest.

    Of a RetinaNet and an FCOS the network's own score takes the place of sqrt(class × objectness). A box of FCOS holds
    its point, so that the point must lie in the target as well.
    """

    radius: float = 2.5  # cells of each head, in x and in y, from the centre of the target to that of the cell
    box_gain: float = 3.0  # weight of the box's part of the cost
    num_best: int = 10  # how many IoUs are summed

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch, with the predicted IoU."""
        chunks, costs = [], []
        at_once = NUMBERS_AT_ONCE // inputs.raw_maps[0].shape[-1]
        # A chunk holds all slots of its targets, so that a target's k slots can be chosen chunk by chunk.
        low, high = cell_centers_within(inputs, self.radius)
        if not inputs.grid.heads[0].has_anchors:
            first, last = cell_centers_inside(inputs)
            low, high = low.maximum(first), high.minimum(last)
        for pairs in window_pairs(inputs, low, high, at_once=at_once):
            truth = inputs.boxes_xyxy[pairs.target]
            pairs = replace(pairs, iou=box_iou(inputs.predicted_xyxy(pairs), truth, elementwise=True))
            cost = _class_cost(inputs, pairs) - self.box_gain * (pairs.iou + 1e-8).log()

            # k of each target: the ten highest IoUs in a table [T 10], so that they are always summed in one order.
            slots = inputs.slots(pairs)  # break ties
            rank = ranks(pairs.target, -pairs.iou, slots)
            best = (rank < self.num_best).nonzero().squeeze(1)
            best_ious = torch.zeros(len(inputs.targets), self.num_best, device=cost.device)
            best_ious[pairs.target[best], rank[best]] = pairs.iou[best]
            num_slots = best_ious.sum(dim=1).floor().clamp(min=1)  # T

            keep = (ranks(pairs.target, cost, slots) < num_slots[pairs.target]).nonzero().squeeze(1)
            chunks.append(pairs.select(keep))
            costs.append(cost[keep])
        # Pairs.join sorts by anchor; the costs must follow.
        order = torch.argsort(torch.cat([part.anchor for part in chunks]), stable=True)
        return best_target_of_slot(inputs, Pairs.join(chunks), torch.cat(costs)[order])


def _class_cost(inputs: AssignmentInput, pairs: Pairs) -> Tensor:
    """Return the cross-entropy of the score with the one-hot class of the target, summed over C, [P].

    Computed in place: the raw numbers [P 1+C] are the largest tensor of the strategy.
    """
    head = inputs.grid.heads[0]
    raw = torch.cat(inputs.raw_rows(pairs, slice(4, 5 + head.num_classes))).float().sigmoid_()  # P 1+C
    probability = raw[:, 1:].mul_(raw[:, :1])  # P C
    if not head.is_dense:
        probability = probability.sqrt_()
    of_label = probability.gather(1, inputs.targets.label[pairs.target][:, None]).squeeze(1)  # P
    # Sum log(1 − p) as if every class were absent, then exchange the term of the target's own class for log(p).
    absent = probability.neg_().log1p_().clamp_(min=LOWEST_LOG).sum(dim=1)
    return -absent + (-of_label).log1p().clamp(min=LOWEST_LOG) - of_label.log().clamp(min=LOWEST_LOG)


STRATEGY = Strategy("simota", SimOta, reads_predictions=True)
