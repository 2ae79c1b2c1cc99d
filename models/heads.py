"""Detection heads: what a slot's raw numbers mean as a box.

Training, inference and matching all decode by the functions of this file. A raw map has the same columns for every kind
of head: the box's four raw numbers, the logit of objectness, the logit of every class and, of a ``[Gaussian_yolo]``,
four logits that say how uncertain the box is. ``models/head_maps.py`` brings a convolution's output into this form.

Shape letters: B images, A anchors per cell, H W grid rows and columns, C classes, M slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

EXP_LIMIT = 1e3  # exp(tw) is at most this in training, as in ultralytics/yolov3 v7: unbounded, it makes losses infinite


@dataclass(frozen=True, eq=False)
class ClassTree:
    """Classes under one another, as Darknet's ``tree=`` file lists them; a softmax goes over each group of siblings."""

    parents: tuple[int, ...]  # per class the class above it, always an earlier one; -1 at the top
    groups: tuple[int, ...]  # per class the number of its group: neighbouring classes of one parent


@dataclass(frozen=True)
class RegionRule:
    """How a ``[region]`` section scores and learns, by its keys."""

    softmax: bool = False  # of the classes; False: every class has a logistic of its own
    tree: ClassTree | None = None  # a softmax over each group of it instead
    bias_match: bool = False  # True: the anchor nearest in shape matches; False: the predicted box nearest in shape
    rescore: bool = False  # objectness learns the IoU of the prediction, not 1
    coord_scale: float = 1.0
    object_scale: float = 1.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0


@dataclass(frozen=True)
class GaussianRule:
    """How a ``[Gaussian_yolo]`` section learns, by its keys."""

    iou_loss: str = "mse"  # mse: the likelihood of the box; else a key of IOU_KINDS
    iou_normalizer: float = 0.75
    uc_normalizer: float = 1.0
    obj_normalizer: float = 1.0
    label_smooth_eps: float = 0.0
    max_delta: float = math.inf  # no number of a box gets a larger gradient from one object


@dataclass(frozen=True)
class DenseRule:
    """That a head is one level of a RetinaNet or an FCOS, and how these differ from a ``[yolo]``.

    A cell is the area around the point (column, row) x stride, where its anchors stand. The numbers of a box are the
    distance of its centre from that point in anchors, and the logarithm of its size in anchors.
    """

    has_anchors: bool = True  # False: FCOS, whose boxes are measured in squares instead


@dataclass(frozen=True)
class Head:
    """One section of a cfg, or one level of another network: its anchors, stride and how its raw map decodes."""

    anchors_wh: tuple[tuple[float, float], ...]  # pixels of the network input, those that the mask selects
    stride: int  # pixels of the network input per grid cell
    num_classes: int
    scale_x_y: float = 1.0
    new_coords: bool = False  # False: Darknet's exp for sizes; True: (2 sigmoid)^2, as YOLOv4-csp and YOLOv5
    all_anchors_wh: tuple[tuple[float, float], ...] = ()  # its section's whole list, in a usual cfg that of every head
    mask: tuple[int, ...] = ()  # which of them are this head's
    ignore_thresh: float = 0.5  # Darknet's: predictions above it are no negatives
    iou_thresh: float = 1.0  # Darknet's: below 1, further anchors of the mask above it match too
    nms_beta: float | None = None  # Darknet's greedynms and diounms, see models/nms.py; None: plain IoU
    rule: RegionRule | GaussianRule | DenseRule | None = None  # None: a [yolo]

    @property
    def num_anchors(self) -> int:
        """Predictors per grid cell."""
        return len(self.anchors_wh)

    @property
    def is_dense(self) -> bool:
        """Whether it is a level of a RetinaNet or an FCOS."""
        return isinstance(self.rule, DenseRule)

    @property
    def has_anchors(self) -> bool:
        """Whether its slots have shapes that objects can be compared with."""
        return not isinstance(self.rule, DenseRule) or self.rule.has_anchors

    @property
    def has_objectness(self) -> bool:
        """Whether a slot says how sure it is apart from the class; of FCOS its centre-ness counts as that."""
        return not isinstance(self.rule, DenseRule) or not self.rule.has_anchors

    @property
    def class_columns(self) -> slice:
        """Where the logits of the classes stand in a row of the raw map."""
        return slice(5, 5 + self.num_classes)


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep the constants that a function makes, so that decoding moves no data to a GPU."""
    # A constant first made by an evaluation must still be usable where gradients are taken.
    cached = lru_cache(maxsize=256)(torch.inference_mode(False)(make))

    @wraps(make)
    def get(*arguments: Any) -> Tensor:
        # In a graph that is being exported numbers and tensors are symbols, which have no place in a cache.
        traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
        return make(*arguments) if traced else cached(*arguments)

    return get


@kept
def priors_wh(head: Head, device: torch.device) -> Tensor:
    """Return the head's anchors in grid units, [A 2] float32."""
    return torch.tensor(head.anchors_wh, dtype=torch.float32, device=device) / head.stride


