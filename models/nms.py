"""Greedy non-maximum suppression in pure torch: exact, deterministic, on CPU and CUDA, without torchvision.

Candidates are looked at from the strongest to the weakest in blocks. A block is first compared with what was kept so
far, then with itself, and the search ends as soon as the wanted number of detections is reached; so with a low
confidence, where there are tens of thousands of candidates, nearly all of them are never compared with anything.
Classes are kept apart by a mask: the usual offset per class (box + class x 4096) rounds the coordinates in float32 and
changes results.

Shape letters: N candidates, M boxes that they are compared with, K boxes kept, S slots of one image, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 256  # candidates compared at once: beyond it the block's own comparison, quadratic, dominates
FIRST_PORTION = 2048  # the strongest candidates, sorted first; the rest is sorted only when they were not enough
LOGIT_SLACK = 1e-3  # a selection by logits lets this much more pass; the exact comparison is made on the score


def non_max_suppression(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    max_detections: int | None = None,
    agnostic: bool = False,
    beta: float | None = None,
) -> Tensor:
    """Return the indices of the boxes that greedy NMS keeps, strongest first, [K] int64.

    A box is dropped when a kept box of its class, stronger than it, overlaps it with IoU > ``iou_threshold``. Equal
    scores are ranked by index. The result is that of the textbook loop over all candidates, cut off after
    ``max_detections``.

    Args:
        boxes_xyxy: [N 4] corners, any unit; float32 is compared in float32.
        scores: [N].
        labels: [N] class of each box; boxes of different classes never suppress one another.
        iou_threshold: 0..1.
        max_detections: how many boxes are wanted, all of them when None.
        agnostic: let boxes suppress one another whatever their class.
        beta: compare IoU - (d / c)^beta instead of IoU, where d is the squared distance of the centres and c the
            squared diagonal of the box around both (DIoU-NMS, arXiv 1911.08287; in Darknet's src/box.c ``diounms``
            with ``beta_nms``, and ``greedynms`` with 0.6).
    """
    room = len(scores) if max_detections is None else max_detections
    kept_index = scores.new_zeros(0, dtype=torch.int64)
    kept_boxes = boxes_xyxy.new_zeros(5, 0)  # rows x1, y1, x2, y2, area
    kept_labels = labels.new_zeros(0)
    for order in _sorted_portions(scores):
        ranked_boxes = _with_areas(boxes_xyxy[order])
        ranked_labels = labels.new_zeros(len(order)) if agnostic else labels[order]
        for start in range(0, len(order), BLOCK):
            if len(kept_index) >= room:
                return kept_index
            block = slice(start, start + BLOCK)
            index, boxes, groups = order[block], ranked_boxes[:, block], ranked_labels[block]
            # Drop what a box kept from an earlier block suppresses.
            if len(kept_index):
                free = ~_suppresses(kept_boxes, kept_labels, boxes, groups, iou_threshold, beta).any(dim=0)
                index, boxes, groups = index[free], boxes[:, free], groups[free]
            # Of the rest, drop what a stronger box of this block does: above the diagonal the row is the stronger one.
            survives = _greedy(_suppresses(boxes, groups, boxes, groups, iou_threshold, beta).triu(diagonal=1))
            survives = survives.nonzero().flatten()[: room - len(kept_index)]
            kept_index = torch.cat((kept_index, index[survives]))
            kept_boxes = torch.cat((kept_boxes, boxes[:, survives]), dim=1)
            kept_labels = torch.cat((kept_labels, groups[survives]))
    return kept_index


def select_candidates(
    objectness: Tensor, class_logits: Tensor, confidence: float, multi_label: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (slot [N] int64, label [N] int64, score [N] float32) of every candidate with score > ``confidence``.

    The score is sigmoid(objectness) x sigmoid(class logit). Classes are compared as logits, so that the exponentials
    are computed for the survivors only.

    Args:
        objectness: [S] logits.
        class_logits: [S C] logits.
        confidence: 0..1.
        multi_label: True makes a candidate of every slot and class that passes (for evaluation), False of every slot
            with its best class.
    """
    objectness_probability = objectness.float().sigmoid()
    if multi_label:
        # sigmoid(class) > confidence / objectness, both sides as logits. A quotient above 1 is clamped to 1, whose
        # logit +inf no class passes.
        limit = (confidence / objectness_probability).clamp(max=1.0).logit() - LOGIT_SLACK
        slot, label = (class_logits > limit[:, None]).nonzero(as_tuple=True)
        class_logit = class_logits[slot, label]
    else:
        class_logit, label = class_logits.max(dim=1)
        slot = torch.arange(len(label), device=label.device)
    score = objectness_probability[slot] * class_logit.float().sigmoid()
    passes = score > confidence
    return slot[passes], label[passes], score[passes]


