"""Objects that non-maximum suppression (NMS) loses: suppressed by another object's box, or merged into one box.

A detection *belongs* to the object of its class that it overlaps most, if that IoU reaches ``own_iou``. An object is
*found* when a prediction above the confidence belongs to it before NMS. It is *suppressed* when it is found, no kept
detection belongs to it, and the kept box that removed its strongest prediction belongs to another object. Two objects
of one class are *merged* when not both have a detection of their own and one kept detection of their class stands for
both: it covers at least ``covered`` of the area of each, and either its IoU with both reaches ``own_iou``, or its IoU
with the box around them does and is higher than with either.

The thresholds are those of :class:`SuppressionRule`.

Shape letters: T objects, N predictions above the confidence, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.matching.pairs import Predictions
from models.assignment.inputs import marked
from models.decode import decode_predictions
from models.heads import Head
from models.nms import non_max_suppression, select_candidates
from utils.boxes import box_iou, intersection_over_first


@dataclass(frozen=True)
class SuppressionRule:
    """What is detected, and which object a detection belongs to."""

    confidence: float = 0.25  # minimum objectness x class probability of a prediction
    nms_iou: float = 0.6  # NMS drops a box that overlaps a stronger one of its class more than this
    own_iou: float = 0.5  # minimum IoU of a detection with the object that it belongs to
    covered: float = 0.5  # minimum share of each of two merged objects that one detection covers


def suppression_columns(
    predictions: Predictions, raw_maps: Sequence[Tensor], rule: SuppressionRule
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the columns ``found``, ``detected``, ``suppressed``, ``removed_by_none``, ``merged`` [T], and the pairs.

    ``removed_by_none``: found and not detected, but the box that removed its prediction belongs to no object.
    ``merged`` counts the merged pairs that an object is part of; the pairs are [P 2] rows of the targets, the smaller
    one first.
    """
    # Predictions before NMS, and which of them it keeps. A group is a class in an image: only its boxes are compared.
    heads = predictions.grid.heads
    boxes, scores, labels, image = detect_all(raw_maps, heads, rule.confidence)
    inputs = predictions.inputs
    count, targets = len(inputs.targets), inputs.targets
    groups = image * heads[0].num_classes + labels
    kept = non_max_suppression(boxes, scores, groups, rule.nms_iou, beta=heads[-1].nms_beta)
    # Every prediction with every object of its group: which object it belongs to.
    target_groups = targets.image * heads[0].num_classes + targets.label
    detection, target = same_group(groups, target_groups)
    iou = box_iou(boxes[detection], inputs.boxes_xyxy[target], elementwise=True)
    owner = owners(detection, target, iou, len(boxes), rule.own_iou)

    # Of the objects that were found and are not detected: whose box has removed their strongest prediction.
    found = marked(owner[owner >= 0], count)
    detected = marked(owner[kept][owner[kept] >= 0], count)
    remover = removers(boxes, scores, groups, owner, kept, found & ~detected)
    by_other = (remover >= 0) & (owner[remover.clamp(min=0)] >= 0) if len(boxes) else remover >= 0
    pairs = merged_pairs(boxes[kept], groups[kept], inputs.boxes_xyxy, target_groups, detected, rule)
    return {
        "found": found,
        "detected": detected,
        "suppressed": by_other,
        "removed_by_none": (remover >= 0) & ~by_other,
        "merged": torch.bincount(pairs.flatten(), minlength=count),
    }, pairs


