"""The kinds of non-maximum suppression that can be chosen with ``--nms``: one function each, one table.

Each takes the candidates of one image and returns its detections, the strongest first. Boxes are compared within their
class, or all with all where ``agnostic`` is set. "Overlap" is the IoU; two boxes without area have none.

Shape letters: N candidates, K detections, M members of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.nms import non_max_suppression
from utils.boxes import box_iou
from utils.config import option
from utils.structures import Detections

SIGMA = 0.5  # the default of Soft-NMS's authors
LARGEST_COORDINATE = 1e30  # of a box that is averaged: infinity times a weight of 0 would be no number


@dataclass(frozen=True)
class NmsRule:
    """How boxes suppress one another."""

    iou_threshold: float  # overlap above it is too much
    max_detections: int | None = None  # per image; None: all
    kind: str = "cfg"  # a key of NMS_KINDS
    agnostic: bool = False  # whether boxes of different classes suppress one another
    confidence: float = 0.0  # soft kinds drop what sinks to this score
    sigma: float = SIGMA  # of soft-gaussian
    cfg_beta: float | None = None  # what the cfg asks for, see models/nms.py; None: plain IoU


def suppress(candidates: Detections, rule: NmsRule) -> Detections:
    """Return what is left of the candidates of one image, the strongest first."""
    return NMS_KINDS[rule.kind](candidates, rule)


def greedy(candidates: Detections, rule: NmsRule, beta: float | None = None) -> Detections:
    """Drop every box that overlaps a stronger one too much; ``beta`` as in :func:`models.nms.non_max_suppression`."""
    return candidates.select(_greedy_index(candidates, rule, beta))


def as_cfg(candidates: Detections, rule: NmsRule) -> Detections:
    """Greedy, with the penalty for distance that the cfg asks for by ``nms_kind``."""
    return greedy(candidates, rule, rule.cfg_beta)


def merge(candidates: Detections, rule: NmsRule) -> Detections:
    """Greedy; then each kept box becomes the mean of all candidates that overlap it too much, weighted by their scores.

    The box voting of arXiv 1505.01749.
    ``box = sum(s_j b_j) / sum(s_j)`` over itself and every candidate j of its class with IoU above the threshold,
    whichever kept box has dropped it; the score stays that of the strongest.
    """
    kept = _greedy_index(candidates, rule)
    groups = torch.zeros_like(candidates.labels) if rule.agnostic else candidates.labels
    boxes = candidates.boxes_xyxy.double().clamp(-LARGEST_COORDINATE, LARGEST_COORDINATE)
    scores = candidates.scores.double()
    merged = boxes[kept]
    for group in groups[kept].unique():
        members = (groups == group).nonzero().flatten()
        rows = (groups[kept] == group).nonzero().flatten()
        mine = kept[rows]
        joins = box_iou(boxes[mine], boxes[members]) > rule.iou_threshold  # K M
        weights = (joins | (mine[:, None] == members)) * scores[members]  # itself, too, if it has no area
        merged[rows] = weights @ boxes[members] / weights.sum(dim=1, keepdim=True)
    return Detections(merged.to(candidates.boxes_xyxy.dtype), candidates.scores[kept], candidates.labels[kept])


def linear_decay(iou: np.ndarray, rule: NmsRule) -> np.ndarray:
    """Return 1 - IoU where that is above the threshold, else 1 (arXiv 1704.04503, equation 2)."""
    return np.where(iou > rule.iou_threshold, 1 - iou, 1.0)


def gaussian_decay(iou: np.ndarray, rule: NmsRule) -> np.ndarray:
    """Return exp(-IoU^2 / sigma) (arXiv 1704.04503, equation 3); it knows no threshold."""
    return np.exp(-(iou**2) / rule.sigma)


def soft(candidates: Detections, rule: NmsRule, decay: Callable[[np.ndarray, NmsRule], np.ndarray]) -> Detections:
    """Take the strongest box again and again, and lower the scores of those of its class that overlap it.

    Soft-NMS, arXiv 1704.04503, figure 2; it ends at ``max_detections`` or when no score is above ``confidence``. Of
    equal scores the first comes first. Computed in float64 on the CPU: each step waits for the one before, and a GPU
    would only wait for its launches.
    """
    boxes = candidates.boxes_xyxy.double().cpu().numpy()
    scores = candidates.scores.double().cpu().numpy().copy()
    groups = np.zeros(len(scores), dtype=np.int64) if rule.agnostic else candidates.labels.cpu().numpy()
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = {groups[part[0]]: part for part in np.split(order, starts[1:]) if len(part)}
    boxes_of = {group: np.ascontiguousarray(boxes[part].T) for group, part in members.items()}
    chosen: list[int] = []
    final: list[float] = []
    room = len(scores) if rule.max_detections is None else rule.max_detections
    while len(chosen) < min(room, len(scores)):
        best = int(scores.argmax())
        if scores[best] <= rule.confidence:
            break
        chosen.append(best)
        final.append(scores[best])
        group = groups[best]
        scores[members[group]] *= decay(_iou_with(boxes[best], boxes_of[group]), rule)
        scores[best] = -1  # taken
    index = torch.tensor(chosen, dtype=torch.int64, device=candidates.labels.device)
    return Detections(candidates.boxes_xyxy[index], candidates.scores.new_tensor(final), candidates.labels[index])


NMS_KINDS: dict[str, Callable[[Detections, NmsRule], Detections]] = {
    "cfg": as_cfg,
    "greedy": greedy,
    "diou": partial(greedy, beta=1.0),  # arXiv 1911.08287: IoU less squared distance over squared diagonal
    "soft-linear": partial(soft, decay=linear_decay),
    "soft-gaussian": partial(soft, decay=gaussian_decay),
    "merge": merge,
}
LOWERING = ("soft-linear", "soft-gaussian")  # the kinds that lower scores, so that a second pass lowers them twice


@dataclass(frozen=True)
class NmsOptions:
    """Non-maximum suppression: what becomes of boxes that overlap."""

    nms: str = option("cfg", "what becomes of boxes that overlap; cfg: greedy, as the cfg asks for", tuple(NMS_KINDS))
    nms_sigma: float = option(SIGMA, "--nms soft-gaussian multiplies a score by exp(-IoU^2 / sigma)")
    agnostic_nms: bool = option(False, "boxes of different classes suppress one another, too")

    def __post_init__(self) -> None:
        if self.nms not in NMS_KINDS:
            raise ValueError(f"--nms is one of {', '.join(NMS_KINDS)}, not '{self.nms}'")
        if not self.nms_sigma > 0:
            raise ValueError(f"--nms-sigma must be above 0, not {self.nms_sigma:g}")
        if self.nms_sigma != SIGMA and self.nms != "soft-gaussian":
            raise ValueError(f"--nms-sigma is for --nms soft-gaussian, not for {self.nms}")


def _greedy_index(candidates: Detections, rule: NmsRule, beta: float | None = None) -> Tensor:
    """Return the indices of what greedy NMS keeps, [K]."""
    return non_max_suppression(
        candidates.boxes_xyxy,
        candidates.scores,
        candidates.labels,
        rule.iou_threshold,
        rule.max_detections,
        rule.agnostic,
        beta,
    )


def _iou_with(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of a box [4] with others, given as rows x1, y1, x2, y2 [4 M]; 0 where nothing defines it."""
    x1, y1, x2, y2 = others
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        width = np.minimum(box[2], x2) - np.maximum(box[0], x1)
        height = np.minimum(box[3], y2) - np.maximum(box[1], y1)
        intersection = width.clip(min=0) * height.clip(min=0)
        union = (box[2] - box[0]) * (box[3] - box[1]) + (x2 - x1) * (y2 - y1) - intersection
        return np.nan_to_num(intersection / union, nan=0.0)
