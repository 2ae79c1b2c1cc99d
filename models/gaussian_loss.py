"""Darknet's loss of a ``[Gaussian_yolo]`` head (src/gaussian_yolo_layer.c of AlexeyAB/darknet 59596d7).

A number x of the box is predicted as a normal distribution of mean μ and deviation σ; the loss is -log(N) / 2 of the
density N(x; μ, σ). Darknet's delta is not the gradient of that: it leaves out the slopes of the logistic functions, and
its IoU losses keep only part of the chain rule. What is back-propagated here is Darknet's delta.

Shape letters: A anchors per cell, C classes, M matches of one head, U slots with a match.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.head_matches import HeadMatches
from models.heads import GaussianRule
from utils.boxes import box_iou, cxcywh_to_xyxy

ADDED_SIGMA = 0.3  # to σ in the factor before the exponential, which bounds the density
EPSILON = 1e-9
LOWEST = -math.log(1 / (math.sqrt(2 * math.pi) * ADDED_SIGMA)) / 2  # what -log(N) / 2 is at best; reported as 0
SURE_CLASS = 0.25  # a prediction is ignored only if one of its classes is more probable


def gaussian_parts(matches: HeadMatches, rule: GaussianRule) -> dict[str, Tensor]:
    """Return the parts box, obj and cls, summed over the images."""
    raw = matches.raw
    slots, slot_of_match = torch.unique(matches.slots, return_inverse=True)
    first = torch.zeros_like(slots).scatter_(0, slot_of_match, torch.arange(len(matches), device=raw.device))
    logits = matches.select(first).rows[:, matches.head.class_columns]  # U C
    truth = torch.full_like(logits, rule.label_smooth_eps / 2)
    truth[slot_of_match, matches.label] = 1 - rule.label_smooth_eps / 2
    classes = functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")

    # A slot's box learns the sum over its objects, divided by how many classes are pulled up.
    pulled_up = (truth > logits.detach().sigmoid()).sum(dim=1).clamp(min=1)  # U
    box = (_box_loss(matches, rule) / pulled_up[slot_of_match, None]).sum()

    objectness = raw[..., 4].float()
    wanted = torch.zeros_like(objectness)
    wanted[matches.place] = 1
    loss = functional.binary_cross_entropy_with_logits(objectness, wanted, reduction="none")
    if matches.ignore is not None:
        is_sure = (raw[..., matches.head.class_columns] > math.log(SURE_CLASS / (1 - SURE_CLASS))).any(dim=-1)
        loss = loss.masked_fill(matches.ignore & is_sure & (wanted == 0), 0)
    return {"box": box, "obj": rule.obj_normalizer * loss.sum(), "cls": classes}


def _box_loss(matches: HeadMatches, rule: GaussianRule) -> Tensor:
    """Return the losses of the matches' box numbers and their uncertainties, [M 8], whose gradient is minus delta."""
    rows = matches.rows
    learned = torch.cat((rows[:, :4], rows[:, -4:]), dim=1)  # M 8
    with torch.no_grad():
        log_loss, delta = _likelihood(matches, learned.double())
        value = rule.iou_normalizer * log_loss
        if rule.iou_loss != "mse":
            size_wh = _size_of_grid(matches)
            predicted, truth = matches.predicted_cxcywh() / size_wh, matches.boxes_cxcywh / size_wh
            slopes = iou_slopes(predicted, truth, rule.iou_loss)
            delta[:, :4] = torch.cat((slopes[:, :2], slopes[:, 2:] * learned[:, 2:4].double().exp()), dim=1)
            iou = box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth), rule.iou_loss, elementwise=True)
            value = rule.iou_normalizer * (1 - iou[:, None].double()) / 4 + rule.uc_normalizer * log_loss
        delta[:, :4] *= rule.iou_normalizer
        delta[:, 4:] *= rule.uc_normalizer
        delta = delta.nan_to_num(0, 0, 0).clamp(-rule.max_delta, rule.max_delta).float()
    pulled = -delta * learned
    return pulled - pulled.detach() + torch.cat((value, torch.zeros_like(value)), dim=1).float()