def logit(probability: float) -> float:
    """Return the logit of a probability: -inf at 0, +inf at 1."""
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


def _sorted_portions(scores: Tensor) -> Iterator[Tensor]:
    """Yield the indices of all candidates, strongest first and equal ones by index, in portions of growing size."""
    rest = torch.arange(len(scores), device=scores.device)
    size = FIRST_PORTION
    while len(rest) > 2 * size:
        rest_scores = scores[rest]
        # All candidates equal to the weakest of the portion join it, so that the order does not depend on topk's ties.
        strong = rest_scores >= rest_scores.topk(size, sorted=False).values.min()
        portion = rest[strong]
        yield portion[scores[portion].sort(descending=True, stable=True).indices]
        rest = rest[~strong]
        size *= 4
    if len(rest):
        yield rest[scores[rest].sort(descending=True, stable=True).indices]


def _with_areas(boxes_xyxy: Tensor) -> Tensor:
    """Return [5 N]: x1, y1, x2, y2 and area as rows, each contiguous, because the comparisons read them one by one."""
    area = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return torch.cat((boxes_xyxy.t(), area[None]))


def _suppresses(
    boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, iou_threshold: float, beta: float | None
) -> Tensor:
    """Return [N M] bool: box n overlaps other m of the same label with IoU (less the penalty) above the threshold.

    ``boxes`` [5 N] and ``others`` [5 M] are rows of :func:`_with_areas`. A union of 0 gives NaN, which is not above.
    """
    x1, y1, x2, y2, area = (row[:, None] for row in boxes)  # N 1; the rows of the others, [M], broadcast to N M
    width = (torch.minimum(x2, others[2]) - torch.maximum(x1, others[0])).clamp_(min=0)
    height = (torch.minimum(y2, others[3]) - torch.maximum(y1, others[1])).clamp_(min=0)
    intersection = width.mul_(height)
    union = (area + others[4]).sub_(intersection)
    overlap = intersection.div_(union)
    if beta is not None:
        # The sums of corners are twice the centres: four times the squared distance.
        distance = (x1 + x2 - others[0] - others[2]).square() + (y1 + y2 - others[1] - others[3]).square()
        around_w = torch.maximum(x2, others[2]) - torch.minimum(x1, others[0])
        around_h = torch.maximum(y2, others[3]) - torch.minimum(y1, others[1])
        overlap -= (distance / 4 / (around_w.square() + around_h.square()).clamp_(min=1e-9)) ** beta
    return (overlap > iou_threshold).logical_and_(labels[:, None] == other_labels)


def _greedy(suppresses: Tensor) -> Tensor:
    """Return which of N ranked candidates survive, [N] bool, given [N N] bool: row suppresses column.

    Only entries above the diagonal may be True. A candidate survives where no survivor suppresses it; this has exactly
    one solution, the greedy one, because a row acts on later columns only. Applied again and again, the rule settles at
    least one more rank each time, and usually all of them within a handful of rounds.
    """
    survives = ~suppresses.any(dim=0)
    while True:
        updated = ~(suppresses & survives[:, None]).any(dim=0)
        if torch.equal(updated, survives):
            return survives
        survives = updated
