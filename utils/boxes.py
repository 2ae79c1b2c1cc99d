"""Box formats and the IoU family: IoU, GIoU, DIoU, CIoU, and the IoU of shapes alone.

Formats: ``cxcywh`` is centre and size, ``xyxy`` is the two corners; any unit, as long as both boxes share it.
Every function computes in float32 at least (fp16, bf16 and integers are converted, float64 stays), and is finite with
finite gradients for boxes without area, identical boxes, disjoint boxes and boxes of 10,000 pixels.
GIoU: arXiv 1902.09630. DIoU and CIoU: arXiv 1911.08287.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIZE_NAMES = ("small", "medium", "large")  # COCO's, by area
SIZE_LIMITS = (32.0**2, 96.0**2)  # square pixels: small is below the first, large from the second on
SMALLEST_AREA = 1e-9  # a union, hull or squared diagonal below it counts as this, so that nothing is divided by zero
SMALLEST_SIDE = 1e-6  # likewise a height that a width is divided by, where CIoU compares aspect ratios


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert [... 4] centre-and-size boxes to corners."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert [... 4] corner boxes to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def shape_iou(a_wh: Tensor, b_wh: Tensor) -> Tensor:
    """Return the IoU of every pair of shapes, both centred on the same point: [N 2] and [M 2] to [N M]."""
    a_wh, b_wh = _precise(a_wh)[..., :, None, :], _precise(b_wh)[..., None, :, :]
    intersection = torch.minimum(a_wh[..., 0], b_wh[..., 0]) * torch.minimum(a_wh[..., 1], b_wh[..., 1])
    union = a_wh[..., 0] * a_wh[..., 1] + b_wh[..., 0] * b_wh[..., 1] - intersection
    return intersection / union.clamp(min=SMALLEST_AREA)


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor, kind: str = "iou", elementwise: bool = False) -> Tensor:
    """Return the IoU, or one of its generalisations, of corner boxes.

    Args:
        a_xyxy: [... N 4]; in CIoU, the prediction.
        b_xyxy: [... M 4]; in CIoU, the truth.
        kind: a key of :data:`IOU_KINDS`.
        elementwise: False gives every pair, [... N M]; True gives box by box after broadcasting, [... N].

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in IOU_KINDS:
        raise ValueError(f"unknown kind of IoU '{kind}'; known: {', '.join(IOU_KINDS)}")
    a_xyxy, b_xyxy = _precise(a_xyxy), _precise(b_xyxy)
    if not elementwise:
        a_xyxy, b_xyxy = a_xyxy[..., :, None, :], b_xyxy[..., None, :, :]
    return IOU_KINDS[kind](a_xyxy, b_xyxy)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=SMALLEST_AREA)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU − (hull − union) / hull."""
    intersection, union = _intersection_and_union(a, b)
    hull_wh = _hull_wh(a, b)
    hull = (hull_wh[..., 0] * hull_wh[..., 1]).clamp(min=SMALLEST_AREA)
    return intersection / union.clamp(min=SMALLEST_AREA) - (hull - union) / hull


def _diou(a: Tensor, b: Tensor) -> Tensor:
    """IoU − ρ² / c²: the penalty is the squared distance of the centres over the squared diagonal of the hull."""
    return _iou(a, b) - _center_penalty(a, b)


def _ciou(a: Tensor, b: Tensor) -> Tensor:
    """IoU − ρ² / c² − βv, where β is held constant in the gradient (equation 12 of the paper and its appendix)."""
    iou = _iou(a, b)
    a_wh, b_wh = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    v = (4 / math.pi**2) * (_aspect(b_wh) - _aspect(a_wh)).square()
    with torch.no_grad():
        beta = v / (1 - iou + v).clamp(min=SMALLEST_SIDE)
    return iou - _center_penalty(a, b) - beta * v


# None may be above the plain IoU: where matches are looked for follows from that (models/assignment/candidates.py).
IOU_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"iou": _iou, "giou": _giou, "diou": _diou, "ciou": _ciou}


def intersection_over_first(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return, box by box, the share of ``a`` that ``b`` covers: how COCO compares a detection with a crowd region."""
    a_xyxy, b_xyxy = _precise(a_xyxy), _precise(b_xyxy)
    intersection, _ = _intersection_and_union(a_xyxy, b_xyxy)
    area = (a_xyxy[..., 2:] - a_xyxy[..., :2]).prod(dim=-1)
    return intersection / area.clamp(min=SMALLEST_AREA)


def _precise(boxes: Tensor) -> Tensor:
    """Return the boxes in float32, or as they are in float64."""
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    overlap = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    a_wh, b_wh = a_high - a_low, b_high - b_low
    return intersection, a_wh[..., 0] * a_wh[..., 1] + b_wh[..., 0] * b_wh[..., 1] - intersection


def _hull_wh(a: Tensor, b: Tensor) -> Tensor:
    """Return width and height of the smallest box around both, [... 2]."""
    return torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])


def _center_penalty(a: Tensor, b: Tensor) -> Tensor:
    """Return ρ² / c², [...]."""
    distance = ((b[..., :2] + b[..., 2:] - a[..., :2] - a[..., 2:]) / 2).square().sum(dim=-1)
    return distance / _hull_wh(a, b).square().sum(dim=-1).clamp(min=SMALLEST_AREA)


def _aspect(wh: Tensor) -> Tensor:
    """Return the aspect ratio as an angle, atan(width / height)."""
    return torch.atan(wh[..., 0] / wh[..., 1].clamp(min=SMALLEST_SIDE))