def detect_all(
    raw_maps: Sequence[Tensor], heads: tuple[Head, ...], confidence: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes [N 4] (network pixels), scores, labels and images [N] of all predictions above a confidence.

    A slot predicts its most probable class only, as in detect.py.
    """
    decoded = decode_predictions(raw_maps, heads, confidence)
    slot, label, score = select_candidates(decoded.objectness, decoded.class_logits, confidence, multi_label=False)
    return decoded.boxes_xyxy_net[slot], score, label, decoded.image[slot]


def same_group(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices [P] in ``first`` and in ``second`` of equal entries, ordered by the first, then the second."""
    # The entries of ``second`` that equal one of ``first`` stand together once it is sorted: from low to high.
    order = torch.argsort(second, stable=True)
    in_order = second[order]
    low, high = torch.searchsorted(in_order, first), torch.searchsorted(in_order, first, right=True)
    # Each index of ``first`` is repeated so often, and counts its partners from 0.
    size = high - low
    index = torch.repeat_interleave(torch.arange(len(first), device=first.device), size)
    place = torch.arange(len(index), device=first.device) - (size.cumsum(0) - size)[index]
    return index, order[low[index] + place]


def owners(detection: Tensor, target: Tensor, iou: Tensor, count: int, own_iou: float) -> Tensor:
    """Return the object that each detection belongs to, [N], or -1; of equal IoUs the first object.

    Args:
        detection: [P], of each pair of a detection and an object.
        target: [P], the object.
        iou: [P], of the two.
        count: number of detections, N.
        own_iou: minimum IoU.
    """
    best = iou.new_full((count,), -1.0).scatter_reduce_(0, detection, iou, "amax")
    keep = (iou >= own_iou) & (iou == best[detection])
    none = torch.iinfo(torch.int64).max
    owner = target.new_full((count,), none).scatter_reduce_(0, detection[keep], target[keep], "amin")
    return owner.masked_fill(owner == none, -1)


def removers(boxes: Tensor, scores: Tensor, groups: Tensor, owner: Tensor, kept: Tensor, lost: Tensor) -> Tensor:
    """Return, for each lost object, the kept detection that overlaps its strongest prediction most, [T]; else -1.

    One of the kept boxes of its class with at least its score must have removed it. Several may overlap it enough to do
    so; the one that overlaps it most counts.

    Args:
        boxes: [N 4], of all predictions.
        scores: [N].
        groups: [N].
        owner: [N], from :func:`owners`.
        kept: indices of the predictions that NMS keeps.
        lost: [T] bool, the objects that were found and are not detected.
    """
    count = len(lost)
    result = torch.full((count,), -1, dtype=torch.int64, device=boxes.device)
    if not count:
        return result
    # The strongest prediction of each lost object, of equal scores the first.
    mine = ((owner >= 0) & lost[owner.clamp(min=0)]).nonzero().squeeze(1)
    highest = scores.new_full((count,), -1.0).scatter_reduce_(0, owner[mine], scores[mine], "amax")
    mine = mine[scores[mine] == highest[owner[mine]]]
    first = torch.full_like(result, len(boxes)).scatter_reduce_(0, owner[mine], mine, "amin")
    lost_rows = (first < len(boxes)).nonzero().squeeze(1)
    # The kept boxes of its group that are at least as strong.
    prediction, other = same_group(groups[first[lost_rows]], groups[kept])
    other_index = kept[other]
    stronger = scores[other_index] >= scores[first[lost_rows]][prediction]
    prediction, other_index = prediction[stronger], other_index[stronger]
    # Of these, the one with the highest IoU, of equal ones the first.
    iou = box_iou(boxes[first[lost_rows]][prediction], boxes[other_index], elementwise=True)
    best = iou.new_full((len(lost_rows),), -1.0).scatter_reduce_(0, prediction, iou, "amax")
    keep = iou == best[prediction]
    chosen = torch.full_like(lost_rows, len(boxes)).scatter_reduce_(0, prediction[keep], other_index[keep], "amin")
    result[lost_rows] = chosen.masked_fill(chosen == len(boxes), -1)
    return result


def merged_pairs(
    kept_boxes: Tensor,
    kept_groups: Tensor,
    truth: Tensor,
    target_groups: Tensor,
    detected: Tensor,
    rule: SuppressionRule,
) -> Tensor:
    """Return the merged pairs of objects, [P 2] rows of ``truth``, the smaller one first, each once.

    Args:
        kept_boxes: [n 4], those that NMS keeps.
        kept_groups: [n].
        truth: [T 4], the boxes of the objects.
        target_groups: [T].
        detected: [T] bool, objects that a kept detection belongs to.
        rule: the thresholds.
    """
    # Which kept boxes cover enough of which objects of their group.
    detection, target = same_group(kept_groups, target_groups)
    share = intersection_over_first(truth[target], kept_boxes[detection])
    detection, target = detection[share >= rule.covered], target[share >= rule.covered]
    # Every two objects under one box, each pair once, unless both have a detection of their own.
    one, other = same_group(detection, detection)
    keep = target[one] < target[other]
    keep &= ~(detected[target[one]] & detected[target[other]])
    box, first, second = kept_boxes[detection[one[keep]]], target[one[keep]], target[other[keep]]
    # The box stands for both if it fits each of them, or the box around them better than either.
    hull = torch.cat(
        (torch.minimum(truth[first, :2], truth[second, :2]), torch.maximum(truth[first, 2:], truth[second, 2:])), dim=1
    )
    with_hull, with_first, with_second = (
        box_iou(box, boxes, elementwise=True) for boxes in (hull, truth[first], truth[second])
    )
    fits_both = torch.minimum(with_first, with_second) >= rule.own_iou
    fits_hull = (with_hull >= rule.own_iou) & (with_hull > torch.maximum(with_first, with_second))
    return torch.unique(torch.stack((first, second), dim=1)[fits_both | fits_hull], dim=0)
