"""TAL, task-aligned learning's sample assignment (TOOD, arXiv 2108.07755, section 3.2), on the slots of an anchor head.

Shape letters: T targets, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from models.assignment.candidates import cell_centers_inside
from models.assignment.inputs import AssignmentInput, Pairs, best_target_of_slot, ranks, window_pairs
from models.assignment.strategy import Strategy
from utils.boxes import box_iou


@dataclass(frozen=True)
class Tal:
    """The ten slots with the highest score^0.5 · IoU^6 among those whose cell centre lies inside the target.

    The score is objectness × probability of the target's class, what the detector ranks by. A slot whose prediction
    does not touch the target never matches; a slot wanted by several targets goes to the one with the highest IoU.

    The two powers and the ten are those of YOLOv8 (ultralytics/ultralytics v8.0); the paper has 1, 6 and 13.
    """

    score_power: float = 0.5  # α
    iou_power: float = 6.0  # β
    num_best: int = 10

    def __call__(self, inputs: AssignmentInput) -> Pairs:
        """Return the pairs of the batch, with the predicted IoU."""
        chunks = []
        for pairs in window_pairs(inputs, *cell_centers_inside(inputs)):
            # A chunk holds all slots of its targets, so that the best of a target can be taken chunk by chunk.
            truth = inputs.boxes_xyxy[pairs.target]
            pairs = replace(pairs, iou=box_iou(inputs.predicted_xyxy(pairs), truth, elementwise=True))
            objectness = torch.cat(inputs.raw_rows(pairs, slice(4, 5))).float().squeeze(1)
            score = objectness.sigmoid() * inputs.class_logits(pairs).sigmoid()
            aligned = score**self.score_power * pairs.iou**self.iou_power  # P
            keep = (ranks(pairs.target, -aligned, inputs.slots(pairs)) < self.num_best) & (aligned > 0)
            chunks.append(pairs.select(keep))
        pairs = Pairs.join(chunks)
        return best_target_of_slot(inputs, pairs, -pairs.iou)


STRATEGY = Strategy("tal", Tal, reads_predictions=True)