@kept
def cell_grid(rows: int, cols: int, device: torch.device) -> Tensor:
    """Return the (column, row) of every cell, [H W 2] float32."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(cols, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).float()


def decode_boxes(
    raw_xywh: Tensor, cell_xy: Tensor, prior_wh: Tensor, head: Head, exp_limit: float = EXP_LIMIT
) -> Tensor:
    """Decode raw outputs into ``cxcywh`` boxes in grid units, in float32 and differentiably.

    Args:
        raw_xywh: [... 4], the first four raw numbers of each slot.
        cell_xy: [... 2], column and row of each slot.
        prior_wh: [... 2], each slot's anchor in grid units.
        head: says which of the two decodes applies.
        exp_limit: clamp of ``exp(tw)``; ``math.inf`` gives Darknet's unclamped inference.

    Darknet (src/yolo_layer.c): ``x = s sigma(tx) - (s-1)/2 + i``, ``w = pw exp(tw)`` with ``s`` for scale_x_y, column
    ``i`` and anchor width ``pw``; with new_coords, as in ultralytics/yolov5 v7.0, ``w = pw (2 sigma(tw))^2``.
    RetinaNet and FCOS (arXiv 1311.2524, appendix C): ``x = pw tx + i``, ``w = pw exp(tw)``.
    """
    raw_xywh = raw_xywh.float()
    if head.is_dense:
        size_wh = raw_xywh[..., 2:].clamp(max=math.log(exp_limit)).exp() * prior_wh
        return torch.cat((raw_xywh[..., :2] * prior_wh + cell_xy, size_wh), dim=-1)
    scale = head.scale_x_y
    center_xy = raw_xywh[..., :2].sigmoid() * scale - (scale - 1) / 2 + cell_xy
    if head.new_coords:
        size_wh = (raw_xywh[..., 2:].sigmoid() * 2).square() * prior_wh
    else:
        # Clamped before exp: where exp overflows, a clamp after it has the gradient 0 * inf.
        size_wh = raw_xywh[..., 2:].clamp(max=math.log(exp_limit)).exp() * prior_wh
    return torch.cat((center_xy, size_wh), dim=-1)


def decode_map(raw: Tensor, head: Head, exp_limit: float = EXP_LIMIT) -> Tensor:
    """Decode a whole raw map [B A H W 5+C] into ``cxcywh`` boxes in grid units, [B A H W 4] float32."""
    rows, cols = raw.shape[2:4]
    prior_wh = priors_wh(head, raw.device)[:, None, None, :]  # A 1 1 2
    return decode_boxes(raw[..., :4], cell_grid(rows, cols, raw.device), prior_wh, head, exp_limit)


def scoring_rows(rows: Tensor, head: Head, confidence: float) -> Tensor:
    """Return raw rows [M 5+C] whose two probabilities, of objectness and class, multiply to the score of a detection.

    Of most heads they are the rows as they stand. Of a ``[Gaussian_yolo]`` the first becomes objectness x (1 - mean
    uncertainty). Of a ``[region]`` with a tree the score is the probability of one class alone: the last in the tree's
    order that is more probable than 1/2, where objectness passes ``confidence``. (Darknet:
    ``get_gaussian_yolo_detections`` in src/gaussian_yolo_layer.c, ``get_region_boxes`` in src/region_layer.c.)
    """
    objectness, classes = rows[:, 4:5], rows[:, head.class_columns]
    if isinstance(head.rule, GaussianRule):
        uncertainty = rows[:, -4:].float().sigmoid().mean(dim=1, keepdim=True)
        certain = (objectness.float().sigmoid() * (1 - uncertainty)).logit().to(rows.dtype)
        return torch.cat((rows[:, :4], certain, classes), dim=1)
    if isinstance(head.rule, RegionRule) and head.rule.tree is not None:
        number = torch.arange(1, head.num_classes + 1, device=rows.device)
        last = ((classes > 0) * number).amax(dim=1, keepdim=True)  # M 1, 0 where no class passes 1/2
        counts = (number == last) & (objectness.float().sigmoid() > confidence)
        sure = torch.full_like(objectness, math.inf)
        return torch.cat((rows[:, :4], sure, classes.masked_fill(~counts, -math.inf)), dim=1)
    return rows
