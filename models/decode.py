"""From raw maps to boxes: which slots pass a confidence, where their boxes lie, and which classes they may have.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M slots whose objectness passes the
confidence, N candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.exact_heads import DecodingHead
from models.heads import Head, decode_boxes, priors_wh, scoring_rows
from models.nms import LOGIT_SLACK, logit, select_candidates
from utils.boxes import cxcywh_to_xyxy
from utils.structures import Detections

MULTI_LABEL_BELOW = 0.1  # up to this confidence one box may carry several classes, as is usual in COCO evaluation


@dataclass(frozen=True)
class DecodedPredictions:
    """The slots of a batch whose objectness alone passes the confidence, ordered by image."""

    boxes_xyxy_net: Tensor  # [M 4] float32, network pixels
    objectness: Tensor  # [M] logits, as models.heads.scoring_rows gives them
    class_logits: Tensor  # [M C]
    image: Tensor  # [M] int64, index in the batch


def candidates_of_maps(raw_maps: Sequence[Tensor], heads: Sequence[Head], confidence: float) -> list[Detections]:
    """Return of each image all boxes in network pixels whose score passes, in the order of :func:`decode_predictions`.

    Args:
        raw_maps: one [B A H W 5+C] per head.
        heads: of the network.
        confidence: minimum objectness x class probability.
    """
    decoded = decode_predictions(raw_maps, heads, confidence)
    multi_label = confidence <= MULTI_LABEL_BELOW
    slot, label, score = select_candidates(decoded.objectness, decoded.class_logits, confidence, multi_label)
    # The candidates are ordered by image, so that counts are enough to split them.
    per_image = torch.bincount(decoded.image[slot], minlength=len(raw_maps[0])).tolist()
    parts = zip(slot.split(per_image), label.split(per_image), score.split(per_image), strict=True)
    return [Detections(decoded.boxes_xyxy_net[slots], scores, labels) for slots, labels, scores in parts]


def decode_predictions(raw_maps: Sequence[Tensor], heads: Sequence[Head], confidence: float) -> DecodedPredictions:
    """Decode the slots of raw maps [B A H W 5+C] whose objectness passes; of the others only the objectness is read.

    Within an image the order is head, row, column, anchor, which is also how NMS ranks equal scores.
    """
    parts = [_decode_head(raw, head, confidence) for raw, head in zip(raw_maps, heads, strict=True)]
    boxes, rows, image = (torch.cat(part) for part in zip(*_same_width(parts), strict=True))
    if len(parts) > 1:
        order = image.argsort(stable=True)
        boxes, rows, image = boxes[order], rows[order], image[order]
    return DecodedPredictions(boxes, rows[:, 4], rows[:, 5:], image)


def _same_width(parts: list[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the parts with rows as wide as the widest; a class that a head does not have is impossible there."""
    width = max(rows.shape[1] for _, rows, _ in parts)
    pad = functional.pad
    return [(boxes, pad(rows, (0, width - rows.shape[1]), value=-math.inf), image) for boxes, rows, image in parts]


def _decode_head(raw: Tensor, head: Head, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the passing slots of one head: boxes [M 4] as corners in network pixels, rows [M 5+C], images [M]."""
    if isinstance(head, DecodingHead):
        return head.decode(raw, logit(confidence) - LOGIT_SLACK)
    num_anchors, num_rows, num_cols, width = raw.shape[1:]
    table = raw.permute(0, 2, 3, 1, 4).reshape(-1, width)  # B*H*W*A 5+C, a view of a channels-last output
    passing = (table[:, 4] > logit(confidence) - LOGIT_SLACK).nonzero().flatten()
    rows = table[passing]
    # A row's number is ((image * H + row) * W + column) * A + anchor.
    cell = torch.div(passing, num_anchors, rounding_mode="floor")
    col = cell % num_cols
    row = torch.div(cell, num_cols, rounding_mode="floor") % num_rows
    image = torch.div(cell, num_cols * num_rows, rounding_mode="floor")
    prior_wh = priors_wh(head, raw.device)[passing % num_anchors]
    # Darknet does not clamp exp(tw) when it detects; the box is clipped to the image at the end.
    boxes = decode_boxes(rows[:, :4], torch.stack((col, row), dim=1), prior_wh, head, exp_limit=math.inf)
    boxes_xyxy = cxcywh_to_xyxy(boxes * head.stride)
    # An infinite size around an infinite centre, or a raw NaN, has no corners.
    valid = ~boxes_xyxy.isnan().any(dim=1)
    if not valid.all():
        boxes_xyxy, rows, image = boxes_xyxy[valid], rows[valid], image[valid]
    return boxes_xyxy, scoring_rows(rows, head, confidence), image
