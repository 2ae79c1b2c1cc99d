"""What non-maximum suppression takes from the objects, for every kind of it, from boxes before and after.

Objects that are found, detected, suppressed and merged are those of :mod:`analysis.matching.suppression`. New is the
best box of an object that was found: it is lost where no box that is left fits as well.

Shape letters: T objects, N boxes before suppression, K after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.matching.suppression import SuppressionRule, merged_pairs, owners, removers
from analysis.output.result import counted, mean, share
from analysis.score_mismatch.boxes import FoundBoxes, ObjectBoxes, groups_of_boxes
from analysis.score_mismatch.scores import overlapping_pairs
from models.assignment.inputs import marked
from models.nms_variants import NMS_KINDS, NmsRule, suppress
from utils.structures import Detections

ROUNDING = 1e-6  # of an IoU: boxes that ``merge`` averages with nothing else are rounded once more


@dataclass(frozen=True)
class Suppressed:
    """What one kind of suppression did to some objects and boxes."""

    found: np.ndarray  # [T] bool, a box belongs to the object before suppression
    detected: np.ndarray  # [T] bool, and after it
    suppressed: np.ndarray  # [T] bool, found and not detected, because of a box that belongs to another object
    removed_by_none: np.ndarray  # [T] bool, likewise, because of a box that belongs to no object
    merged: np.ndarray  # [T] int64, merged pairs that the object is part of
    best_before: np.ndarray  # [T] float64, highest IoU of a box of its class with the object, 0 without one
    best_after: np.ndarray  # [T] float64
    boxes_before: int
    boxes_after: int
    num_merged: int  # pairs of objects

    @staticmethod
    def joined(parts: Sequence[Suppressed]) -> Suppressed:
        """Return what was measured of the objects of all parts."""
        columns = ("found", "detected", "suppressed", "removed_by_none", "merged", "best_before", "best_after")
        values: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        for name in ("boxes_before", "boxes_after", "num_merged"):
            values[name] = sum(getattr(part, name) for part in parts)
        return Suppressed(**values)


def nms_rules(rule: NmsRule) -> dict[str, NmsRule]:
    """Return the rule of every kind of suppression with the thresholds of one, that one's first.

    "cfg" is among them where the cfg asks for something else than greedy suppression.
    """
    chosen = "greedy" if rule.kind == "cfg" and rule.cfg_beta is None else rule.kind
    kinds = [kind for kind in NMS_KINDS if kind != "cfg" or rule.cfg_beta is not None]
    ordered = dict.fromkeys((chosen, *kinds))
    return {
        kind: NmsRule(rule.iou_threshold, None, kind, rule.agnostic, rule.confidence, rule.sigma, rule.cfg_beta)
        for kind in ordered
    }


def suppress_images(boxes: FoundBoxes, rule: NmsRule) -> FoundBoxes:
    """Return what is left of the boxes of some images."""
    images, counts = boxes.image.unique(return_counts=True)
    in_order = boxes.select(boxes.image.argsort(stable=True))
    columns = (in_order.boxes_xyxy, in_order.scores, in_order.label)
    of_images = zip(*(column.split(counts.tolist()) for column in columns), strict=True)
    kept = [suppress(Detections(*of_image), rule) for of_image in of_images]
    return FoundBoxes.of_images(kept, images.tolist()) if kept else boxes


def measure_suppression(
    objects: ObjectBoxes, before: FoundBoxes, after: FoundBoxes, rule: SuppressionRule, agnostic: bool, num_classes: int
) -> Suppressed:
    """Measure what suppression took from the objects.

    Args:
        objects: of the images.
        before: all boxes above the confidence.
        after: what is left of them; scores may be lower, boxes may be means of several.
        rule: which object a box belongs to.
        agnostic: boxes of different classes suppress one another, too.
        num_classes: of the data.
    """
    count, kept = len(objects), torch.arange(len(before), len(before) + len(after))
    boxes, scores = torch.cat((before.boxes_xyxy, after.boxes_xyxy)), torch.cat((before.scores, after.scores))
    together = FoundBoxes(torch.cat((before.image, after.image)), torch.cat((before.label, after.label)), boxes, scores)
    groups = groups_of_boxes(together, num_classes)
    box, target, iou = overlapping_pairs(objects, together, 0.0, num_classes)
    owner = owners(box, target, iou, len(boxes), rule.own_iou)
    found = marked(owner[: len(before)][owner[: len(before)] >= 0], count)
    detected = marked(owner[kept][owner[kept] >= 0], count)
    suppressing = together.image if agnostic else groups
    remover = removers(boxes, scores, suppressing, owner, kept, found & ~detected)
    by_other = (remover >= 0) & (owner[remover.clamp(min=0)] >= 0) if len(boxes) else remover >= 0
    pairs = merged_pairs(
        after.boxes_xyxy, groups[kept], objects.boxes_xyxy, groups_of_boxes(objects, num_classes), detected, rule
    )
    is_before = box < len(before)
    return Suppressed(
        found=found.numpy(),
        detected=detected.numpy(),
        suppressed=by_other.numpy(),
        removed_by_none=((remover >= 0) & ~by_other).numpy(),
        merged=torch.bincount(pairs.flatten(), minlength=count).numpy(),
        best_before=highest(target[is_before], iou[is_before], count).numpy(),
        best_after=highest(target[~is_before], iou[~is_before], count).numpy(),
        boxes_before=len(before),
        boxes_after=len(after),
        num_merged=len(pairs),
    )


def highest(target: Tensor, iou: Tensor, count: int) -> Tensor:
    """Return the highest IoU of each object's pairs, [count]; 0 without one."""
    return iou.new_zeros(count).scatter_reduce_(0, target, iou, "amax")


def suppression_statistics(kinds: Mapping[str, Suppressed]) -> dict[str, Any]:
    """Return the statistics of every kind of suppression."""
    return {
        kind: {"boxes_before": one.boxes_before, "boxes_after": one.boxes_after}
        | statistics_of_objects(one, np.ones(len(one.found), dtype=bool))
        | {"merged_pairs": one.num_merged}
        for kind, one in kinds.items()
    }


def statistics_of_objects(one: Suppressed, chosen: np.ndarray) -> dict[str, Any]:
    """Return the statistics of the objects where ``chosen`` [T] is True."""
    names = ("found", "detected", "suppressed", "removed_by_none")
    found = one.found & chosen
    before, after = one.best_before[found], one.best_after[found]
    is_lost = after < before - ROUNDING
    return {
        **{name: counted(getattr(one, name)[chosen]) for name in names},
        "in_merged_pairs": counted(one.merged[chosen] > 0),
        "best_box_lost": {"objects": int(is_lost.sum()), "found_share": share(is_lost.sum(), len(is_lost))},
        "mean_iou_ratio": mean(after / before),
    }