def _size_of_grid(matches: HeadMatches) -> Tensor:
    """Return columns and rows of the head's grid twice, [4] float32: boxes in cells over it are relative boxes."""
    rows, cols = matches.raw.shape[2:4]
    return torch.tensor((cols, rows, cols, rows), dtype=torch.float32, device=matches.raw.device)


def _likelihood(matches: HeadMatches, learned: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log(N) / 2, [M 4], and delta, its slopes in μ and σ with the sign reversed, [M 8]; times 2 - w h."""
    scale_xy = matches.head.scale_x_y
    mean = torch.cat((learned[:, :2].sigmoid() * scale_xy - (scale_xy - 1) / 2, learned[:, 2:4]), dim=1)
    sigma = learned[:, 4:].sigmoid()
    wanted = torch.cat((matches.offset_xy, matches.log_size_wh), dim=1).double()
    relative_wh = (matches.boxes_cxcywh / _size_of_grid(matches))[:, 2:].double()
    scale = (2 - relative_wh.prod(dim=1))[:, None]
    error = (wanted - mean) / sigma
    density = (-error.square() / 2).exp() / (math.sqrt(2 * math.pi) * (sigma + ADDED_SIGMA))
    loss = scale * (-(density + EPSILON).log() / 2 - LOWEST)
    factor = scale * density / (density + EPSILON) / 2
    of_sigma = error.square() / sigma - 1 / (sigma + ADDED_SIGMA)
    return loss, torch.cat((factor * error / sigma, factor * of_sigma), dim=1)


def iou_slopes(predicted: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Return how Darknet lets an IoU pull at each number of the predicted boxes, [M 4] float64.

    This is ``dx_box_iou`` of src/box.c: not quite the gradient. Widths and heights get twice theirs from the IoU; the
    sides of an intersection may be negative; boxes apart learn from the penalty alone; the distance's denominator acts
    on the centre with the wrong sign.

    Args:
        predicted: [M 4] ``cxcywh``.
        truth: [M 4] ``cxcywh`` of the objects.
        kind: a key of ``IOU_KINDS``.
    """
    truth = truth.double()
    with torch.enable_grad():
        box = predicted.detach().double().requires_grad_()
        corners = (box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2)
        others = (truth[:, :2] - truth[:, 2:] / 2, truth[:, :2] + truth[:, 2:] / 2)
        inner = torch.minimum(corners[1], others[1]) - torch.maximum(corners[0], others[0])  # M 2
        outer = torch.maximum(corners[1], others[1]) - torch.minimum(corners[0], others[0])  # M 2
        intersection = inner.prod(dim=1)
        union = box[:, 2:].prod(dim=1) + truth[:, 2:].prod(dim=1) - intersection
        iou = torch.where(union > 0, intersection / union, 0)
        pull = iou if kind == "iou" else torch.where((inner > 0).all(dim=1), iou, 0)
        if kind == "giou":
            pull = pull + union / outer.prod(dim=1)
        (slopes,) = torch.autograd.grad(pull.sum(), box, retain_graph=True)
        slopes = torch.cat((slopes[:, :2], slopes[:, 2:] * 2), dim=1)
        if kind in ("diou", "ciou"):
            diagonal = outer.square().sum(dim=1, keepdim=True)
            (of_diagonal,) = torch.autograd.grad(diagonal.sum(), box)
            diagonal = diagonal.detach()
            apart = (truth - predicted.double())[:, :2]
            share = apart.square().sum(dim=1, keepdim=True) / diagonal.square()
            slopes[:, :2] += 2 * apart / diagonal - of_diagonal[:, :2] * share
            slopes[:, 2:] += of_diagonal[:, 2:] * share
    if kind == "ciou":
        slopes[:, 2:] += _aspect_slopes(box.detach(), truth, iou.detach())
    return slopes


def _aspect_slopes(box: Tensor, truth: Tensor, iou: Tensor) -> Tensor:
    """Return what CIoU's aspect ratio adds to the slopes in width and height, [M 2]."""
    angle = (truth[:, 2] / truth[:, 3]).atan() - (box[:, 2] / box[:, 3]).atan()
    penalty = 4 / math.pi**2 * angle.square()
    alpha = penalty / (1 - iou + penalty + 1e-6)
    pull = 8 / math.pi**2 * angle * alpha
    return torch.stack((pull * box[:, 3], -pull * box[:, 2]), dim=1)
